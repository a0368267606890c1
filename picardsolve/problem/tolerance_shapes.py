"""Tolerances as users give them: one number, one for each sample, or one for each component of a state."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.problem.state import Layout, sorted_keys


def read(name: str, value: Any, layout: Layout, by_component: bool) -> float | Tensor:
    """A tolerance as `Tolerance` has it: a number, ``(B,)``, or ``(1, D)`` or ``(B, D)`` for the components.

    Raises:
        TypeError: it is neither a number nor a real tensor, nor made of them.
        ValueError: it has another shape or structure than y0, or a value is negative or NaN.
    """
    if isinstance(value, Tensor) and value.dim():
        out = _of_tensor(name, value, layout, by_component)
    elif by_component and isinstance(value, tuple | list | dict):
        out = _of_parts(name, value, layout)
    elif isinstance(value, int | float | Tensor) and not isinstance(value, bool):
        out = float(value)
    else:
        raise TypeError(f"{name}: expected a number or a tensor of one per sample, got {value!r}.")
    if not bool((torch.as_tensor(out) >= 0).all()):
        raise ValueError(f"{name}: expected values >= 0, got {value!r}; 0 asks for the sequential answer itself.")
    return out


def _of_tensor(name: str, value: Tensor, layout: Layout, by_component: bool) -> Tensor:
    _check_real(name, value)
    shape, rows = tuple(value.shape), ((1, layout.size), (layout.batch, layout.size))
    if shape != (layout.batch,) and not (by_component and shape in rows):
        if not by_component or not layout.structure.is_leaf():
            parts = f", or {layout.structure.num_leaves} of them in the structure of y0" if by_component else ""
            raise ValueError(f"{name}: expected a number or shape ({layout.batch},){parts}, got {shape}.")
        value = _row(name, value, layout, layout.shapes[0])
    return value.to(layout.device, layout.compute_dtype)


def _of_parts(name: str, value: Any, layout: Layout) -> Tensor:
    leaves, structure = pytree.tree_flatten(sorted_keys(value))
    if structure != layout.structure:
        raise ValueError(
            f"{name}: expected a number, a tensor, or the structure of y0, got a {type(value).__name__} of "
            f"{len(leaves)}; put a number or a tensor in the place of each of its tensors."
        )
    rows = [_row(name, leaf, layout, shape) for leaf, shape in zip(leaves, layout.shapes, strict=True)]
    lines = max(len(row) for row in rows)
    return torch.cat([row.expand(lines, -1) for row in rows], 1).to(layout.device, layout.compute_dtype)


def _row(name: str, value: Any, layout: Layout, shape: torch.Size) -> Tensor:
    """Of one tensor of the state, ``(1 or B, numbers in it)``."""
    if not isinstance(value, int | float | Tensor) or isinstance(value, bool):
        raise TypeError(f"{name}: expected numbers or tensors, got {value!r}.")
    value = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
    _check_real(name, value)
    got, batch = tuple(value.shape), layout.batch
    if got == () or (layout.batched and got == (batch,)):
        out = value.reshape(-1, 1).expand(-1, shape.numel())
    elif got in ((batch, *shape), (1, *shape)) if layout.batched else got == tuple(shape):
        out = value.reshape(-1, shape.numel())
    else:
        one, each = (f"({batch},)", (batch, *shape)) if layout.batched else ("(1,)", tuple(shape))
        of_one = " (or 1 in place of the number of samples)" if layout.batched else ""
        raise ValueError(
            f"{name}: expected a number, shape {one}, or one for each component, {each}{of_one}, got {got}."
        )
    return out.repeat_interleave(2, 1) if layout.dtype.is_complex else out


def _check_real(name: str, value: Tensor) -> None:
    if value.is_complex() or value.dtype is torch.bool:
        raise TypeError(f"{name}: expected real numbers, got {value.dtype}.")
