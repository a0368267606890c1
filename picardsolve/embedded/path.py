"""The accepted steps of all samples, as they come, and in order of time once a march is over."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from picardsolve.problem.index import on_device


@dataclass
class Steps:
    """The nodes between steps in the order of samples and, of one sample, of time; M of them.

    A sample's path has pieces, which begin at its start and at jumps of the drift. A node belongs to one piece.

    Attributes:
        sample: ``(M,)``.
        t: ``(M,)`` times.
        inside: ``(M,)`` the same, but beside a jump of the drift where the slope was taken.
        piece: ``(M,)`` number of the piece.
        y: ``(M, D)`` states.
        slope: ``(M, D)``.
        error: ``(M, D)`` local error of the step that ends there, by the pair's estimate; 0 where a piece begins.
        first: ``(B,)`` the first node of every sample.
        count: ``(B,)`` how many it has.
    """

    sample: np.ndarray
    t: np.ndarray
    inside: np.ndarray
    piece: np.ndarray
    y: Tensor
    slope: Tensor
    error: Tensor
    first: np.ndarray
    count: np.ndarray

    @property
    def begins(self) -> np.ndarray:
        """``(N,)`` nodes where steps begin; they end at the nodes after them."""
        return np.flatnonzero(self.piece[1:] == self.piece[:-1])

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last node of every node's piece, ``(M,)`` each."""
        starts = np.flatnonzero(np.diff(self.piece, prepend=-1))
        length = np.diff(starts, append=len(self.piece))
        return np.repeat(starts, length), np.repeat(starts + length - 1, length)

    def of(self, node: np.ndarray) -> "Steps":
        """Some of the nodes, those of whole samples."""
        index = on_device(node, self.y.device)
        y, slope, error = (part.index_select(0, index) for part in (self.y, self.slope, self.error))
        count = np.bincount(self.sample[node], minlength=len(self.count))
        return Steps(
            self.sample[node],
            self.t[node],
            self.inside[node],
            self.piece[node],
            y,
            slope,
            error,
            count.cumsum() - count,
            count,
        )

    def detached(self) -> "Steps":
        """Without gradients."""
        return replace(self, y=self.y.detach(), slope=self.slope.detach(), error=self.error.detach())

    def replaced(self, new: "Steps", samples: np.ndarray) -> tuple["Steps", np.ndarray]:
        """The steps with other ones of some samples; and which nodes, of both behind each other, theirs are."""
        gone = np.isin(self.sample, samples)
        pieces = np.concatenate([self.piece, new.piece + self.piece.max(initial=0) + 1])
        parts = {name: np.concatenate([getattr(self, name), getattr(new, name)]) for name in ("sample", "t", "inside")}
        rows = {name: torch.cat([getattr(self, name), getattr(new, name)]) for name in ("y", "slope", "error")}
        both = replace(self, piece=pieces, **parts, **rows)
        node = np.flatnonzero(np.concatenate([~gone, np.ones(len(new.t), bool)]))
        node = node[np.argsort(both.sample[node], kind="stable")]
        return both.of(node), node


@dataclass
class Recorder:
    """What marches append their nodes to."""

    samples: int
    _numbers: list[tuple[np.ndarray, ...]] = field(default_factory=list)  # sample, t, inside, whether a piece begins
    _rows: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    _kept: list[np.ndarray] = field(default_factory=list)

    def add(
        self,
        sample: np.ndarray,
        t: np.ndarray,
        inside: np.ndarray,
        rows: tuple[Tensor, Tensor, Tensor],
        keep: np.ndarray,
        begins: bool = False,
    ) -> None:
        """Append nodes of samples ``(R,)`` at times ``(R,)``.

        Args:
            sample: whose.
            t: when.
            inside: the time at which the slope was taken.
            rows: states, slopes and errors, ``(R, D)`` each.
            keep: ``(R,)`` which of them are nodes.
            begins: whether a piece begins there.
        """
        self._numbers.append((sample, t, inside, np.full(len(sample), begins)))
        self._rows.append(rows)
        self._kept.append(keep)

    def steps(self) -> Steps:
        """All of them in order."""
        keep = np.flatnonzero(np.concatenate(self._kept))
        numbers = [np.concatenate(parts)[keep] for parts in zip(*self._numbers, strict=True)]
        order = np.argsort(numbers[0], kind="stable")
        sample, t, inside, begins = (part[order] for part in numbers)
        index = on_device(keep[order], self._rows[0][0].device)
        y, slope, error = (torch.cat(parts).index_select(0, index) for parts in zip(*self._rows, strict=True))
        count = np.bincount(sample, minlength=self.samples)
        return Steps(sample, t, inside, begins.cumsum(), y, slope, error, count.cumsum() - count, count)
