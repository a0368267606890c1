"""The layout of a user's state: how it becomes rows of numbers, and back."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

LARGEST_DENSE = 64  # numbers in a state up to which its whole Jacobian is computed


@dataclass(frozen=True)
class Layout:
    """The shape of one sample's state: a tensor, or a tuple, list or dict of tensors.

    Attributes:
        batch: number of independent samples B; 1 for ``batch_dims=0``.
        batched: whether the user's state has a leading dimension B.
        shapes: the shape of each tensor without that dimension.
        structure: of the tuples, lists and dicts.
        dtype: of the user's state. Rows have the same dtype, or float32 for half precision; a complex number is a pair
            of reals.
        device: of the user's state and of the rows.
    """

    batch: int
    batched: bool
    shapes: tuple[torch.Size, ...]
    structure: pytree.TreeSpec
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(y0: Any, batch_dims: int) -> "Layout":
        """The layout of an initial state.

        Raises:
            TypeError: a leaf is no floating-point or complex tensor, or dtypes or devices differ.
            ValueError: ``batch_dims`` is not 0 or 1, a dimension is missing or empty, or a value is not finite.
        """
        if type(batch_dims) is not int or batch_dims not in (0, 1):
            kind = ValueError if type(batch_dims) is int else TypeError
            raise kind(f"batch_dims: expected 0 (y0 is one system) or 1 (y0[i] are samples), got {batch_dims!r}.")
        leaves, structure = pytree.tree_flatten(sorted_keys(y0))
        if not leaves:
            raise TypeError("y0: expected a tensor, or a tuple, list or dict of tensors, got none.")
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise TypeError(f"y0: expected tensors, got {type(leaf).__name__}; pass torch.as_tensor(...).")
            if not leaf.dtype.is_floating_point and not leaf.dtype.is_complex:
                raise TypeError(f"y0: expected a floating or complex dtype, got {leaf.dtype}; pass y0.double().")
            if leaf.dtype != leaves[0].dtype or leaf.device != leaves[0].device:
                raise TypeError("y0: expected all tensors of one dtype on one device; convert them with .to(...).")
            if leaf.dim() < batch_dims:
                raise ValueError("y0: expected a leading dimension of samples with batch_dims=1, got a 0-d tensor.")
            if leaf.numel() == 0:
                raise ValueError(f"y0: expected non-empty samples, got shape {tuple(leaf.shape)}.")
            if not bool(torch.isfinite(leaf).all()):
                raise ValueError("y0: expected finite values, got NaN or infinity; check what computed it.")
        batch = {leaf.shape[0] for leaf in leaves} if batch_dims else {1}
        if len(batch) > 1:
            raise ValueError(f"y0: expected one leading batch dimension in every tensor, got {sorted(batch)}.")
        return Layout(
            batch=batch.pop(),
            batched=bool(batch_dims),
            shapes=tuple(leaf.shape[batch_dims:] for leaf in leaves),
            structure=structure,
            dtype=leaves[0].dtype,
            device=leaves[0].device,
        )

    def __getstate__(self) -> dict[str, Any]:
        numbered = pytree.tree_unflatten(list(range(len(self.shapes))), self.structure)
        return {**vars(self), "structure": numbered}  # containers are pickled alike by all versions of torch

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "structure": pytree.tree_structure(state["structure"])})

    @property
    def size(self) -> int:
        """How many numbers one sample's state has."""
        return sum(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        return [math.prod(shape) * (2 if self.dtype.is_complex else 1) for shape in self.shapes]

    @cached_property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of rows: that of the state, but at least float32."""
        return torch.promote_types(self.dtype.to_real(), torch.float32)

    def pack(self, y: Any) -> Tensor:
        """Rows ``(B, size)`` of an initial state, in new memory; gradients pass through."""
        leaves = pytree.tree_leaves(sorted_keys(y))
        flat = [self.reals(leaf).reshape(self.batch, -1) for leaf in leaves]
        return (flat[0].clone() if len(flat) == 1 else torch.cat(flat, 1)).to(self.compute_dtype)

    def unpack(self, rows: Tensor) -> Any:
        """Rows in the user's structure, with leaves ``(*rows.shape[:-1], *shape)`` in the user's dtype."""
        rows, lead = rows.to(self.dtype.to_real()), rows.shape[:-1]
        if self.structure.is_leaf():  # pytree takes longer than all else here
            return self._shaped(rows, (*lead, *self.shapes[0]))
        parts = [rows] if len(self.shapes) == 1 else rows.split(self._sizes, -1)
        leaves = [self._shaped(part, (*lead, *shape)) for part, shape in zip(parts, self.shapes, strict=True)]
        return pytree.tree_unflatten(leaves, self.structure)

    def _shaped(self, part: Tensor, shape: tuple[int, ...]) -> Tensor:
        if self.dtype.is_complex:
            return torch.view_as_complex(part.reshape((*shape, 2)))
        return part.reshape(shape)

    def reals(self, leaf: Tensor) -> Tensor:
        """The real numbers of a leaf; a complex leaf gets a last dimension of 2."""
        return torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf

    def unpack_path(self, path: Tensor) -> Any:
        """A path ``(times, B, size)`` in the user's structure: time first, then the shape of ``y0``."""
        return self.unpack(path if self.batched else path[:, 0])

    def pack_path(self, name: str, path: Any, times: int) -> Tensor:
        """Rows ``(times, B, size)`` of states in the structure of y0, time first.

        Args:
            name: the argument's name in messages.
            path: tensors ``(times, *y0.shape)`` in the structure of y0.
            times: how many times the path must have.

        Raises:
            TypeError: the path is not made of floating-point tensors in the structure of y0.
            ValueError: a tensor has another shape.
        """
        leaves, structure = pytree.tree_flatten(sorted_keys(path))
        if structure != self.structure:
            raise TypeError(
                f"{name}: expected the structure of y0, got {type(path).__name__}; put one tensor in the place of each."
            )
        lead, rows = (times, self.batch) if self.batched else (times,), []
        for leaf, shape in zip(leaves, self.shapes, strict=True):
            if (
                not isinstance(leaf, Tensor)
                or leaf.is_complex() != self.dtype.is_complex
                or not (leaf.is_complex() or leaf.is_floating_point())
            ):
                got = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
                raise TypeError(f"{name}: expected tensors of the dtype of y0, {self.dtype}, got {got}; convert them.")
            if leaf.shape != (*lead, *shape):
                raise ValueError(
                    f"{name}: expected one state for each of {times} times, shape {(*lead, *shape)}, got "
                    f"{tuple(leaf.shape)}; put the time first and keep the shape of y0."
                )
            rows.append(self.reals(leaf.detach()).to(self.device, self.compute_dtype).reshape(times, self.batch, -1))
        return rows[0] if len(rows) == 1 else torch.cat(rows, -1)


def sorted_keys(value: Any) -> Any:
    """A nested state with the keys of every dict sorted, so that dicts with the same keys have the same structure."""
    if type(value) is dict:
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return type(value)(sorted_keys(part) for part in value) if type(value) in (list, tuple) else value
