"""A function with everything that it holds on another device: copied once, and kept as long as the function is."""

import copy
import functools
import weakref
from collections.abc import Callable
from threading import Lock
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from picardsolve.distributed.marks import Marks
from picardsolve.problem.parameters import reachable, visited

_LOCK = Lock()
_FORWARD = {"jvp", "jacfwd", "hessian", "linearize", "dual_level", "make_dual"}  # names of torch.func and forward_ad


class Replicas:
    """Copies of functions on one device, for one worker."""

    def __init__(self, device: torch.device):
        self._device = device
        self._kept: weakref.WeakKeyDictionary[Any, tuple[Marks, Any]] = weakref.WeakKeyDictionary()

    def of(
        self,
        function: Callable[..., Any],
        marks: Marks | None = None,
        check: Callable[[Any], None] | None = None,
    ) -> Callable[..., Any]:
        """The function on this device; a function without tensors is itself.

        Args:
            function: of which it is a copy.
            marks: of the function, where they are known; a copy is made anew where they have changed.
            check: is called with a copy when it is made.

        Raises:
            ValueError: it holds a tensor that could not be copied.
        """
        marks = Marks(function) if marks is None else marks
        if not marks.tensors:
            _refuse_forward_mode(function)
            return function
        owner = getattr(function, "__self__", function)
        kept = self._kept.get(owner) if _has_weak_references(owner) else None
        if kept is not None and (kept[0] is marks or kept[0] == marks):
            made = kept[1]
        else:
            _refuse_forward_mode(function)
            with _LOCK, torch.inference_mode(False):  # a copy outlives the mode in which it is made
                made = _Copier(self._device)(owner)
            _check(function, _bound(function, made), self._device)
            if check is not None:
                check(_bound(function, made))
        if _has_weak_references(owner):
            self._kept[owner] = marks, made
        return _bound(function, made)


def _bound(function: Callable[..., Any], owner: Any) -> Any:
    """A function, or a method of a copy of its object."""
    return getattr(owner, function.__name__) if hasattr(function, "__self__") else owner


def _refuse_forward_mode(function: Any) -> None:
    """Refuse a function that takes forward-mode derivatives, which torch gets wrong in several threads at once."""
    codes = [item for item in visited(function) if isinstance(item, FunctionType)]
    named = {name for code in codes if not code.__module__.startswith("picardsolve.") for name in _names(code)}
    found = sorted(named & _FORWARD)
    if found:
        raise ValueError(
            f"devices: {getattr(function, '__qualname__', type(function).__name__)} uses {found[0]}, whose results are "
            "wrong where several threads use it; pass mesh, with a process for each device, or leave devices out."
        )


def _check(function: Any, replica: Any, device: torch.device) -> None:
    own = {id(tensor) for tensor in reachable(function) if isinstance(tensor, Tensor) and tensor.dim()}
    for tensor in reachable(replica):
        if isinstance(tensor, Tensor) and tensor.dim() and (id(tensor) in own or tensor.device != device):
            name = getattr(function, "__qualname__", type(function).__name__)
            raise ValueError(
                f"devices: {name} reaches a tensor of shape {tuple(tensor.shape)} on {tensor.device} that could not be "
                f"copied to {device}; make it a torch.nn.Module, or pass the tensor in args or cond."
            )


class _Copier:
    """Copies what holds tensors: modules, functions with their closures, globals and defaults, containers, objects."""

    def __init__(self, device: torch.device):
        self._device, self._made = device, {}

    def __call__(self, item: Any) -> Any:
        """The item, or a copy where it holds tensors."""
        if isinstance(item, Tensor):
            return item.detach().to(self._device, copy=True).requires_grad_(item.requires_grad) if item.dim() else item
        if isinstance(item, np.ndarray) or next(reachable(item), None) is None:
            return item
        if id(item) not in self._made:
            self._made[id(item)] = self._copied(item)
        return self._made[id(item)]

    def _copied(self, item: Any) -> Any:
        if isinstance(item, nn.Module):
            return copy.deepcopy(item).to(self._device)
        if isinstance(item, functools.partial):
            return functools.partial(self(item.func), *map(self, item.args), **self(dict(item.keywords)))
        if isinstance(item, MethodType):
            return MethodType(item.__func__, self(item.__self__))
        if isinstance(item, FunctionType):
            return self._function(item)
        if isinstance(item, dict):
            return {key: self(value) for key, value in item.items()}
        if isinstance(item, list | tuple) and type(item) in (list, tuple):
            return type(item)(map(self, item))
        made = copy.copy(item)
        for name, value in vars(item).items():
            object.__setattr__(made, name, self(value))
        return made

    def _function(self, item: FunctionType) -> FunctionType:
        names = {name: item.__globals__[name] for name in _names(item) if name in item.__globals__}
        others = {name: value for name, value in names.items() if value is not item}
        there = {**item.__globals__, **{name: self(value) for name, value in others.items()}}
        closure = item.__closure__ and tuple(CellType(self(cell.cell_contents)) for cell in item.__closure__)
        made = FunctionType(item.__code__, there, item.__name__, self(item.__defaults__), closure)
        made.__kwdefaults__ = self(item.__kwdefaults__)
        return made


def _names(function: FunctionType) -> set[str]:
    """Names of globals that a function and those within it may read."""
    names, ahead = set(), [function.__code__]
    while ahead:
        code = ahead.pop()
        names |= set(code.co_names)
        ahead += [part for part in code.co_consts if isinstance(part, type(code))]
    return names


def _has_weak_references(owner: Any) -> bool:
    return isinstance(owner, nn.Module | FunctionType) or hasattr(owner, "__weakref__")
