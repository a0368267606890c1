"""The equations of a segment, linearised: how its states answer to residuals and to a change of its start.

All solve ``delta = residual + integral of J delta`` up to the nodes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg.lapack import dgetrf, dgetrs  # pyright: ignore[reportAttributeAccessIssue]

from picardsolve.collocation.nodes import Nodes, nodes

_COARSE = 12  # nodes of a guess


class Linear(ABC):
    """Linearised equations.

    Attributes:
        nodes: of the segment.
        jacobian: J in the order of time, the last at or near the end, ``(k, d, d)``; of a second-order equation that of
            the acceleration by the positions, ``(k, d/2, d/2)``.
        second_order: whether states are (positions, velocities).
        singular: whether they cannot be solved.
    """

    nodes: Nodes
    jacobian: np.ndarray
    second_order: bool
    singular: bool

    @abstractmethod
    def solve(self, residual: np.ndarray) -> np.ndarray:
        """The answer to residuals ``(n, d)``, or to several at once, ``(n, d, k)``; NaN where there is none."""

    @abstractmethod
    def followed(self, h: float, drift: np.ndarray) -> np.ndarray:
        """Where the flow that is linearised at the end goes from there in the nodes of a time h, ``(n, d)``.

        Args:
            h: length of the segment behind.
            drift: ``(d,)`` at the end.
        """

    @property
    def size(self) -> int:
        """Numbers in a state."""
        return self.jacobian.shape[1] * (2 if self.second_order else 1)

    @abstractmethod
    def answer(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`solve` of one residual, and the flow: the derivative of the end by the start, ``(d, d)``."""

    def at_end(self, change: np.ndarray) -> np.ndarray:
        """What a change of the last state, ``(d,)``, makes of its drift."""
        if not self.second_order:
            return self.jacobian[-1] @ change
        half = len(change) // 2
        return np.concatenate([change[half:], self.jacobian[-1] @ change[:half]])


@lru_cache
def _coarse(fine: Nodes) -> tuple[Nodes, np.ndarray]:
    """Fewer nodes, and the interpolation to the fine ones of what is 0 at the start."""
    few = nodes(fine.kind, _COARSE)
    return few, few.interpolate(fine.c)[:, -few.n :]


@dataclass
class Dense(Linear):
    """J at every node, one LU factorisation of ``I - h A J``: as good as the nodes, also for stiff equations.

    Of a second-order equation only positions are unknown, and the factors an eighth of the size. Factors are of the
    equations in units ``(d,)`` of the components, in which pivots are told apart.
    """

    nodes: Nodes
    h: float
    jacobian: np.ndarray
    second_order: bool
    units: np.ndarray

    @staticmethod
    def of(nodes: Nodes, h: np.ndarray, jacobians: np.ndarray, second_order: bool, units: np.ndarray) -> "list[Dense]":
        """Of S segments of lengths ``(S,)``, by Jacobians ``(S, n, size, size)`` and units ``(S, d)``."""
        parts = zip(h.tolist(), jacobians, units, strict=True)
        return [Dense(nodes, length, own, second_order, unit) for length, own, unit in parts]

    def __post_init__(self):
        n, size, _ = self.jacobian.shape
        block = -(self.h**2) * self.nodes.twice if self.second_order else -self.h * self.nodes.integrate
        own = self.units[:size]
        scaled = self.jacobian * (own / own[:, None])
        matrix = (block[:, None, :, None] * scaled.transpose(1, 0, 2)).reshape(n * size, n * size)
        matrix.flat[:: n * size + 1] += 1
        self.singular = not np.isfinite(matrix).all()
        if not self.singular:
            self._lu, self._pivots, info = dgetrf(matrix.T, overwrite_a=1)
            self.singular = info != 0

    def solve(self, residual: np.ndarray) -> np.ndarray:
        """By the factors."""
        if self.singular:
            return np.full_like(residual, np.nan)
        if not self.second_order:
            return self._back(residual)
        half, integrate = self.jacobian.shape[1], self.h * self.nodes.integrate
        velocities = residual[:, half:]
        positions = self._back(residual[:, :half] + np.tensordot(integrate, velocities, 1))
        pull = np.einsum("nab,nb...->na...", self.jacobian, positions)
        return np.concatenate([positions, velocities + np.tensordot(integrate, pull, 1)], 1)

    def answer(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both by one application of the factors."""
        n, d = residual.shape
        right = np.empty((n, d, 1 + d))
        right[..., 0], right[..., 1:] = residual, np.eye(d)
        answers = self.solve(right)
        return answers[..., 0], answers[-1, :, 1:]

    def _back(self, right: np.ndarray) -> np.ndarray:
        units = np.tile(self.units[: right.shape[1]], len(right))[:, None]
        flat = right.reshape(len(units), -1) / units
        return (units * dgetrs(self._lu, self._pivots, flat, trans=1)[0]).reshape(right.shape)

    def followed(self, h: float, drift: np.ndarray) -> np.ndarray:
        """On fewer nodes."""
        few, spread = _coarse(self.nodes)
        held = np.broadcast_to(self.jacobian[-1], (few.n, *self.jacobian.shape[1:]))
        ahead = Dense(few, h, held, self.second_order, self.units)
        return spread @ ahead.solve(h * few.c[:, None] * drift)
