"""A stretch of time with the iterate of the solution on it, and the round's view of all that are in flight."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from picardsolve.collocation.linear import Linear
from picardsolve.collocation.nodes import Nodes

_LEAST = 1e-290  # error that is allowed where the tolerance is 0, as it is of what stays 0 without an absolute one


@dataclass(frozen=True)
class Bounds:
    """What a march may do.

    Components have units of their own: whatever is compared or added up over them is divided by `allowed` before.

    Attributes:
        rtol, atol: tolerance of a segment, ``(d,)`` each or numbers; relative to the largest value of each component.
        unit: unit roundoff of the drift.
        in_flight: most segments at once.
        longest: most time in a segment.
        first: length of the first segment; None: chosen.
    """

    rtol: np.ndarray | float
    atol: np.ndarray | float
    unit: float
    in_flight: int
    longest: float = np.inf
    first: float | None = None

    def allowed(self, largest: np.ndarray) -> np.ndarray:
        """Error that is allowed of components whose largest values are given, ``(..., d)``."""
        return np.maximum(self.atol + self.rtol * largest, _LEAST)


def fitted(length: float, left: float) -> float:
    """A length at most as wanted, of which as much as is left does not leave a stub."""
    return length if left > 2 * length else left / 2 if left > length else left


@dataclass
class Segment:
    """One segment; time is counted from the start of the solve, in its direction.

    Attributes:
        t: where it begins.
        h: how long it is.
        start: ``(d,)`` the state there.
        states: ``(n, d)`` at the nodes.
        drift: ``(n, d)`` at the states of the round before.
        moved: ``(n, d)`` the last change of the states.
        change: its size in tolerances.
        age: rounds that it has been through.
        slope: of the drift along the last change, a number.
        linear: the linearised equations, of Newton.
        stale: whether they are to be made anew in the next round.
        end_drift: ``(d,)`` the drift at the end as far as it is known.
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
    linear: Linear | None = None
    stale: bool = True
    end_drift: np.ndarray | None = None

    @property
    def end(self) -> float:
        """Where it ends."""
        return self.t + self.h

    def values(self, nodes: Nodes) -> np.ndarray:
        """At the points that its polynomial goes through, ``(points, d)``."""
        return self.states if nodes.c[0] == 0 else np.concatenate([self.start[None], self.states])

    def split(self, nodes: Nodes, part: float) -> "tuple[Segment, Segment]":
        """Two segments with the same iterate, the first a ``part`` of this one."""
        values, cut = self.values(nodes), part * self.h
        first = nodes.interpolate(part * nodes.c) @ values
        second = nodes.interpolate(part + (1 - part) * nodes.c) @ values
        return Segment(self.t, cut, self.start, first), Segment(self.t + cut, self.h - cut, first[-1], second)

    def restarted(self, part: float) -> "Segment":
        """The first ``part`` of it, from a constant."""
        return Segment(self.t, part * self.h, self.start, np.tile(self.start, (len(self.states), 1)))


@dataclass
class Flight:
    """The segments of one round side by side.

    Attributes:
        segments: S of them, each beginning where the one before ends.
        nodes: of every one.
        bounds: of the march.
    """

    segments: list[Segment]
    nodes: Nodes
    bounds: Bounds

    def __post_init__(self):
        self.h = np.array([segment.h for segment in self.segments])
        begin = np.array([segment.t for segment in self.segments])
        self.times = begin[:, None] + self.h[:, None] * self.nodes.c
        self.states = np.array([segment.states for segment in self.segments])
        self.starts = np.array([segment.start for segment in self.segments])

    @cached_property
    def allowed(self) -> np.ndarray:
        """Error that is allowed of components, ``(S, d)``."""
        return self.bounds.allowed(np.maximum(np.abs(self.states).max(1), np.abs(self.starts)))

    @cached_property
    def jumps(self) -> np.ndarray:
        """``(S - 1, d)``: from the start of a segment to the end of the one before."""
        return self.states[:-1, -1] - self.starts[1:]

    def residuals(self, drift: np.ndarray) -> np.ndarray:
        """``start + h A F - X``, ``(S, n, d)``."""
        out = self.nodes.integrate @ drift
        out *= self.h[:, None, None]
        out += self.starts[:, None]
        out -= self.states
        return out
