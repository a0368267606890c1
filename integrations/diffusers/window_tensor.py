"""A tensor that carries one value for each step of a window through code written for one step."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class WindowTensor(Tensor):
    """``W`` tensors in the place of one; every operation is applied to each of them.

    Code that looks at a value (``bool``, ``item``, ``float``) is shown the first item's; where others disagree, the
    window is cut to the items before them by calling ``shrink``, so that no item takes another one's branch.
    """

    items: list[Tensor]
    shrink: Callable[[int], None]

    @staticmethod
    def of(items: Sequence[Tensor], shrink: Callable[[int], None]) -> "WindowTensor":
        """Wrap the items; ``shrink`` is told how many of them still agree."""
        wrapped = Tensor._make_subclass(WindowTensor, items[0].detach())
        wrapped.items, wrapped.shrink = list(items), shrink
        return wrapped

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Apply ``func`` to every item."""
        kwargs = kwargs or {}
        windows = find((args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            outs = [func(*pick(args, j), **pick(kwargs, j)) for j in range(len(windows[0].items))]
        return _joined(outs, windows[0].shrink)


def find(value: Any) -> list[WindowTensor]:
    """The window tensors in nested arguments."""
    if isinstance(value, WindowTensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [window for part in value for window in find(part)] if isinstance(value, list | tuple) else []


def pick(value: Any, j: int) -> Any:
    """Nested arguments with item j in the place of every window tensor."""
    if isinstance(value, WindowTensor):
        return value.items[j]
    if type(value) in (list, tuple):
        return type(value)(pick(part, j) for part in value)
    if isinstance(value, dict) and find(value):
        picked = {key: pick(part, j) for key, part in value.items()}
        return picked if type(value) is dict else type(value)(**picked)
    return value


def _joined(outs: list[Any], shrink: Callable[[int], None]) -> Any:
    first = outs[0]
    if isinstance(first, Tensor):
        return WindowTensor.of(outs, shrink)
    if isinstance(first, list | tuple) and not isinstance(first, torch.Size):
        parts = [_joined([out[k] for out in outs], shrink) for k in range(len(first))]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    if isinstance(first, bool | int | float):
        agreeing = next((j for j, out in enumerate(outs) if out != first), len(outs))
        if agreeing < len(outs):
            shrink(agreeing)
    return first
