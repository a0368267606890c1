"""A tensor that carries one value for each step of a window through code written for one step."""

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, Protocol
from weakref import ref

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _pop_mode, _push_mode

from picardsolve.integrations.diffusers.run.stacked import stacked

_WRITING = ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ipow__", "__set__")
_RANDOM = ("randn_like", "rand_like", "randint_like", "bernoulli", "multinomial", "poisson", "normal")
_FROM_VALUES = (torch.tensor, torch.as_tensor, torch.asarray, torch.full)


class Recorder(Protocol):
    """Takes the operations of a round."""

    usable: bool

    def note(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        """Take an operation and its result."""

    def admit_all(self, out: Any) -> list[int]:
        """Take a denoiser's output."""
        ...


class Lanes:
    """The lanes of one round, which share one run of a loop body that is written for one step.

    Attributes:
        count: number of lanes that have taken the same branches as the first lane.
        recording: takes the operations on window tensors; None for no recording.
        first: the lane of the round that is the first here.
    """

    def __init__(self, count: int, recording: "Recorder | None" = None, first: int = 0):
        self.count, self.recording, self.first = count, recording, first
        self._made: list[ref] = []

    def tensor(self, items: Sequence[Tensor] | Tensor) -> "WindowTensor":
        """A window tensor of one tensor per lane: a list, or a tensor ``(W, ...)``."""
        wrapped = Tensor._make_subclass(WindowTensor, items[0].detach())
        self._carry(wrapped, items)
        return wrapped

    def spread(self, target: Tensor) -> None:
        """Turn a plain tensor into a window tensor, in place, before an operation writes to it."""
        items = [target.detach(), *(target.detach().clone() for _ in range(self.count - 1))]
        target.__class__ = WindowTensor
        self._carry(target, items)

    def _carry(self, wrapped: Any, items: Sequence[Tensor] | Tensor) -> None:
        wrapped.lanes, wrapped.slot = self, None
        wrapped._stack, wrapped._items = (items, None) if isinstance(items, Tensor) else (None, list(items))
        self._made.append(ref(wrapped))

    def cut(self, count: int) -> None:
        """Continue with the first ``count`` lanes only."""
        self.count = min(self.count, count)

    def close(self) -> None:
        """Turn every window tensor of this round into the plain tensor of its first lane, in place."""
        for made in self._made:
            window = made()
            if window is not None:
                alone = window._stack is None
                del window.lanes, window._stack, window._items, window.slot
                window.__class__ = Tensor
                if not alone:
                    window.data = window.data.clone()  # releases the memory of the other lanes
        self._made.clear()

    def joined(self, outs: list[Any]) -> Any:
        """One value for the results of all lanes: a window tensor, or the first lane's value."""
        first = outs[0]
        if isinstance(first, Tensor):
            return self.tensor(outs)
        if isinstance(first, list | tuple) and not isinstance(first, torch.Size):
            if any(len(out) != len(first) for out in outs):
                self.cut(1)
                return first
            parts = [self.joined([out[k] for out in outs]) for k in range(len(first))]
            return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
        if isinstance(first, bool | int | float | torch.Size):
            self.cut(next((j for j, out in enumerate(outs) if out != first), len(outs)))
        elif not isinstance(first, str | torch.dtype | torch.device | torch.layout | type(None)):
            self.cut(1)
        return first


class WindowTensor(Tensor):
    """``W`` tensors in the place of one; each operation runs on all of these tensors.

    Code that reads a value (``bool``, ``item``, ``float``) gets the first lane's value. Where another lane has another
    value, that lane and all later lanes are dropped. So no lane takes the branch of another lane. Random numbers are
    drawn once, as in the sequential loop. A plain tensor becomes a window tensor when a window tensor is written into
    it.
    """

    lanes: Lanes
    _stack: Tensor | None
    _items: list[Tensor] | None
    slot: int | None  # number of this value in the recording of the round

    @property
    def items(self) -> list[Tensor]:
        """The tensor of every lane."""
        if self._items is None:
            assert self._stack is not None
            self._items = list(self._stack.unbind(0))
        return self._items[: self.lanes.count]

    @property
    def stack(self) -> Tensor:
        """All lanes in one tensor, ``(W, ...)``."""
        if self._stack is None:
            # not cached: other code may hold references to the tensors in the list
            return torch.stack(self.items)
        return self._stack if len(self._stack) == self.lanes.count else self._stack[: self.lanes.count]

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Apply ``func`` to every item."""
        kwargs = kwargs or {}
        lanes, out = cls._applied(func, args, kwargs)
        if lanes.recording is not None:
            lanes.recording.note(func, args, kwargs, out)
        return out

    @staticmethod
    def _applied(func: Callable, args: tuple, kwargs: dict) -> tuple[Lanes, Any]:
        flat = not kwargs and all(not isinstance(arg, list | tuple | dict) for arg in args)
        windows = [arg for arg in args if type(arg) is WindowTensor] if flat else find((args, kwargs))
        lanes = windows[-1].lanes
        with torch._C.DisableTorchFunctionSubclass():
            together = stacked(func, args, kwargs, WindowTensor)
            if together is not None:
                return lanes, _wrapped(together, lanes)
            name = getattr(func, "__name__", "")
            if name in _WRITING or (name.endswith("_") and not name.endswith("__")) or "out" in kwargs:
                if lanes.recording is not None:
                    lanes.recording.usable = False
                for target in (*args[:1], kwargs.get("out")):
                    if type(target) is Tensor:
                        lanes.spread(target)
            if name in _RANDOM:
                if lanes.recording is not None:
                    lanes.recording.usable = False
                return lanes, lanes.joined([func(*pick(args, 0), **pick(kwargs, 0))] * lanes.count)
            if flat:
                columns = [arg.items if type(arg) is WindowTensor else repeat(arg) for arg in args]
                outs = [func(*row) for row in zip(*columns, strict=False)]
            else:
                outs = [func(*pick(args, j), **pick(kwargs, j)) for j in range(lanes.count)]
        return lanes, lanes.joined(outs)


class LoopMode(TorchFunctionMode):
    """Acts on the functions that a loop body calls, but not on those of the denoiser and the scheduler."""


class LaneMode(LoopMode):
    """Lets functions that make tensors from values, such as ``torch.tensor([t])``, accept window tensors."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run such functions lane by lane, and all others as usual."""
        kwargs = kwargs or {}
        windows = find((args, kwargs)) if func in _FROM_VALUES else []
        if not windows:
            return func(*args, **kwargs)
        lanes = windows[0].lanes
        return lanes.joined([func(*pick(args, j), **pick(kwargs, j)) for j in range(lanes.count)])


class WithoutLoopMode:
    """Leaves this thread's `LoopMode` within the context, if it is the innermost mode."""

    def __enter__(self) -> None:
        self._mode = _pop_mode() if isinstance(_get_current_function_mode(), LoopMode) else None

    def __exit__(self, *_: object) -> None:
        if self._mode is not None:
            _push_mode(self._mode)


def find(value: Any) -> list[WindowTensor]:
    """The window tensors in nested arguments."""
    if isinstance(value, WindowTensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [window for part in value for window in find(part)] if isinstance(value, list | tuple) else []


def pick(value: Any, j: int) -> Any:
    """Nested arguments with lane ``j`` in the place of every window tensor."""
    if isinstance(value, WindowTensor):
        return value.items[j]
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        parts = [pick(part, j) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict) and find(value):
        picked = {key: pick(part, j) for key, part in value.items()}
        return picked if type(value) is dict else type(value)(**picked)
    return value


def _wrapped(together: Any, lanes: Lanes) -> Any:
    if isinstance(together, Tensor):
        return lanes.tensor(together)
    return type(together)(lanes.tensor(part) for part in together)
