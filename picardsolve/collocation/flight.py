"""All segments of one round side by side: their states, what a sweep adds to them, and how good they are then."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from picardsolve.collocation.initial_value import Limits
from picardsolve.collocation.nodes import Nodes
from picardsolve.collocation.segments import Segment

_FLOOR = 50.0  # units of rounding: smaller changes are noise
_NOISE = 5.0  # units of rounding that the last terms of a polynomial may be


@dataclass(frozen=True)
class Correction:
    """What a sweep adds to the states of the segments in flight.

    Attributes:
        states: ``(S, n, d)`` what is added to the states at the nodes.
        starts: ``(S, d)`` what is added to the starts.
        undamped: ``(S, n, d)`` the same without the damping of a secant, where that may be more; None: not damped.
    """

    states: np.ndarray
    starts: np.ndarray
    undamped: np.ndarray | None = None


@dataclass
class Flight:
    """The segments of one round side by side.

    Attributes:
        segments: S of them; each begins where the one before ends.
        nodes: of every segment.
        limits: of the march.
    """

    segments: Sequence[Segment]
    nodes: Nodes
    limits: Limits

    def __post_init__(self):
        self.h = np.array([segment.h for segment in self.segments])
        begin = np.array([segment.t for segment in self.segments])
        self.times = begin[:, None] + self.h[:, None] * self.nodes.c
        self.states = np.array([segment.states for segment in self.segments])
        self.starts = np.array([segment.start for segment in self.segments])

    @cached_property
    def allowed(self) -> np.ndarray:
        """Allowed error of the components, ``(S, d)``."""
        return self.limits.allowed(np.maximum(np.abs(self.states).max(1), np.abs(self.starts)))

    @cached_property
    def jumps(self) -> np.ndarray:
        """``(S - 1, d)``: the end of each segment less the start of the next."""
        return self.states[:-1, -1] - self.starts[1:]

    def residuals(self, drift: np.ndarray) -> np.ndarray:
        """``start + h A F - X``, ``(S, n, d)``."""
        out = self.nodes.integrate @ drift
        out *= self.h[:, None, None]
        out += self.starts[:, None]
        out -= self.states
        return out

    def corrected(self, correction: Correction, drift: np.ndarray) -> "Quality":
        """Add a correction, to the segments too; how good they are then.

        Args:
            correction: what a sweep made of the drift.
            drift: ``(S, n, d)`` at the nodes before.
        """
        self.states, self.starts = self.states + correction.states, self.starts + correction.starts
        for i, segment in enumerate(self.segments):
            segment.states, segment.start = self.states[i], self.starts[i]
            segment.age += 1
        nodes, states, terms = self.nodes, self.states, self.nodes.last_terms
        ratios = np.empty((3, *self.starts.shape))  # change, tail and floor in tolerances of each component
        largest = np.abs(states).max(1)
        np.maximum(largest, np.abs(self.starts), out=largest)
        change = np.abs(correction.states).max(1, out=ratios[0])
        if correction.undamped is not None:
            np.maximum(change, np.abs(correction.undamped).max(1), out=change)
        tail = terms[:, -nodes.n :] @ states
        if nodes.c[0] != 0:
            tail += terms[:, :1] * self.starts[:, None]
        np.abs(tail).max(1, out=ratios[1])
        noise = np.abs(drift).max(1, out=ratios[2])
        noise *= self.h[:, None]
        noise += largest
        noise *= _FLOOR * self.limits.unit
        allowed = self.limits.allowed(largest)
        ratios /= allowed
        ratios[1] -= _NOISE / _FLOOR * ratios[2]  # terms below the noise tell nothing
        ratios[1] /= np.maximum(ratios[2], 1)
        changes, tails, floors = ratios.max(2)
        relative = changes / ((largest / allowed).max(1) + 1)
        return Quality(changes.tolist(), relative.tolist(), tails.tolist(), floors.tolist())


@dataclass(frozen=True)
class Quality:
    """How good each segment in flight is after a round.

    Attributes:
        change: the last change of its states, in tolerances.
        relative: the last change divided by the states, both in tolerances.
        tail: the last terms of its polynomial, in tolerances or in floors, whichever are larger. They estimate the
            terms that the polynomial leaves out.
        floor: what rounding may do, in tolerances.
    """

    change: list[float]
    relative: list[float]
    tail: list[float]
    floor: list[float]

    def tail_is_known(self, i: int) -> bool:
        """Whether segment i has converged so far that its tail is the solution's."""
        return self.change[i] < max(0.1 * self.tail[i], 1.0) * max(1.0, self.floor[i])
