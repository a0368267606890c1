"""How good the segments in flight are after a round."""

from dataclasses import dataclass

import numpy as np

from picardsolve.collocation.arrays import Array
from picardsolve.collocation.flight import Correction, Flight
from picardsolve.collocation.initial_value import Limits
from picardsolve.collocation.nodes import Nodes

_FLOOR = 50.0  # units of rounding: smaller changes are noise
_NOISE = 5.0  # units of rounding that the last terms of a polynomial may be


def corrected(flight: Flight, nodes: Nodes, limits: Limits, correction: Correction, drift: Array) -> Array:
    """Add a correction to the states; how good they are then, ``(4, K)``: the numbers of `Quality`.

    Args:
        flight: with the states before; takes those after.
        nodes: of the segments.
        limits: of the march.
        correction: what a sweep made of the drift.
        drift: ``(K, n, d)`` at the nodes before.
    """
    arrays = limits.problem.arrays
    states, starts = flight.states + correction.states, flight.starts + correction.starts
    flight.states, flight.starts = states, starts
    flight.age = flight.age + 1
    largest = arrays.larger(arrays.peak(states), arrays.size(starts))
    allowed = limits.allowed(largest, flight.sample)
    change = arrays.peak(correction.states)
    if correction.undamped is not None:
        change = arrays.larger(change, arrays.peak(correction.undamped))
    terms = arrays.constant(nodes.last_terms)
    tail = terms[:, -nodes.n :] @ states
    if nodes.c[0] != 0:
        tail = tail + terms[:, :1] * starts[:, None]
    noise = arrays.peak(drift) * arrays.array(flight.h)[:, None] + largest
    floor = noise * (_FLOOR * limits.problem.unit) / allowed
    # terms below the noise tell nothing
    tail = (arrays.peak(tail) / allowed - _NOISE / _FLOOR * floor) / arrays.larger(floor, 1.0)
    four = arrays.concat([part[None] for part in (change / allowed, tail, floor, largest / allowed)])
    return arrays.largest(four)


@dataclass(frozen=True)
class Quality:
    """How good each segment in flight is after a round, ``(K,)`` each.

    Attributes:
        change: the last change of its states, in tolerances.
        tail: the last terms of its polynomial, in tolerances or in floors, whichever are larger. They estimate the
            terms that the polynomial leaves out.
        floor: what rounding may do, in tolerances.
        largest: the states, in tolerances.
    """

    change: np.ndarray
    tail: np.ndarray
    floor: np.ndarray
    largest: np.ndarray

    @property
    def tail_is_known(self) -> np.ndarray:
        """Whether a segment has converged so far that its tail is the solution's."""
        return self.change < np.fmax(0.1 * self.tail, 1.0) * np.fmax(1.0, self.floor)
