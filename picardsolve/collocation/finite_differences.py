"""Jacobians by finite differences: the rows to evaluate, and the Jacobians from their values."""

from functools import lru_cache

import numpy as np

from picardsolve.collocation.arrays import Array
from picardsolve.collocation.initial_value import InitialValueProblem

_TYPICAL = 1e-3  # the least size that a component is taken to have, relative to its usual size
_LEAST = 1e-290  # sizes are at least this, to be divided by


class Differences:
    """Forward differences of the drift with respect to the state, or of the acceleration with respect to the positions.

    Each component has a size of its own, because components may have units of their own. A step is the square root of
    the unit roundoff times that.

    Attributes:
        problem: whose drift it is.
        typical: ``(B, d)`` least sizes of the components. Before the first segment a component's usual size is where
            ``atol`` is ``rtol`` times it.
    """

    def __init__(self, problem: InitialValueProblem):
        self.problem, self.arrays, self.second_order = problem, problem.arrays, problem.second_order
        least = _TYPICAL * problem.atol / self.arrays.larger(problem.rtol, 1e-9)
        self.typical = self.arrays.zeros(problem.samples, problem.numbers) + self.arrays.larger(least, _LEAST)

    def begin(self, sample: np.ndarray, sizes: Array) -> None:
        """Take the sizes of components ``(k, d)`` along first segments as usual; a size of 0 is not taken."""
        before = self.arrays.take(self.typical, sample)
        now = self.arrays.where(sizes > 0, self.arrays.larger(_TYPICAL * sizes, _LEAST), before)
        self.typical = self.arrays.put(self.typical, sample, now)

    def units(self, states: Array, sample: np.ndarray) -> Array:
        """Powers of two near the sizes of components around states ``(S, k, d)``: ``(S, d)``."""
        sizes = self.arrays.larger(self.arrays.peak(states), self.arrays.take(self.typical, sample))
        return self.arrays.binary(sizes)

    def _steps(self, states: Array, sample: np.ndarray) -> Array:
        """Steps of the differences at states ``(S, k, d)``, as they are after rounding: ``(S, k, size)``."""
        arrays, size = self.arrays, self.problem.unknowns
        moved = states[..., :size]
        least = arrays.larger(arrays.peak(moved) * 0.1, arrays.take(self.typical, sample)[:, :size])
        return moved + self.problem.unit**0.5 * arrays.larger(arrays.size(moved), least[:, None]) - moved

    def rows(self, states: Array, sample: np.ndarray, unmoved: bool) -> tuple[Array, Array]:
        """The states to evaluate, ``(S k moves, d)``, and the steps ``(S, k, size)``; see `moves`.

        Args:
            states: ``(S, k, d)`` where Jacobians are wanted.
            sample: ``(S,)``.
            unmoved: whether the states themselves are to be among the rows.
        """
        steps, (count, points, d) = self._steps(states, sample), states.shape
        which = self.arrays.constant(_moved(self.problem.unknowns, d, unmoved))
        wide = steps
        if self.second_order:
            wide = self.arrays.concat([steps, self.arrays.zeros(count, points, d - steps.shape[-1])], 2)
        return (states[:, :, None] + wide[:, :, None] * which).reshape(-1, d), steps

    def moves(self, unmoved: bool) -> int:
        """How many rows a state has."""
        return self.problem.unknowns + unmoved

    def jacobians(self, steps: Array, drift: Array | None, rows: Array) -> Array:
        """The Jacobians ``(S, k, size, size)``.

        Args:
            steps: that `rows` returned.
            drift: at the states, ``(S, k, d)``; None: it is among the rows.
            rows: the drift at the rows.
        """
        arrays, (count, points, size) = self.arrays, steps.shape
        values = rows.reshape(count, points, -1, rows.shape[-1])
        which = slice(size, None) if self.second_order else slice(None)
        if drift is None:
            at, values = values[:, :, :1, which], values[:, :, 1:]
        else:
            at = drift[:, :, None, which]
        rises = values[..., which] - at
        rounding = arrays.size(rises) <= self.problem.unit * arrays.size(at)  # a change of the last digit
        return (arrays.where(rounding, 0.0, rises) / steps[..., None]).swapaxes(-1, -2)


@lru_cache
def _moved(size: int, d: int, unmoved: bool) -> np.ndarray:
    """Which component each row moves, ``(moves, d)``."""
    return np.eye(size + unmoved, d + unmoved)[:, int(unmoved) :]
