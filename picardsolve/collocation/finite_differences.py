"""Jacobians by finite differences: the rows to evaluate, and the Jacobians from their values."""

from dataclasses import dataclass

import numpy as np

_TYPICAL = 1e-3  # the least size that a component is taken to have, relative to its usual size
_LEAST = 1e-290  # sizes are at least this, to be divided by


@dataclass
class Differences:
    """Forward differences of the drift with respect to the state, or of the acceleration with respect to the positions.

    Each component has a size of its own, because components may have units of their own.

    Attributes:
        second_order: whether states are (positions, velocities).
        unit: unit roundoff of the drift; a step is its square root times the size of the component.
        typical: ``(d,)`` least sizes of the components.
    """

    second_order: bool
    unit: float
    typical: np.ndarray

    @staticmethod
    def of(second_order: bool, unit: float, rtol: np.ndarray, atol: np.ndarray) -> "Differences":
        """Before the first segment: a component's usual size is where ``atol`` is ``rtol`` times it, ``(d,)`` each."""
        return Differences(second_order, unit, np.maximum(_TYPICAL * atol / np.maximum(rtol, 1e-9), _LEAST))

    def begin(self, sizes: np.ndarray) -> None:
        """Take the sizes of components ``(d,)`` along the first segment as usual; a size of 0 is not taken."""
        self.typical = np.where(sizes > 0, np.maximum(_TYPICAL * sizes, _LEAST), self.typical)

    def units(self, states: np.ndarray) -> np.ndarray:
        """Powers of two near the sizes of components around states ``(S, k, d)``: ``(S, d)``."""
        sizes = np.maximum(np.abs(states).max(1), self.typical)
        return np.exp2(np.round(np.log2(np.where(np.isfinite(sizes), sizes, 1.0))))

    def steps(self, states: np.ndarray) -> np.ndarray:
        """Steps of the differences at states ``(S, k, d)``, as they are after rounding: ``(S, k, size)``."""
        moved = states[..., : states.shape[-1] // 2] if self.second_order else states
        sizes = np.abs(moved)
        least = np.maximum(sizes.max(1, keepdims=True) * 0.1, self.typical[: moved.shape[-1]])
        return moved + self.unit**0.5 * np.maximum(sizes, least) - moved

    def rows(self, times: np.ndarray, states: np.ndarray, unmoved: bool) -> tuple[np.ndarray, np.ndarray]:
        """The rows to evaluate at times ``(S, k)`` and states ``(S, k, d)``.

        Args:
            times: of the states.
            states: where Jacobians are wanted.
            unmoved: whether the states themselves are to be among the rows.
        """
        steps, first = self.steps(states), int(unmoved)
        size = steps.shape[-1]
        at = np.arange(size)
        rows = np.repeat(states[:, :, None, :], size + first, 2)
        rows[:, :, at + first, at] += steps
        return np.repeat(times.ravel(), size + first), rows.reshape(-1, states.shape[-1])

    def jacobians(self, states: np.ndarray, drift: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
        """The Jacobians ``(S, k, size, size)``.

        Args:
            states: ``(S, k, d)``.
            drift: at the states, ``(S, k, d)``; None: it is among the rows.
            rows: the drift at the rows.
        """
        steps = self.steps(states)
        count, points, size = steps.shape
        values = rows.reshape(count, points, -1, rows.shape[-1])
        if drift is None:
            drift, values = values[:, :, 0], values[:, :, 1:]
        which = slice(size, None) if self.second_order else slice(None)
        at = drift[:, :, None, which]
        rises = values[..., which] - at
        rises[np.abs(rises) <= self.unit * np.abs(at)] = 0  # a change of the last digit is rounding
        return (rises / steps[..., None]).swapaxes(-1, -2)
