"""States on a device: tensors of torch in double precision, with no wait but `fetch`."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from picardsolve.collocation.arrays import Array, Arrays
from picardsolve.problem.index import on_device


class TorchArrays(Arrays):
    """Tensors on a device."""

    flops = 5e11  # a guess: a hundred cores

    def __init__(self, device: torch.device):
        self.device = device
        self._constants: dict[int, tuple[np.ndarray, Tensor]] = {}
        self._zero = torch.zeros((), dtype=torch.float64, device=device)

    def array(self, host: np.ndarray) -> Array:
        """A copy on the device."""
        return on_device(np.ascontiguousarray(host), self.device)

    def constant(self, host: np.ndarray) -> Array:
        """The copy that is kept."""
        if id(host) not in self._constants:
            self._constants[id(host)] = host, self.array(host)
        return self._constants[id(host)][1]

    def of_tensor(self, tensor: Tensor) -> Array:
        """Copied where it has another dtype."""
        return tensor.to(self.device, torch.float64)

    def tensor(self, array: Array) -> Tensor:
        """Itself."""
        return array

    def fetch(self, *arrays: Array) -> list[np.ndarray]:
        """In one copy."""
        together = torch.cat([array.reshape(-1).double() for array in arrays]).cpu()
        parts = together.split([array.numel() for array in arrays])
        return [part.reshape(array.shape).numpy() for part, array in zip(parts, arrays, strict=True)]

    def take(self, array: Array, index: np.ndarray) -> Array:
        """Entries of the first dimension."""
        return array.index_select(0, on_device(index, self.device))

    def put(self, array: Array, index: np.ndarray, entries: Array) -> Array:
        """A copy with other entries in the first dimension."""
        return array.index_copy(0, on_device(index, self.device), entries)

    def concat(self, parts: Sequence[Array], axis: int = 0) -> Array:
        """Arrays one behind the other."""
        return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)

    def zeros(self, *shape: int) -> Array:
        """Zeros."""
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def where(self, condition: Array, yes: Array, no: Array | float) -> Array:
        """Entries of one or the other."""
        return torch.where(condition, yes, no)

    def larger(self, one: Array, other: Array | float) -> Array:
        """The larger of two."""
        return one.clamp(min=other)

    def size(self, array: Array) -> Array:
        """Absolute values."""
        return array.abs()

    def peak(self, array: Array) -> Array:
        """The largest absolute values along the second dimension, ``(K, n, d)`` to ``(K, d)``."""
        return torch.linalg.vector_norm(array, torch.inf, 1)

    def largest(self, array: Array) -> Array:
        """The largest entries along the last dimension."""
        return array.amax(-1)

    def finite(self, array: Array) -> Array:
        """Whether all entries along the last dimension are finite."""
        return (array - array).sum(-1) == 0  # half as many operations as isfinite

    def root(self, array: Array) -> Array:
        """Square roots."""
        return array.sqrt()

    def clip(self, array: Array, least: Array, most: Array) -> Array:
        """Entries within limits."""
        return array.clamp(least, most)

    def binary(self, sizes: Array) -> Array:
        """Powers of two near sizes; 1 for what is not finite."""
        return torch.frexp(sizes).exponent.double().exp2()

    def may_be(self, condition: Array) -> np.ndarray:
        """Everywhere."""
        return np.arange(len(condition))

    def solve(self, matrix: Array, right: Array) -> Array:
        """Solutions of linear equations, ``(K, n, n)`` and ``(K, n, k)``."""
        return torch.linalg.solve_ex(matrix, right)[0]

    def inverse(self, matrix: Array) -> Array:
        """Inverses of ``(K, ..., n, n)``; NaN for each of K where a matrix is not finite or has none."""
        out, singular = torch.linalg.inv_ex(matrix)
        bad = matrix.sum((-2, -1)) * 0 + torch.where(singular == 0, self._zero, torch.nan)
        return out + bad.flatten(1).sum(1).view(-1, *[1] * (matrix.dim() - 1))

    def factors(self, matrix: Array) -> tuple[Array, Array, Array]:
        """LU factors of ``(K, n, n)``, pivots, and whether there are any: 1 or NaN, ``(K,)``."""
        finite = (matrix * 0).sum((1, 2)) == 0
        own = torch.where(finite[:, None, None], matrix, self.constant(_identity(matrix.shape[1])))
        lu, pivots, singular = torch.linalg.lu_factor_ex(own)
        return lu, pivots, torch.where(finite & (singular == 0), self._zero + 1, torch.nan)

    def back(self, factors: Array, pivots: Array, right: Array) -> Array:
        """Solutions by LU factors, of ``(K, n, k)``."""
        return torch.linalg.lu_solve(factors, pivots, right)


@lru_cache
def _identity(n: int) -> np.ndarray:
    return np.eye(n)
