"""Jacobians by differences: the rows to evaluate, and what they become."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Differences:
    """Forward differences, of the drift by the state or of the acceleration by the positions.

    Attributes:
        second_order: whether states are (positions, velocities).
        unit: unit roundoff of the drift; steps are its root, relative to a component's size around there.
        typical: ``(d,)`` least sizes.
    """

    second_order: bool
    unit: float
    typical: np.ndarray

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
        slopes = (values[..., which] - drift[:, :, None, which]) / steps[..., None]
        return slopes.swapaxes(-1, -2)
