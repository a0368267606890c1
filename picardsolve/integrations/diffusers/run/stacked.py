"""Operations on all lanes of a window at once, stacked along a new first dimension.

Only operations that give each lane bit for bit the result of that lane alone are stacked. All others run lane by lane.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ELEMENTWISE = {"add", "sub", "mul", "div", "neg", "__rsub__", "rsub", "__radd__", "__rmul__", "true_divide"}
_CASTS = {"float", "double", "half", "bfloat16", "to"}
_JOINS = {"cat", "concat"}


def stacked(func: Callable, args: Any, kwargs: dict, kind: Any) -> Any:
    """``func`` of stacked arguments; ``kind`` is the class of window tensors. None if it must run lane by lane."""
    name = getattr(func, "__name__", "")
    if name in _ELEMENTWISE and not kwargs:
        operands = _aligned(args, kind)
        return None if operands is None else func(*operands)
    if name in _CASTS and args and isinstance(args[0], kind) and not any(isinstance(arg, Tensor) for arg in args[1:]):
        return func(args[0].stack, *args[1:], **kwargs)
    if name in _JOINS and args and isinstance(args[0], list | tuple):
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        if all(isinstance(part, kind) for part in args[0]) and isinstance(dim, int):
            return torch.cat([part.stack for part in args[0]], dim + 1 if dim >= 0 else dim)
    if name == "chunk" and args and isinstance(args[0], kind) and len(args) > 1:
        dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
        return args[0].stack.chunk(args[1], dim + 1 if dim >= 0 else dim)
    if name == "expand" and isinstance(args[0], kind):
        return _expanded(args[0].stack, args[1] if isinstance(args[1], tuple | list) else args[1:])
    if name == "__getitem__" and isinstance(args[0], kind):
        return _indexed(args[0].stack, args[1])
    return None


def _aligned(args: Any, kind: Any) -> list[Any] | None:
    """Operands that broadcast as those of one lane do; None where stacking would change the result's dtype."""
    given = [arg for arg in args if isinstance(arg, Tensor)]
    if len({tensor.dtype for tensor in given}) > 1:  # zero-dimensional tensors follow other promotion rules
        return None
    most = max(tensor.dim() for tensor in given)
    operands = []
    for arg in args:
        if isinstance(arg, kind):
            stack = arg.stack
            operands.append(stack.reshape(len(stack), *[1] * (most - arg.dim()), *stack.shape[1:]))
        else:
            operands.append(arg)
    return operands


def _expanded(stack: Tensor, sizes: Any) -> Tensor | None:
    if not all(isinstance(size, int) for size in sizes):
        return None
    added = len(sizes) - (stack.dim() - 1)
    return stack.reshape(len(stack), *[1] * added, *stack.shape[1:]).expand(len(stack), *sizes)


def _indexed(stack: Tensor, index: Any) -> Tensor | None:
    """The result for slices, integers, ``None`` and ``...``; None for other indices, such as tensors."""
    parts = index if isinstance(index, tuple) else (index,)
    if all(part is None or part is Ellipsis or isinstance(part, slice | int) for part in parts):
        return stack[(slice(None), *parts)]
    return None
