"""Jacobians by differences: the rows to evaluate, and what they become."""

from dataclasses import dataclass

import numpy as np


@dataclass
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

    def rows(self, times: np.ndarray, states: np.ndarray, unmoved: bool) -> tuple[np.ndarray, np.ndarray]:
        """Rows at times ``(S, k)`` and states ``(S, k, d)``; ``unmoved``: with the states themselves among them."""
        d = states.shape[-1]
        size, first = d // 2 if self.second_order else d, int(unmoved)
        at = np.arange(size)
        moved = np.abs(states[..., :size])
        scale = np.maximum(moved, np.maximum(moved.max(1, keepdims=True) * 0.1, self.typical[:size]))
        rows = np.repeat(states[:, :, None, :], size + first, 2)
        rows[:, :, at + first, at] += self.unit**0.5 * scale
        self._steps = rows[:, :, at + first, at] - states[..., :size]  # what the sums have become, rounded
        return np.repeat(times.ravel(), size + first), rows.reshape(-1, d)

    def jacobians(self, drift: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
        """``(S, k, size, size)`` from the drifts at the rows, and at the states ``(S, k, d)`` if not among them."""
        count, points, size = self._steps.shape
        values = rows.reshape(count, points, -1, rows.shape[-1])
        if drift is None:
            drift, values = values[:, :, 0], values[:, :, 1:]
        which = slice(size, None) if self.second_order else slice(None)
        slopes = (values[..., which] - drift[:, :, None, which]) / self._steps[..., None]
        return slopes.swapaxes(-1, -2)
