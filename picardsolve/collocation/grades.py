"""How good each segment in flight is after a round."""

from dataclasses import dataclass

import numpy as np

from picardsolve.collocation.segments import Bounds, Flight
from picardsolve.collocation.sweeps import Swept

_FLOOR = 50.0  # units of rounding below which changes are noise
_NOISE = 5.0  # units of rounding that the last terms of a polynomial may be


@dataclass(frozen=True)
class Grades:
    """How good each segment in flight is.

    Attributes:
        change: the last change of its states, in tolerances.
        relative: the same relative to the states, all in tolerances.
        tail: the last terms of its polynomial, in tolerances or in floors, whichever are larger: what it leaves out.
        floor: what rounding may do, in tolerances.
    """

    change: list[float]
    relative: list[float]
    tail: list[float]
    floor: list[float]

    @staticmethod
    def of(flight: Flight, swept: Swept, drift: np.ndarray, bounds: Bounds) -> "Grades":
        """Of the states after a sweep, which `flight` holds."""
        nodes, states, terms = flight.nodes, flight.states, flight.nodes.last_terms
        ratios = np.empty((3, *flight.starts.shape))
        largest = np.abs(states).max(1)
        np.maximum(largest, np.abs(flight.starts), out=largest)
        change = np.abs(swept.change).max(1, out=ratios[0])
        if swept.doubt is not None:
            np.maximum(change, np.abs(swept.doubt).max(1), out=change)
        tail = terms[:, -nodes.n :] @ states
        if nodes.c[0] != 0:
            tail += terms[:, :1] * flight.starts[:, None]
        np.abs(tail).max(1, out=ratios[1])
        noise = np.abs(drift).max(1, out=ratios[2])
        noise *= flight.h[:, None]
        noise += largest
        noise *= _FLOOR * bounds.unit
        allowed = bounds.allowed(largest)
        ratios /= allowed
        ratios[1] -= _NOISE / _FLOOR * ratios[2]  # terms below the noise tell nothing
        ratios[1] /= np.maximum(ratios[2], 1)
        changes, tails, floors = ratios.max(2)
        relative = changes / ((largest / allowed).max(1) + 1)
        return Grades(changes.tolist(), relative.tolist(), tails.tolist(), floors.tolist())

    def known(self, i: int) -> bool:
        """Whether a segment has converged well enough for its tail to be the solution's."""
        return self.change[i] < max(0.1 * self.tail[i], 1.0) * max(1.0, self.floor[i])
