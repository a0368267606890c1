"""The solution between the times that were asked for: a polynomial on every segment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.collocation.initial_value import InitialValueProblem
from picardsolve.collocation.path import Path
from picardsolve.problem.state import Layout


@dataclass(frozen=True)
class DenseStates:
    """The states of all samples at any times, without the functions that they were computed by.

    Attributes:
        problem: that was solved.
        reached: ``(B,)`` elapsed times up to which they are known.
        paths: of the samples; samples of one kind of nodes share a path.
        path_of: ``(B,)`` which of the paths is a sample's; -1: no segment was accepted.
        layout: of a sample's state.
    """

    problem: InitialValueProblem
    reached: np.ndarray
    paths: Sequence[Path]
    path_of: np.ndarray
    layout: Layout

    def __call__(self, at: Tensor) -> Any:
        """States at times ``(T,)`` in the user's structure, time first; NaN where they are not known."""
        return self.layout.unpack_path(self.states(at))

    def detached(self) -> "DenseStates":
        """These states have no gradients."""
        return self

    def segments(self, sample: int) -> Tensor:
        """The times where a sample's segments begin, and where the last one ends, ``(S + 1,)``.

        Raises:
            ValueError: there is no such sample.
        """
        if sample >= len(self.reached):
            raise ValueError(f"sample: expected one of {len(self.reached)}, counted from 0, got {sample}.")
        begins = np.zeros(0)
        if self.path_of[sample] >= 0:
            own = self.paths[self.path_of[sample]].segments
            begins = own.t[own.sample == sample]
        return torch.from_numpy(self.problem.time(np.append(begins, self.reached[sample]), sample))

    def elapsed(self, ts: Tensor) -> np.ndarray:
        """Elapsed times of ``(T,)`` times, or of ``(T, B)``, by sample: ``(T, B)``; NaN where states are not known."""
        at = ts.detach().to("cpu", torch.float64).numpy()
        begin, reached = self.problem.origin, self.reached
        elapsed = self.problem.sign * ((at if at.ndim > 1 else at[:, None]) - begin)
        known = (elapsed >= 0) & (elapsed <= reached * (1 + 1e-12) + 4 * np.finfo(float).eps * np.abs(begin))
        return np.where(known, np.minimum(elapsed, reached), np.nan)

    def states(self, ts: Tensor) -> Tensor:
        """Rows ``(T, B, D)`` at such times; NaN where they are not known."""
        elapsed, arrays = self.elapsed(ts), self.problem.arrays
        t, sample = elapsed.ravel(), np.tile(np.arange(elapsed.shape[1]), len(elapsed))
        out = arrays.zeros(len(t), self.problem.numbers) + np.nan
        for path, own in self.queries(elapsed):
            out = arrays.put(out, own, path(t[own], sample[own]))
        first = np.flatnonzero(t == 0)
        if len(first):
            out = arrays.put(out, first, arrays.take(self.problem.start, sample[first]))
        rows = arrays.tensor(out).reshape(*elapsed.shape, -1)
        return rows.to(self.layout.device, self.layout.compute_dtype)

    def queries(self, elapsed: np.ndarray) -> list[tuple[Path, np.ndarray]]:
        """The paths, and which of ``(T, B)`` elapsed times are on each; flat, without those that are NaN."""
        which = np.where(np.isnan(elapsed), -1, self.path_of).ravel()
        found = [np.flatnonzero(which == i) for i in range(len(self.paths))]
        return [(path, own) for path, own in zip(self.paths, found, strict=True) if len(own)]
