"""The solution between the times that were asked for: a polynomial on every segment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.collocation.check import CheckedSegment
from picardsolve.collocation.initial_value import InitialValueProblem
from picardsolve.problem.state import Layout


class PiecewisePolynomial:
    """Segments one behind the other, as a function of elapsed time."""

    def __init__(self, segments: Sequence[CheckedSegment]):
        self.nodes = segments[0].nodes
        self.begins = np.array([segment.t for segment in segments])
        self.lengths = np.array([segment.h for segment in segments])
        self.values = np.array([segment.values for segment in segments])

    def __call__(self, t: np.ndarray) -> np.ndarray:
        """States ``(T, d)`` at elapsed times ``(T,)``; the first and the last polynomial go on beyond their ends."""
        at, weights = self.weights(t)
        return (weights[:, None] @ self.values[at])[:, 0]

    def segment_of(self, t: np.ndarray | float) -> np.ndarray:
        """Numbers of the segments that hold the times."""
        return np.clip(np.searchsorted(self.begins, t, side="right") - 1, 0, len(self.begins) - 1)

    def weights(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The segments that hold the times, ``(T,)``, and the weights of their values there, ``(T, points)``."""
        at = self.segment_of(t)
        return at, self.nodes.interpolate((t - self.begins[at]) / self.lengths[at])


@dataclass(frozen=True)
class Trajectory:
    """The states of one sample.

    Attributes:
        problem: that was solved.
        reached: elapsed time up to which they are known.
        path: None where no segment was accepted.
    """

    problem: InitialValueProblem
    reached: float
    path: PiecewisePolynomial | None

    def elapsed(self, ts: np.ndarray) -> np.ndarray:
        """Elapsed times of times ``(T,)``; NaN where the state is not known."""
        begin = self.problem.ts[0]
        elapsed = self.problem.sign * (ts - begin)
        known = (elapsed >= 0) & (elapsed <= self.reached * (1 + 1e-12) + 4 * np.finfo(float).eps * abs(begin))
        return np.where(known, np.minimum(elapsed, self.reached), np.nan)

    def __call__(self, elapsed: np.ndarray) -> np.ndarray:
        """States ``(T, d)`` at elapsed times; NaN at NaN."""
        out, known = np.full((len(elapsed), len(self.problem.start)), np.nan), ~np.isnan(elapsed)
        if self.path is not None:
            out[known] = self.path(elapsed[known])
        out[elapsed == 0] = self.problem.start
        return out


@dataclass(frozen=True)
class DenseStates:
    """The states of all samples at any times, without the functions that they were computed by.

    Attributes:
        samples: a trajectory for each.
        layout: of a sample's state.
    """

    samples: Sequence[Trajectory]
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
        if sample >= len(self.samples):
            raise ValueError(f"sample: expected one of {len(self.samples)}, counted from 0, got {sample}.")
        found = self.samples[sample]
        begins = np.zeros(0) if found.path is None else found.path.begins
        return torch.from_numpy(found.problem.time(np.append(begins, found.reached)))

    def elapsed(self, ts: Tensor) -> np.ndarray:
        """Elapsed times of ``(T,)`` times, or of ``(T, B)``, by sample: ``(T, B)``; NaN where states are not known."""
        at = ts.detach().to("cpu", torch.float64).numpy()
        columns = at.T if at.ndim > 1 else [at] * len(self.samples)
        return np.stack([sample.elapsed(own) for sample, own in zip(self.samples, columns, strict=True)], 1)

    def states(self, ts: Tensor) -> Tensor:
        """Rows ``(T, B, D)`` at such times; NaN where they are not known."""
        columns = zip(self.samples, self.elapsed(ts).T, strict=True)
        out = np.stack([sample(elapsed) for sample, elapsed in columns], 1)
        return torch.from_numpy(out).to(self.layout.device, self.layout.compute_dtype)
