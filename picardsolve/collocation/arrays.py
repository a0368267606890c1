"""The few operations on states that a march needs, for NumPy on a host and for torch on a device."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
from torch import Tensor

Array: TypeAlias = Any  # of NumPy or of torch, as `Arrays` makes them; operators, slices and reshape are the same


class Arrays(ABC):
    """Where states live. Decisions are made on the host, by arrays of NumPy that `fetch` returns.

    An index is an array of NumPy on the host.

    Attributes:
        flops: of the algebra of small matrices, a second.
    """

    flops: ClassVar[float]

    @abstractmethod
    def array(self, host: np.ndarray) -> Array:
        """The array of an array of NumPy."""

    @abstractmethod
    def constant(self, host: np.ndarray) -> Array:
        """The same, of an array that lives as long as the process; copied once."""

    @abstractmethod
    def of_tensor(self, tensor: Tensor) -> Array:
        """The array of a tensor, in double precision."""

    @abstractmethod
    def tensor(self, array: Array) -> Tensor:
        """An array as a tensor, which may share its memory."""

    @abstractmethod
    def fetch(self, *arrays: Array) -> list[np.ndarray]:
        """Several arrays on the host, after one wait."""

    @abstractmethod
    def take(self, array: Array, index: np.ndarray) -> Array:
        """Entries of the first dimension."""

    @abstractmethod
    def put(self, array: Array, index: np.ndarray, entries: Array) -> Array:
        """A copy with other entries in the first dimension."""

    @abstractmethod
    def concat(self, parts: Sequence[Array], axis: int = 0) -> Array:
        """Arrays one behind the other."""

    @abstractmethod
    def zeros(self, *shape: int) -> Array:
        """Zeros."""

    @abstractmethod
    def where(self, condition: Array, yes: Array, no: Array | float) -> Array:
        """Entries of one or the other."""

    @abstractmethod
    def larger(self, one: Array, other: Array | float) -> Array:
        """The larger of two."""

    @abstractmethod
    def size(self, array: Array) -> Array:
        """Absolute values."""

    @abstractmethod
    def peak(self, array: Array) -> Array:
        """The largest absolute values along the second dimension, ``(K, n, d)`` to ``(K, d)``."""

    @abstractmethod
    def largest(self, array: Array) -> Array:
        """The largest entries along the last dimension."""

    @abstractmethod
    def finite(self, array: Array) -> Array:
        """Whether all entries along the last dimension are finite."""

    @abstractmethod
    def root(self, array: Array) -> Array:
        """Square roots."""

    @abstractmethod
    def clip(self, array: Array, least: Array, most: Array) -> Array:
        """Entries within limits."""

    @abstractmethod
    def binary(self, sizes: Array) -> Array:
        """Powers of two near sizes; 1 for what is not finite."""

    @abstractmethod
    def may_be(self, condition: Array) -> np.ndarray:
        """Where a condition ``(K,)`` may hold: an index that has all such places. It does not wait for a device."""

    @abstractmethod
    def solve(self, matrix: Array, right: Array) -> Array:
        """Solutions of linear equations, ``(K, n, n)`` and ``(K, n, k)``."""

    @abstractmethod
    def inverse(self, matrix: Array) -> Array:
        """Inverses of ``(K, ..., n, n)``; NaN for each of K where a matrix is not finite or has none."""

    @abstractmethod
    def factors(self, matrix: Array) -> tuple[Array, Array, Array]:
        """LU factors of ``(K, n, n)``, pivots, and whether there are any: 1 or NaN, ``(K,)``."""

    @abstractmethod
    def back(self, factors: Array, pivots: Array, right: Array) -> Array:
        """Solutions by LU factors, of ``(K, n, k)``."""
