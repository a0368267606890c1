"""The solution between the times: a polynomial on every segment."""

from collections.abc import Sequence

import numpy as np

from picardsolve.collocation.check import Checked
from picardsolve.collocation.nodes import Nodes
from picardsolve.collocation.segments import Segment, fitted


class Path:
    """Segments one behind the other, as a function of time; time is counted from the start, in its direction."""

    def __init__(self, segments: Sequence[Checked], nodes: Nodes):
        self.nodes = nodes
        self.begins = np.array([segment.t for segment in segments])
        self.lengths = np.array([segment.h for segment in segments])
        self.values = np.array([segment.values for segment in segments])

    @property
    def end(self) -> float:
        """Up to when it is known."""
        return float(self.begins[-1] + self.lengths[-1])

    def __call__(self, t: np.ndarray) -> np.ndarray:
        """States ``(T, d)`` at times ``(T,)``; the first and last polynomials go on beyond their ends."""
        at, weights = self.weights(t)
        return (weights[:, None] @ self.values[at])[:, 0]

    def holding(self, t: np.ndarray | float) -> np.ndarray:
        """In which segments times are."""
        return np.clip(np.searchsorted(self.begins, t, side="right") - 1, 0, len(self.begins) - 1)

    def weights(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """In which segments times are, ``(T,)``, and what states there are made of, ``(T, points)``."""
        at = self.holding(t)
        return at, self.nodes.interpolate((t - self.begins[at]) / self.lengths[at])


class Guide:
    """An earlier path as the guess of segments that are shorter by a factor."""

    def __init__(self, path: Path, factor: float):
        self.path, self.factor = path, factor

    def segment(self, t: float, start: np.ndarray, left: float) -> Segment:
        """The segment that begins at ``t`` with ``left`` to go: along the path, moved to where it starts."""
        h = fitted(self.factor * float(self.path.lengths[self.path.holding(t)]), left)
        moved = start - self.path(np.array([t]))
        return Segment(t, h, start, self.path(t + h * self.path.nodes.c) + moved)
