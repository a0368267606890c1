"""How a user's state becomes rows of one flat vector, and back."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

LARGEST_DENSE = 64  # numbers in a state up to which its whole Jacobian is computed


@dataclass(frozen=True)
class Layout:
    """The shape of one sample's state: a tensor, or a tuple, list or dict of tensors.

    Attributes:
        batch: number of independent samples B (1 when ``batch_dims`` was 0).
        batched: whether the user's state has a leading dimension B.
        shapes: per leaf, its shape without that dimension.
        dtype: what the user gave; rows are kept in it, half precision in float32. Complex numbers are pairs of reals.
    """

    batch: int
    batched: bool
    shapes: tuple[torch.Size, ...]
    structure: pytree.TreeSpec
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(y0: Any, batch_dims: int) -> "Layout":
        """Read the layout off an initial state, refusing what cannot be solved.

        Raises:
            TypeError: a leaf is not a floating-point tensor, or dtypes or devices differ.
            ValueError: ``batch_dims`` is not 0 or 1, a dimension is missing or empty, or a value is not finite.
        """
        if not isinstance(batch_dims, int) or isinstance(batch_dims, bool):
            raise TypeError(f"batch_dims: expected 0 (y0 is one system) or 1 (y0[i] are samples), got {batch_dims!r}.")
        if batch_dims not in (0, 1):
            raise ValueError(f"batch_dims: expected 0 (y0 is one system) or 1 (y0[i] are samples), got {batch_dims!r}.")
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
        """Numbers in one sample's state."""
        return sum(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        return [math.prod(shape) * (2 if self.dtype.is_complex else 1) for shape in self.shapes]

    @property
    def compute_dtype(self) -> torch.dtype:
        """What rows are kept and summed in: at least float32."""
        return torch.promote_types(self.dtype.to_real(), torch.float32)

    def pack(self, y: Any) -> Tensor:
        """Rows ``(B, size)`` of an initial state, in memory of their own, with its gradients."""
        leaves = pytree.tree_leaves(sorted_keys(y))
        flat = [self.reals(leaf).reshape(self.batch, -1) for leaf in leaves]
        return (flat[0].clone() if len(flat) == 1 else torch.cat(flat, 1)).to(self.compute_dtype)

    def unpack(self, rows: Tensor) -> Any:
        """The user's structure, leaves ``(*rows.shape[:-1], *shape)`` in the user's dtype."""
        rows, lead = rows.to(self.dtype.to_real()), rows.shape[:-1]
        parts = [rows] if len(self.shapes) == 1 else rows.split(self._sizes, -1)
        leaves = [self._shaped(part, (*lead, *shape)) for part, shape in zip(parts, self.shapes, strict=True)]
        return pytree.tree_unflatten(leaves, self.structure)

    def _shaped(self, part: Tensor, shape: tuple[int, ...]) -> Tensor:
        if self.dtype.is_complex:
            return torch.view_as_complex(part.reshape((*shape, 2)))
        return part.reshape(shape)

    def reals(self, leaf: Tensor) -> Tensor:
        """The numbers of a leaf, complex ones with a last dimension of two."""
        return torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf

    def unpack_path(self, path: Tensor) -> Any:
        """The user's structure of a path ``(times, B, size)``: time first, then the shape of ``y0``."""
        return self.unpack(path if self.batched else path[:, 0])

    def pack_path(self, name: str, path: Any, times: int) -> Tensor:
        """Rows ``(times, B, size)`` of states in the structure of y0, time first.

        Args:
            name: the argument's name in messages.
            path: tensors ``(times, *y0.shape)`` in the places of y0's.
            times: how many there must be.

        Raises:
            TypeError: it is not made of floating-point tensors in the structure of y0.
            ValueError: a shape is another.
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
    """Nested state with the keys of every dict in order, so that two dicts with the same keys have one structure."""
    if type(value) is dict:
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return type(value)(sorted_keys(part) for part in value) if type(value) in (list, tuple) else value
