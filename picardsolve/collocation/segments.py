"""A segment: a stretch of time with the iterate of the solution on it."""

from dataclasses import dataclass

import numpy as np

from picardsolve.collocation.linearization import Linearization
from picardsolve.collocation.nodes import Nodes


def fitted(length: float, left: float) -> float:
    """A length of at most ``length``: what is left after it is nothing, or not much shorter than it."""
    return length if left > 2 * length else left / 2 if left > length else left


@dataclass
class Segment:
    """One segment in flight.

    Attributes:
        t: elapsed time at its begin.
        h: its length.
        start: ``(d,)`` the state at its begin.
        states: ``(n, d)`` at the nodes.
        drift: ``(n, d)`` at the nodes, in the round before.
        moved: ``(n, d)`` the last change of the states.
        change: the size of the last change, in tolerances.
        age: rounds since it was made.
        slope: of the drift along the last change, a number.
        linear: the linearised equations, for Newton's method.
        stale: whether the next round linearises again.
        end_drift: ``(d,)`` the drift at the end, as far as it is known.
    """

    t: float
    h: float
    start: np.ndarray
    states: np.ndarray
    drift: np.ndarray | None = None
    moved: np.ndarray | None = None
    change: float = np.inf
    age: int = 0
    slope: float = 0.0
    linear: Linearization | None = None
    stale: bool = True
    end_drift: np.ndarray | None = None

    @property
    def end(self) -> float:
        """Elapsed time at its end."""
        return self.t + self.h

    def values(self, nodes: Nodes) -> np.ndarray:
        """At the points that its polynomial goes through, ``(points, d)``."""
        return self.states if nodes.c[0] == 0 else np.concatenate([self.start[None], self.states])

    def split(self, nodes: Nodes, part: float) -> "tuple[Segment, Segment]":
        """Two segments with the same iterate; the first is ``part`` of this one."""
        values, cut = self.values(nodes), part * self.h
        first = nodes.interpolate(part * nodes.c) @ values
        second = nodes.interpolate(part + (1 - part) * nodes.c) @ values
        return Segment(self.t, cut, self.start, first), Segment(self.t + cut, self.h - cut, first[-1], second)

    def restarted(self, part: float) -> "Segment":
        """The first ``part`` of it, with constant states."""
        return Segment(self.t, part * self.h, self.start, np.tile(self.start, (len(self.states), 1)))
