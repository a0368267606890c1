"""Copies that share nothing that can change: what changes a copy leaves the original alone."""

import copy
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from picardsolve.integrations.diffusers.mutable_state.kinds import slots
from picardsolve.integrations.diffusers.mutable_state.reachable import immutable, outside, trusted
from picardsolve.integrations.diffusers.mutable_state.values import BUFFERS, GENERATORS

_Memo = dict[int, Any]  # copies by the identity of the original; under 0 the originals, which keeps these identities


def independent(value: Any, memo: _Memo) -> Any:
    """A copy down to the last part; modules, classes and what is immutable are shared.

    Args:
        value: what to copy.
        memo: copies by the identity of the original.

    Raises:
        TypeError: a part cannot be copied.
    """
    if immutable(value) or isinstance(value, type | nn.Module | ContextVar):
        return value
    if id(value) not in memo:
        memo[id(value)] = _copy(value, memo)
        memo.setdefault(0, []).append(value)
    return memo[id(value)]


def _copy(value: Any, memo: _Memo) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, np.ndarray):
        return value.copy() if value.dtype != object else copy.deepcopy(value)
    if isinstance(value, torch.Generator):
        return torch.Generator(value.device).set_state(value.get_state())
    if isinstance(value, GENERATORS + BUFFERS):
        return copy.deepcopy(value)
    if isinstance(value, dict | list | set | deque):
        return _container(value, memo)
    if isinstance(value, tuple | frozenset):
        parts = [independent(part, memo) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, types.FunctionType):
        return _function(value, memo)
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, independent(value.__self__, memo))
    if isinstance(value, partial):
        func, args, keywords = (independent(part, memo) for part in (value.func, value.args, value.keywords))
        return partial(func, *args, **keywords)
    if isinstance(value, types.CellType):
        return _cell(value, memo)
    return _object(value, memo)


def _container(value: Any, memo: _Memo) -> Any:
    if type(value).__name__ == "FrozenDict":
        return value
    cls: Any = type(value)
    if cls in (list, set, dict, OrderedDict, defaultdict):
        copied = copy.copy(value)
        copied.clear()
    else:
        copied = cls(maxlen=value.maxlen) if isinstance(value, deque) else cls.__new__(cls)
    memo[id(value)] = copied  # before its parts: one of them may hold it
    _copy_attributes(value, copied, memo)
    if isinstance(value, dict):
        put = OrderedDict.__setitem__ if isinstance(value, OrderedDict) else dict.__setitem__
        for key, part in dict.items(value):
            put(copied, independent(key, memo), independent(part, memo))
    else:  # by the base class: a subclass may do more when it is added to
        base: Any = next(base for base in (set, deque, list) if isinstance(value, base))
        add = set.add if base is set else base.append
        for part in value:
            add(copied, independent(part, memo))
    return copied


def _copy_attributes(value: Any, copied: Any, memo: _Memo) -> None:
    if getattr(value, "__dict__", None):
        vars(copied).update({name: independent(part, memo) for name, part in vars(value).items()})


def _function(value: types.FunctionType, memo: _Memo) -> Any:
    if not value.__closure__ or trusted(value.__module__):
        return value
    cells = tuple(independent(cell, memo) for cell in value.__closure__)
    copied = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
    copied.__kwdefaults__ = independent(value.__kwdefaults__, memo)
    copied.__defaults__ = independent(value.__defaults__, memo)
    copied.__dict__.update(value.__dict__)
    return copied


def _cell(value: types.CellType, memo: _Memo) -> types.CellType:
    copied = memo[id(value)] = types.CellType()
    with suppress(ValueError):  # not set yet
        copied.cell_contents = independent(value.cell_contents, memo)
    return copied


def _object(value: Any, memo: _Memo) -> Any:
    if outside(value):
        return value
    refusal = f"{type(value).__name__} objects cannot be copied"
    if isinstance(value, Iterator) and not hasattr(value, "__dict__"):
        raise TypeError(refusal)
    try:
        copied = memo[id(value)] = object.__new__(type(value))
    except TypeError:
        raise TypeError(refusal) from None
    _copy_attributes(value, copied, memo)
    for name, part in slots(value).items():
        object.__setattr__(copied, name, independent(part, memo))
    return copied
