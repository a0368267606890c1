"""The linearised equations of a segment: how its states answer to residuals and to a change of its start."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg.lapack import dgetrf, dgetrs  # pyright: ignore[reportAttributeAccessIssue]

from picardsolve.collocation.nodes import Nodes, nodes

_COARSE = 12  # nodes of a guess


class Linearization(ABC):
    """The equations ``delta = residual + integral of J delta`` at the nodes of a segment.

    Attributes:
        nodes: of the segment.
        jacobian: J in the order of time, the last at or near the end, ``(k, d, d)``. For a second-order equation: the
            derivative of the acceleration with respect to the positions, ``(k, d/2, d/2)``.
        second_order: whether states are (positions, velocities).
        singular: whether they cannot be solved.
    """

    nodes: Nodes
    jacobian: np.ndarray
    second_order: bool
    singular: bool

    @abstractmethod
    def solve(self, residual: np.ndarray) -> np.ndarray:
        """``delta`` for residuals ``(n, d)``; NaN where there is none."""

    @abstractmethod
    def answer(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`solve`, and the flow: the derivative of the end with respect to the start, ``(d, d)``."""

    @abstractmethod
    def follow(self, h: float, drift: np.ndarray) -> np.ndarray:
        """The linearised flow beyond the end: its change since there at the nodes of a next segment, ``(n, d)``.

        Args:
            h: length of the next segment.
            drift: ``(d,)`` at the end.
        """

    def at_end(self, change: np.ndarray) -> np.ndarray:
        """The change of the drift at the end for a change of the last state, ``(d,)``."""
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
class DenseLinearization(Linearization):
    """J at every node and one LU factorisation of ``I - h A J``: as accurate as the nodes, also for stiff equations.

    For a second-order equation only the positions are unknown, and factorisation costs an eighth. The factors are of
    the equations in ``units`` ``(d,)`` of the components: without them a pivot would depend on the units of the user.
    """

    nodes: Nodes
    h: float
    jacobian: np.ndarray
    second_order: bool
    units: np.ndarray

    @staticmethod
    def of(
        nodes: Nodes, h: np.ndarray, jacobians: np.ndarray, second_order: bool, units: np.ndarray
    ) -> "list[DenseLinearization]":
        """For S segments of lengths ``(S,)``: Jacobians ``(S, n, size, size)`` and units ``(S, d)``."""
        parts = zip(h.tolist(), jacobians, units, strict=True)
        return [DenseLinearization(nodes, length, own, second_order, unit) for length, own, unit in parts]

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
        """``delta`` from the factors, for residuals ``(n, d)`` or several of them, ``(n, d, k)``."""
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
        units = np.tile(self.units[: right.shape[1]], len(right))[:, None]
        flat = right.reshape(len(units), -1) / units
        return (units * dgetrs(self._lu, self._pivots, flat, trans=1)[0]).reshape(right.shape)

    def answer(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both by one application of the factors."""
        n, d = residual.shape
        right = np.empty((n, d, 1 + d))
        right[..., 0], right[..., 1:] = residual, np.eye(d)
        answers = self.solve(right)
        return answers[..., 0], answers[-1, :, 1:]

    def follow(self, h: float, drift: np.ndarray) -> np.ndarray:
        """With the Jacobian of the end, on fewer nodes."""
        few, spread = _coarse(self.nodes)
        constant = np.broadcast_to(self.jacobian[-1], (few.n, *self.jacobian.shape[1:]))
        ahead = DenseLinearization(few, h, constant, self.second_order, self.units)
        return spread @ ahead.solve(h * few.c[:, None] * drift)


def solve_in_order(
    segments: Sequence[Linearization], residual: np.ndarray, jumps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Changes of the states ``(S, n, d)`` and of the starts ``(S, d)`` of segments one behind the other.

    From the first segment on that has no solution, changes are NaN.

    Args:
        segments: S of them.
        residual: ``(S, n, d)``.
        jumps: ``(S - 1, d)``: the end of each segment less the start of the next.
    """
    change, carried = np.full_like(residual, np.nan), np.zeros_like(residual[:, 0])
    for i, segment in enumerate(segments):
        if i:
            carried[i] = jumps[i - 1] + change[i - 1, -1]
        right = residual[i] + carried[i]
        if segment.singular or not np.isfinite(right).all():
            break
        change[i] = segment.solve(right)
    return change, carried
