"""Where the rows of a window lie, and which of them a sample takes along: index arithmetic on the host.

Samples that stand alike are moved by slices. Only where they stand apart does the device need an index, and all indices
that a round needs there are sent in one copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.sweep import Memory, fitted
from picardsolve.integrators.base import Index
from picardsolve.problem.index import DeviceIndex, send


@dataclass(frozen=True)
class Placement:
    """The steps of one round: W positions of B samples, of which a sample may hold fewer than W.

    Attributes:
        n: ``(W, B)`` the step at each position; ``(W, 1)`` where all samples stand at the same step.
        span: ``(B,)`` how many steps each sample holds.
        everyone: ``sample`` of another round of the same size; None: computed.
    """

    n: DeviceIndex
    span: Index
    everyone: DeviceIndex | None = None

    def sent(self, device: torch.device) -> "Placement":
        """This placement, with its indices on a device."""
        send(device, self.n, self.step, *(() if self.full else (self.row,)))
        return self

    @cached_property
    def position(self) -> Index:
        """``(W, 1)``: 0, 1, ..., W - 1."""
        return np.arange(len(self.n))[:, None]

    @cached_property
    def mask(self) -> np.ndarray:
        """``(W, B)`` whether a sample holds the position."""
        return self.position < self.span

    @cached_property
    def full(self) -> bool:
        """Whether every sample holds all W steps."""
        return bool((self.span == len(self.n)).all())

    @cached_property
    def row(self) -> DeviceIndex:
        """``(R,)`` where the rows of the round are among all ``W B``."""
        return np.flatnonzero(self.mask).view(DeviceIndex)

    @cached_property
    def step(self) -> DeviceIndex:
        """``(R,)`` the step of each row of the round."""
        return (np.asarray(self.n) + np.zeros_like(self.span))[self.mask].view(DeviceIndex)

    @cached_property
    def sample(self) -> DeviceIndex:
        """``(R,)`` the sample of each row of the round."""
        if self.everyone is not None:
            return self.everyone
        return np.broadcast_to(np.arange(len(self.span)), self.mask.shape)[self.mask].view(DeviceIndex)

    def packed(self, states: Tensor) -> Tensor:
        """The rows ``(R, D)`` among states ``(W, B, D)``."""
        flat = states.flatten(0, 1)
        return flat if self.full else flat.index_select(0, self.row.on(flat.device))

    def unpacked(self, rows: Tensor) -> Tensor:
        """Rows ``(R, K)`` in their places, ``(W, B, K)``, zeros elsewhere."""
        if not self.full:
            rows = rows.new_zeros(self.mask.size, rows.shape[-1]).index_copy_(0, self.row.on(rows.device), rows)
        return rows.view(*self.mask.shape, rows.shape[-1])


@dataclass(frozen=True)
class Pick:
    """Some rows of each sample, ``(count, B)`` of a source ``(rows, B, ...)``.

    Attributes:
        rows: which ones, where samples are alike; otherwise None.
        index: ``(count, B)`` where they are among the rows of all samples; empty where samples are alike.
    """

    rows: slice | None
    index: DeviceIndex

    @staticmethod
    def at(index: Index) -> "Pick":
        """Row ``index[j, s]`` of each sample s."""
        samples = index.shape[1]
        return Pick(None, (index * samples + np.arange(samples)).view(DeviceIndex))

    @staticmethod
    def from_(first: Index, count: int, rows: int) -> "Pick":
        """Rows ``first[s], first[s] + 1, ...`` of each sample s of a source with so many rows; the last one repeats."""
        start = int(first[0])
        if alike(first) and start + count <= rows:
            return Pick(slice(start, start + count), _NONE)
        return Pick.at(np.minimum(first + np.arange(count)[:, None], rows - 1))

    def of(self, source: Tensor) -> Tensor:
        """The rows, ``(count, B, ...)``."""
        if self.rows is not None:
            return source[self.rows]
        picked = source.flatten(0, 1).index_select(0, self.index.on(source.device).view(-1))
        return picked.view(*self.index.shape, *source.shape[2:])


_NONE = np.zeros((0, 1), dtype=np.int64).view(DeviceIndex)


def alike(index: Index) -> bool:
    """Whether all samples have the same number."""
    return len(index) == 1 or bool((index == index[0]).all())


def sent(device: torch.device, picks: Sequence[Pick], more: Sequence[DeviceIndex]) -> None:
    """Send the indices of picks, and others, to a device in one copy."""
    send(device, *(pick.index for pick in picks if pick.rows is None), *more)


def behind(first: Index, known: Index, count: int, states: int, ahead: int) -> Pick:
    """Rows ``first[s]`` to ``first[s] + known[s]`` of states, then those of what stands behind them: ``count`` rows."""
    position = np.arange(count)[:, None]
    kept = np.minimum(first + position, states - 1)
    index = np.where(position <= known, kept, states + position - known - 1)
    return Pick.at(np.minimum(index, states + ahead - 1))


def remembered(accepted: Index, kept: Index, width: int, rows: int) -> Pick:
    """The rows from ``accepted[s]`` up to ``kept[s]`` of a window's ``rows``, then row ``rows``, which is zero."""
    left = kept - accepted
    if alike(left) and alike(accepted):
        return Pick(slice(int(accepted[0]), int(kept[0])), _NONE)
    position = np.arange(min(width, rows))[:, None]
    return Pick.at(np.where(position < left, accepted + position, rows))


def moved(memory: Memory, pick: Pick, rows: int) -> Memory:
    """What is remembered of the steps that `remembered` picks among ``rows``, at their places in the next window."""
    if pick.rows is None:  # the row of zeros stands behind the others
        memory = fitted(memory, rows + 1)
    return tuple(pick.of(part) for part in memory)
