"""The linearised equations of segments with the Jacobian at every node, by LU factorisation."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from picardsolve.collocation.arrays import Array, Arrays
from picardsolve.collocation.chains import Chains
from picardsolve.collocation.linearization import Linearization, coarse
from picardsolve.collocation.nodes import Nodes


@dataclass
class DenseLinearization(Linearization):
    """J at every node and one LU factorisation of ``I - h A J``: as accurate as the nodes, also for stiff equations.

    For a second-order equation only the positions are unknown, and factorisation costs an eighth. The factors are of
    the equations in `units`.

    Attributes:
        jacobian: ``(K, n, d/2, d/2)`` for a second-order equation; else None.
        factors: ``(K, N, N)`` of the N unknowns of a segment.
        pivots: ``(K, N)``.
        known: ``(K,)`` 1, or NaN where there are no factors.
        response: ``(K, n, d, d)`` derivative of the states with respect to the start; None where it is not needed.
    """

    jacobian: Array | None
    factors: Array
    pivots: Array
    known: Array
    response: Array | None = None

    @staticmethod
    def of(
        arrays: Arrays, nodes: Nodes, h: Array, jacobians: Array, second_order: bool, units: Array
    ) -> "DenseLinearization":
        """For K segments of lengths ``(K,)``: Jacobians ``(K, n, size, size)`` and units ``(K, d)``."""
        made = DenseLinearization._factorized(arrays, nodes, h, jacobians, second_order, units)
        count, d = units.shape
        identity = arrays.constant(_identity(nodes.n, d)) + arrays.zeros(count, 1, 1, 1)
        made.response = made._solved(identity)
        return made

    @staticmethod
    def _factorized(
        arrays: Arrays, nodes: Nodes, h: Array, jacobians: Array, second_order: bool, units: Array
    ) -> "DenseLinearization":
        count, n, size, _ = jacobians.shape
        block = -arrays.constant(nodes.twice if second_order else nodes.integrate) * _over(h, 3)
        if second_order:
            block = block * _over(h, 3)
        own = units[:, :size]
        scaled = jacobians * (own[:, None, None] / own[:, None, :, None])
        matrix = block[:, :, None, :, None] * scaled.swapaxes(1, 2)[:, None]
        matrix = matrix.reshape(count, n * size, n * size)
        matrix.reshape(count, -1)[:, :: n * size + 1] += 1
        parts = arrays.factors(matrix)
        jacobian = jacobians if second_order else None
        return DenseLinearization(arrays, nodes, second_order, h, jacobians[:, -1], units, jacobian, *parts)

    def solve(self, residual: Array) -> Array:
        """``delta`` from the factors."""
        return self._solved(residual[..., None])[..., 0]

    def _solved(self, residual: Array) -> Array:
        """The same for several residuals, ``(K, n, d, k)``."""
        if self.jacobian is None:
            return self._back(residual)
        half = self.jacobian.shape[-1]
        velocities = residual[:, :, half:]
        positions = self._back(residual[:, :, :half] + self._integral(velocities))
        pull = self.jacobian @ positions
        return self.arrays.concat([positions, velocities + self._integral(pull)], 2)

    def _integral(self, values: Array) -> Array:
        """From the start to each node."""
        flat = values.reshape(*values.shape[:2], -1)
        matrix = self.arrays.constant(self.nodes.integrate)
        return (_over(self.h, 3) * (matrix @ flat)).reshape(values.shape)

    def _back(self, right: Array) -> Array:
        units = self.units[:, None, : right.shape[2], None]
        flat = (right / units).reshape(len(right), self.factors.shape[1], -1)
        answer = self.arrays.back(self.factors, self.pivots, flat) * _over(self.known, 3)
        return units * answer.reshape(right.shape)

    def answer(self, residual: Array) -> tuple[Array, Array]:
        """The flow is the end of the response."""
        assert self.response is not None
        return self.solve(residual), self.response[:, -1]

    def through(self, chains: Chains, residual: Array, jumps: Array) -> tuple[Array, Array]:
        """All segments by themselves; then what the ends do to the next starts; then the answers to that."""
        free, response = self.solve(residual), self.response
        assert response is not None
        carried = chains.carried(self.arrays, jumps + free[:, -1], response[:, -1])
        if len(chains.counts) == len(free):
            return free, carried
        count, n, d = free.shape
        moved = response.reshape(count, n * d, d) @ carried[..., None]
        return free + moved.reshape(count, n, d), carried

    def ahead(self, rows: np.ndarray, h: Array) -> "DenseLinearization":
        """On fewer nodes."""
        few, _ = coarse(self.nodes)
        end, units = self.arrays.take(self.end, rows), self.arrays.take(self.units, rows)
        constant = end[:, None] + self.arrays.zeros(1, few.n, 1, 1)
        return self._factorized(self.arrays, few, h, constant, self.second_order, units)

    def led(self, fine: Nodes, drift: Array) -> Array:
        """On the few nodes, and from these to the fine ones."""
        places = self.arrays.constant(self.nodes.c)[:, None]
        return self.arrays.constant(coarse(fine)[1]) @ self.solve(_over(self.h, 3) * places * drift[:, None])


def _over(values: Array, dimensions: int) -> Array:
    """Values ``(K,)`` to be multiplied by arrays of so many dimensions."""
    return values.reshape(-1, *[1] * (dimensions - 1))


@lru_cache
def _identity(n: int, d: int) -> np.ndarray:
    """``(1, n, d, d)``: at every node."""
    return np.broadcast_to(np.eye(d), (1, n, d, d)).copy()
