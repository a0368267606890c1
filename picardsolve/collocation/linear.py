"""The equations of a segment, linearised: how its states answer to residuals and to a change of its start."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dgetrf, dgetrs  # pyright: ignore[reportAttributeAccessIssue]

from picardsolve.collocation.nodes import Nodes


@dataclass
class Linearised:
    """``delta = residual + h A (J delta)``, where A integrates; one LU factorisation.

    Attributes:
        nodes: of the segment.
        h: its length.
        jacobian: J at every node, ``(n, d, d)``; of a second-order equation that of the acceleration by the positions,
            ``(n, d/2, d/2)``: only positions are unknown then, and the factors an eighth of the size.
        second_order: whether states are (positions, velocities).
    """

    nodes: Nodes
    h: float
    jacobian: np.ndarray
    second_order: bool
    _response: np.ndarray | None = None

    def __post_init__(self):
        n, size, _ = self.jacobian.shape
        block = -(self.h**2) * self.nodes.twice if self.second_order else -self.h * self.nodes.integrate
        matrix = (block[:, None, :, None] * self.jacobian.transpose(1, 0, 2)).reshape(n * size, n * size)
        matrix.flat[:: n * size + 1] += 1
        self.singular = not np.isfinite(matrix).all()
        if not self.singular:
            self._lu, self._pivots, info = dgetrf(matrix.T, overwrite_a=1)
            self.singular = info != 0

    def solve(self, residual: np.ndarray) -> np.ndarray:
        """The answer to residuals ``(n, d)``, or to several at once, ``(n, d, k)``; NaN where there is none."""
        if self.singular:
            return np.full_like(residual, np.nan)
        if not self.second_order:
            return self._back(residual)
        half, integrate = self.jacobian.shape[1], self.h * self.nodes.integrate
        velocities = residual[:, half:]
        positions = self._back(residual[:, :half] + np.tensordot(integrate, velocities, 1))
        pull = np.einsum("nab,nb...->na...", self.jacobian, positions)
        return np.concatenate([positions, velocities + np.tensordot(integrate, pull, 1)], 1)

    def _back(self, right: np.ndarray) -> np.ndarray:
        flat = right.reshape(len(self._pivots), -1)
        return dgetrs(self._lu, self._pivots, flat, trans=1)[0].reshape(right.shape)

    @property
    def flow(self) -> np.ndarray:
        """``(d, d)``: the derivative of the end by the start."""
        size = self.jacobian.shape[1] * (2 if self.second_order else 1)
        return self.solve(np.broadcast_to(np.eye(size), (self.nodes.n, size, size)))[-1]
