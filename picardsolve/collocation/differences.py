"""Jacobians by differences: the rows to evaluate, and what they become."""

from dataclasses import dataclass

import numpy as np

_TYPICAL = 1e-3  # of a component's size at first, or of where its tolerances meet: the least size it is taken to have
_LEAST = 1e-290  # that is never divided by in vain


@dataclass
class Differences:
    """Forward differences, of the drift by the state or of the acceleration by the positions.

    Every component has a size of its own: components may have units of their own.

    Attributes:
        second_order: whether states are (positions, velocities).
        unit: unit roundoff of the drift; steps are its root, relative to a component's size around there.
        typical: ``(d,)`` least sizes.
    """

    second_order: bool
    unit: float
    typical: np.ndarray

    @staticmethod
    def of(second_order: bool, unit: float, rtol: np.ndarray, atol: np.ndarray) -> "Differences":
        """Before anything is known but the tolerances ``(d,)``, whose two kinds meet at a size."""
        return Differences(second_order, unit, np.maximum(_TYPICAL * atol / np.maximum(rtol, 1e-9), _LEAST))

    def begin(self, sizes: np.ndarray) -> None:
        """Learn the sizes of components ``(d,)`` along the first segment; 0 tells nothing."""
        self.typical = np.where(sizes > 0, np.maximum(_TYPICAL * sizes, _LEAST), self.typical)

    def units(self, states: np.ndarray) -> np.ndarray:
        """Powers of two of about the sizes of components around states ``(S, k, d)``, ``(S, d)``."""
        sizes = np.maximum(np.abs(states).max(1), self.typical)
        return np.exp2(np.round(np.log2(np.where(np.isfinite(sizes), sizes, 1.0))))

    def steps(self, states: np.ndarray) -> np.ndarray:
        """Of the differences at states ``(S, k, d)``, as the rounded sums have them, ``(S, k, size)``."""
        moved = states[..., : states.shape[-1] // 2] if self.second_order else states
        sizes = np.abs(moved)
        least = np.maximum(sizes.max(1, keepdims=True) * 0.1, self.typical[: moved.shape[-1]])
        return moved + self.unit**0.5 * np.maximum(sizes, least) - moved

    def rows(self, times: np.ndarray, states: np.ndarray, unmoved: bool) -> tuple[np.ndarray, np.ndarray]:
        """Rows at times ``(S, k)`` and states ``(S, k, d)``; ``unmoved``: with the states themselves among them."""
        steps, first = self.steps(states), int(unmoved)
        size = steps.shape[-1]
        at = np.arange(size)
        rows = np.repeat(states[:, :, None, :], size + first, 2)
        rows[:, :, at + first, at] += steps
        return np.repeat(times.ravel(), size + first), rows.reshape(-1, states.shape[-1])

    def jacobians(self, states: np.ndarray, drift: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
        """``(S, k, size, size)`` from the drifts at the rows, and at the states ``(S, k, d)`` if not among them."""
        steps = self.steps(states)
        count, points, size = steps.shape
        values = rows.reshape(count, points, -1, rows.shape[-1])
        if drift is None:
            drift, values = values[:, :, 0], values[:, :, 1:]
        which = slice(size, None) if self.second_order else slice(None)
        at = drift[:, :, None, which]
        rises = values[..., which] - at
        rises[np.abs(rises) <= self.unit * np.abs(at)] = 0  # a last digit tells nothing, and steps may be tiny
        return (rises / steps[..., None]).swapaxes(-1, -2)
