"""The linearised equations of segments: how their states answer to residuals and to a change of their starts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from picardsolve.collocation.arrays import Array, Arrays
from picardsolve.collocation.chains import Chains
from picardsolve.collocation.nodes import Nodes, nodes

_COARSE = 12  # nodes of a guess
_Stack = TypeVar("_Stack", bound="Linearization")


@dataclass
class Linearization(ABC):
    """The equations ``delta = residual + integral of J delta`` at the nodes of K segments.

    All fields but the first three are arrays with an entry for each segment, or None.

    Attributes:
        arrays: of the others.
        nodes: of the segments.
        second_order: whether states are (positions, velocities).
        h: ``(K,)`` lengths.
        end: ``(K, d, d)`` J at or near the end. For a second-order equation: the derivative of the acceleration with
            respect to the positions, ``(K, d/2, d/2)``.
        units: ``(K, d)`` of the components: without them a pivot would depend on the units of the user.
    """

    arrays: Arrays
    nodes: Nodes
    second_order: bool
    h: Array
    end: Array
    units: Array

    @abstractmethod
    def solve(self, residual: Array) -> Array:
        """``delta`` for residuals ``(K, n, d)``; NaN where there is none."""

    @abstractmethod
    def answer(self, residual: Array) -> tuple[Array, Array]:
        """`solve`, and the flow: the derivative of the end with respect to the start, ``(K, d, d)``."""

    @abstractmethod
    def through(self, chains: Chains, residual: Array, jumps: Array) -> tuple[Array, Array]:
        """Changes of the states ``(K, n, d)`` and of the starts ``(K, d)`` of segments one behind the other.

        From the first segment of a sample on that has no solution, changes are NaN.

        Args:
            chains: the order of the segments.
            residual: ``(K, n, d)``.
            jumps: ``(K, d)``: the end of each segment less the start of the next.
        """

    @abstractmethod
    def ahead(self, rows: np.ndarray, h: Array) -> "Linearization":
        """The equations with the Jacobian of the end of segments ``(P,)``, for segments of lengths h behind these."""

    @abstractmethod
    def led(self, fine: Nodes, drift: Array) -> Array:
        """Of equations that `ahead` made: how states at nodes change, from a drift ``(K, d)`` at the start on."""

    def at_end(self, change: Array) -> Array:
        """The change of the drift at the end for a change of the last state, ``(K, d)``."""
        if not self.second_order:
            return (self.end @ change[..., None])[..., 0]
        half = change.shape[-1] // 2
        pull = (self.end @ change[..., :half, None])[..., 0]
        return self.arrays.concat([change[..., half:], pull], 1)

    def each(self: _Stack, change: Callable[[Array], Array]) -> _Stack:
        """The same with all arrays changed."""
        return replace(self, **{name: change(getattr(self, name)) for name in self._stacked()})

    def take(self: _Stack, index: np.ndarray) -> _Stack:
        """Some of the segments; of neighbours no copy is made."""
        first, last = int(index[0]), int(index[-1]) + 1
        if last - first == len(index) and bool((index[1:] > index[:-1]).all()):
            return self.each(lambda array: array[first:last])
        return self.each(lambda array: self.arrays.take(array, index))

    def behind(self: _Stack, other: "Linearization") -> _Stack:
        """The segments of another, and these behind them."""
        names: Any = self._stacked()
        joined = {name: self.arrays.concat([getattr(other, name), getattr(self, name)]) for name in names}
        return replace(self, **joined)

    def _stacked(self) -> Sequence[str]:
        names = [each.name for each in fields(self)][3:]
        return [name for name in names if getattr(self, name) is not None]


@lru_cache
def coarse(fine: Nodes) -> tuple[Nodes, np.ndarray]:
    """Fewer nodes, and the interpolation to the fine ones of what is 0 at the start."""
    few = nodes(fine.kind, min(_COARSE, fine.n))
    return few, few.interpolate(fine.c)[:, -few.n :]
