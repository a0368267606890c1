"""States on the host: arrays of NumPy. One small operation takes about a microsecond, a fifth of torch's."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from picardsolve.collocation.arrays import Array, Arrays

_NARROW = 16  # numbers: reductions along a dimension before so few are slow in NumPy


class NumpyArrays(Arrays):
    """Arrays of NumPy. LU factors are torch's, because NumPy has none and raises an error for singular matrices."""

    flops = 5e9  # one core, measured

    def array(self, host: np.ndarray) -> Array:
        """Itself."""
        return host

    def constant(self, host: np.ndarray) -> Array:
        """Itself."""
        return host

    def of_tensor(self, tensor: Tensor) -> Array:
        """Copied where it has another dtype."""
        return tensor.to("cpu", torch.float64).numpy()

    def tensor(self, array: Array) -> Tensor:
        """With the same memory."""
        return torch.from_numpy(array)

    def fetch(self, *arrays: Array) -> list[np.ndarray]:
        """They are."""
        return list(arrays)

    def take(self, array: Array, index: np.ndarray) -> Array:
        """Entries of the first dimension."""
        return array[index]

    def put(self, array: Array, index: np.ndarray, entries: Array) -> Array:
        """A copy with other entries in the first dimension."""
        out = array.copy()
        out[index] = entries
        return out

    def concat(self, parts: Sequence[Array], axis: int = 0) -> Array:
        """Arrays one behind the other."""
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)

    def zeros(self, *shape: int) -> Array:
        """Zeros."""
        return np.zeros(shape)

    def where(self, condition: Array, yes: Array, no: Array | float) -> Array:
        """Entries of one or the other."""
        return np.where(condition, yes, no)

    def larger(self, one: Array, other: Array | float) -> Array:
        """The larger of two."""
        return np.maximum(one, other)

    def size(self, array: Array) -> Array:
        """Absolute values."""
        return np.abs(array)

    def peak(self, array: Array) -> Array:
        """Where the last dimension is short, by halves, whose numbers lie side by side."""
        sizes = np.abs(array)
        if sizes.shape[-1] >= _NARROW or len(sizes) < _NARROW:
            return sizes.max(1)
        while sizes.shape[1] > 1:
            half = (sizes.shape[1] + 1) // 2
            sizes = np.maximum(sizes[:, :half], sizes[:, -half:])
        return sizes[:, 0]

    def largest(self, array: Array) -> Array:
        """The largest entries along the last dimension."""
        return array.max(-1)

    def finite(self, array: Array) -> Array:
        """Whether all entries along the last dimension are finite."""
        return np.isfinite(array).all(-1)

    def root(self, array: Array) -> Array:
        """Square roots."""
        return np.sqrt(array)

    def clip(self, array: Array, least: Array, most: Array) -> Array:
        """Entries within limits."""
        return np.minimum(np.maximum(array, least), most)

    def binary(self, sizes: Array) -> Array:
        """Powers of two near sizes; 1 for what is not finite."""
        return np.exp2(np.frexp(sizes)[1])

    def may_be(self, condition: Array) -> np.ndarray:
        """Where it holds."""
        return np.flatnonzero(condition)

    def solve(self, matrix: Array, right: Array) -> Array:
        """Solutions of linear equations, ``(K, n, n)`` and ``(K, n, k)``."""
        return np.linalg.solve(matrix, right)

    def inverse(self, matrix: Array) -> Array:
        """Inverses of ``(K, ..., n, n)``; NaN for each of K where a matrix is not finite or has none."""
        out, singular = torch.linalg.inv_ex(torch.from_numpy(matrix))
        bad = ~np.isfinite(matrix.sum((-2, -1))) | (singular.numpy() != 0)
        if bad.any():
            out[torch.from_numpy(bad.reshape(len(bad), -1).any(1))] = torch.nan
        return out.numpy()

    def factors(self, matrix: Array) -> tuple[Array, Array, Array]:
        """LU factors of ``(K, n, n)``, pivots, and whether there are any: 1 or NaN, ``(K,)``."""
        finite = np.isfinite(matrix.sum((1, 2)))
        if not finite.all():
            matrix = np.where(finite[:, None, None], matrix, np.eye(matrix.shape[1]))
        lu, pivots, singular = torch.linalg.lu_factor_ex(torch.from_numpy(matrix))
        known = finite & (singular.numpy() == 0)
        return lu.numpy(), pivots.numpy(), np.where(known, 1.0, np.nan)

    def back(self, factors: Array, pivots: Array, right: Array) -> Array:
        """Solutions by LU factors, of ``(K, n, k)``."""
        parts = (torch.from_numpy(part) for part in (factors, pivots, right))
        return torch.linalg.lu_solve(*parts).numpy()
