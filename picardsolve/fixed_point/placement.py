"""Where the rows of a window lie: index arithmetic on the host."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.sweep import Memory
from picardsolve.integrators.base import Index


@dataclass(frozen=True)
class Placement:
    """The steps of one round: W positions of B samples, of which a sample may hold fewer than W.

    Attributes:
        n: ``(W, B)`` the step at each position; ``(W, 1)`` where all samples stand at the same step.
        span: ``(B,)`` how many steps each sample holds.
    """

    n: Index
    span: Index

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
    def step(self) -> Index:
        """``(R,)`` the step of each row of the round."""
        return (self.n + np.zeros_like(self.span))[self.mask]

    @cached_property
    def sample(self) -> Index:
        """``(R,)`` the sample of each row of the round."""
        return (np.zeros_like(self.n) + np.arange(len(self.span)))[self.mask]

    def packed(self, states: Tensor) -> Tensor:
        """The rows ``(R, D)`` among states ``(W, B, D)``."""
        return states.flatten(0, 1) if self.full else states[on_device(self.mask, states)]

    def unpacked(self, rows: Tensor) -> Tensor:
        """Rows ``(R, K)`` in their places, ``(W, B, K)``, zeros elsewhere."""
        if self.full:
            return rows.reshape(*self.mask.shape, -1)
        out = rows.new_zeros(*self.mask.shape, rows.shape[-1])
        out[on_device(self.mask, rows)] = rows
        return out


def alike(index: Index) -> bool:
    """Whether all samples have the same number."""
    return len(index) == 1 or bool((index == index[0]).all())


def on_device(host: np.ndarray, like: Tensor) -> Tensor:
    """A host array as a tensor on the device of another."""
    return torch.from_numpy(host).to(like.device)


def rows_from(source: Tensor, first: Index, count: int) -> Tensor:
    """Rows ``first[s], first[s] + 1, ...`` of each sample s, ``(count, B, ...)``; the last row repeats."""
    start = int(first[0])
    if alike(first) and start + count <= len(source):
        return source[start : start + count]
    return taken(source, np.minimum(first + np.arange(count)[:, None], len(source) - 1))


def taken(source: Tensor, index: Index) -> Tensor:
    """Rows ``index[j, s]`` of each sample s, ``(W, B, ...)``."""
    samples = source.shape[1]
    flat = on_device((index * samples + np.arange(samples)).ravel(), source)
    return source.flatten(0, 1).index_select(0, flat).reshape(*index.shape, *source.shape[2:])


def extended(states: Tensor, first: Index, known: Index, ahead: Tensor, count: int) -> Tensor:
    """Rows ``first[s]`` to ``first[s] + known[s]`` of states, then those of ``ahead``: ``(count, B, D)``."""
    if alike(first) and alike(known):
        start, end = int(first[0]), int(first[0] + known[0]) + 1
        return torch.cat([states[start:end], ahead])
    position = np.arange(count)[:, None]
    kept = np.minimum(first + position, len(states) - 1)
    index = np.where(position <= known, kept, len(states) + position - known - 1)
    return taken(torch.cat([states, ahead]), np.minimum(index, len(states) + len(ahead) - 1))


def padded(memory: Memory, width: int) -> Memory:
    """What is remembered of the first ``width`` steps of a window, zeros for the steps that are new."""
    missing = [width - len(part) for part in memory]
    return tuple(
        torch.cat([part, part.new_zeros(more, *part.shape[1:])]) if more > 0 else part[:width]
        for part, more in zip(memory, missing, strict=True)
    )


def shifted(memory: Memory, accepted: Index, kept: Index) -> Memory:
    """What is remembered of the steps from ``accepted[s]`` up to ``kept[s]``, at their places in the next window."""
    left = kept - accepted
    moved = tuple(rows_from(part, accepted, int(left.max())) for part in memory)
    if alike(left):
        return moved
    position = np.arange(int(left.max()))[:, None]
    return tuple(
        part.masked_fill(on_device(position >= left, part).reshape(*part.shape[:2], *[1] * (part.dim() - 2)), 0)
        for part in moved
    )
