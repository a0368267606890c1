"""What is in reach of some objects: every place where something can change, and how code gets there.

The search follows attributes, slots, containers, bound methods, the variables that functions close over, the global
variables that they name, and the attributes of classes. Libraries are trusted to keep no state in globals and classes.
"""

import sys
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from functools import lru_cache, partial
from typing import Any, NamedTuple
from weakref import ReferenceType

import numpy as np
import torch
from torch import nn

from picardsolve.integrations.diffusers.mutable_state.kinds import (
    ATTRIBUTES,
    CLASS,
    CONTAINERS,
    GLOBAL,
    SLOTS,
    VARIABLES,
    GlobalVariable,
    Kind,
    Place,
)
from picardsolve.integrations.diffusers.mutable_state.tensors import TENSOR
from picardsolve.integrations.diffusers.mutable_state.values import VALUES
from picardsolve.integrations.diffusers.patches import PatchedForward, PatchedMethod

Holder = tuple[Any, Any]  # the identity of a place, and the key under which it holds something

# Libraries that keep no state in their globals and classes.
_TRUSTED = {
    *sys.stdlib_module_names,
    *("torch", "numpy", "diffusers", "transformers", "accelerate", "peft", "safetensors", "tokenizers", "triton"),
    *("huggingface_hub", "PIL", "tqdm", "scipy", "einops", "xformers", "picardsolve", "pytest", "_pytest", "pluggy"),
    *("hypothesis", "bitsandbytes", "torchao", "torchvision", "matplotlib", "pandas"),
}
# Libraries with objects that are no part of a denoiser's state, or that lead to everything there is.
_CLOSED = {
    *("torch", "numpy", "logging", "threading", "_thread", "ctypes", "subprocess", "asyncio", "warnings", "io", "_io"),
    *("tqdm", "tokenizers", "huggingface_hub", "picardsolve", "pytest", "_pytest", "pluggy", "hypothesis", "triton"),
    *("re", "inspect", "typing", "abc", "matplotlib", "PIL", "pandas", "importlib", "concurrent", "multiprocessing"),
}
_SCALARS = {type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, torch.Size}
_IMMUTABLE: tuple[type, ...] = (type(...), types.ModuleType, Enum, np.generic, torch.layout, torch.memory_format)
_IMMUTABLE += (ReferenceType, types.BuiltinFunctionType, types.WrapperDescriptorType, types.GetSetDescriptorType)
_is_immutable: dict[type, bool] = {}  # by class
_MAYBE_EMPTY = {dict, OrderedDict, list, set, deque}
_BUILT_IN = {dict, list, tuple, set, frozenset, deque}
_MOST = 400_000  # places; who reaches more is not watched


def trusted(name: str | None) -> bool:
    """Whether the globals and classes of a module hold no state."""
    return name is None or name.partition(".")[0] in _TRUSTED


def immutable(value: Any) -> bool:
    """Whether a value cannot change, nor lead to something that can."""
    cls = type(value)
    if cls is tuple:
        return all(type(part) in _SCALARS for part in value)
    if cls not in _is_immutable:
        _is_immutable[cls] = cls in _SCALARS or issubclass(cls, _IMMUTABLE)
    return _is_immutable[cls]


def outside(value: Any) -> bool:
    """Whether an object belongs to a library that keeps no state for others."""
    return _traits(type(value)).outside


class _Traits(NamedTuple):
    """What the search asks of a class.

    Attributes:
        outside: whether it belongs to a library that keeps no state for others.
        slotted: whether its objects may have attributes in slots.
        trusted: whether it holds no state itself.
    """

    outside: bool
    slotted: bool
    trusted: bool


@lru_cache(maxsize=4096)
def _traits(cls: type) -> _Traits:
    closed = cls.__module__.partition(".")[0] in _CLOSED and not issubclass(cls, nn.Module | threading.local)
    return _Traits(closed, any("__slots__" in vars(base) for base in cls.__mro__), trusted(cls.__module__))


def identity(obj: Any) -> Any:
    """What a place is known by; an object with attributes is known by their dictionary."""
    if type(obj) is GlobalVariable:
        return id(obj.space), obj.name
    if type(obj) in _BUILT_IN or type(obj) in _SCALARS or isinstance(obj, _KNOWN_BY_THEMSELVES):
        return id(obj)
    space = getattr(obj, "__dict__", None)
    return id(space) if type(space) is dict else id(obj)


_KNOWN_BY_THEMSELVES = (type, types.CellType, torch.Tensor, dict, list, set)


class Reachable:
    """Every place in reach of some roots.

    Attributes:
        places: by identity.
        holders: by identity, all the places that hold one, and under which keys.
        functions: in reach, by identity.
        classes: in reach whose attributes are places.
        owners: the class of an object, by the identity of its attributes.
        empty: containers that hold nothing: most of a module's.
        hidden: the holder of something with a position that cannot be read, or of what is too much; else None.
    """

    def __init__(self, roots: Mapping[str, Any], ignored: frozenset[Holder] = frozenset()):
        self.places: dict[Any, Place] = {}
        self.holders: dict[Any, list[Holder]] = {}
        self.functions: dict[int, types.FunctionType] = {}
        self.classes: list[type] = []
        self.owners: dict[Any, type] = {}
        self.empty: list[Any] = []
        self.hidden: Holder | None = None
        self._ignored = ignored
        self._todo: list[tuple[Any, Any, Any]] = [(root, None, name) for name, root in roots.items()]
        while self._todo and len(self.places) < _MOST:
            self._visit(*self._todo.pop())
        if self._todo:
            self.hidden = self._todo.pop()[1:]

    def path(self, holder: Holder) -> str:
        """Where something is, in words."""
        names: list[str] = []
        seen: set[Any] = set()
        ident, key = holder
        while True:
            if key not in ("", None):
                names.append(f"[{key}]" if isinstance(key, int) else str(key))
            if ident is None or ident in seen or ident not in self.holders:
                break
            seen.add(ident)
            ident, key = self.holders[ident][0]
        return ".".join(reversed([name for name in names if name not in ("_modules", "_parameters", "_buffers")]))

    def methods(self) -> dict[int, tuple[type, str]]:
        """The functions that belong to classes, by identity: the class, and the name there."""
        found: dict[int, tuple[type, str]] = {}
        for cls in self.classes:
            for name, value in vars(cls).items():
                parts = (value.fget, value.fset) if isinstance(value, property) else (value,)
                found.update((id(getattr(part, "__func__", part)), (cls, name)) for part in parts)
        return found

    # ---- the search

    def _visit(self, obj: Any, holder: Any, key: Any) -> None:
        if immutable(obj):
            return
        cls = type(obj)
        if cls in _MAYBE_EMPTY and not obj:
            self.empty.append(obj)
            return
        if cls not in _visits:
            _visits[cls] = next((visit for known, visit in _VISITS if issubclass(cls, known)), Reachable._object)
        visit = _visits[cls]
        if isinstance(visit, Kind):
            self._add(visit, obj, holder, key)
        else:
            visit(self, obj, holder, key)

    def _add(self, kind: Kind, obj: Any, holder: Any, key: Any) -> Any:
        """Add a place, once, and plan to visit what it holds; returns its identity."""
        ident = identity(obj)
        self.holders.setdefault(ident, []).append((holder, key))
        if ident not in self.places:
            place = self.places[ident] = Place(kind, obj)
            if kind.same is None:
                empty, todo, ignored = self.empty, self._todo, self._ignored
                for name, child in place.held.items():
                    cls = type(child)
                    if cls in _SCALARS or (ignored and (ident, name) in ignored):
                        continue
                    if cls in _MAYBE_EMPTY and not child:
                        empty.append(child)
                    else:
                        todo.append((child, ident, name))
        return ident

    def _container(self, obj: Any, holder: Any, key: Any) -> None:
        kind = next(kind for cls, kind in CONTAINERS.items() if isinstance(obj, cls))
        ident = self._add(kind, obj, holder, key)
        if type(obj) not in _BUILT_IN and getattr(obj, "__dict__", None):
            self._add(ATTRIBUTES, vars(obj), ident, "")

    def _class(self, obj: type, holder: Any, key: Any) -> None:
        if not trusted(obj.__module__):
            self.classes.append(obj)
            self._add(CLASS, obj, holder, key)
            self._todo += [(base, holder, key) for base in obj.__bases__]

    def _function(self, obj: types.FunctionType, holder: Any, key: Any) -> None:
        if id(obj) in self.functions:
            return
        self.functions[id(obj)] = obj
        cells = zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True)
        self._todo += [(cell, holder, name) for name, cell in cells]
        self._todo += [(part, holder, key) for part in (obj.__defaults__, obj.__kwdefaults__, obj.__dict__) if part]
        if not trusted(obj.__module__):
            for variable in _globals(obj):
                self._add(GLOBAL, variable, holder, variable.name)

    def _wrapper(self, obj: Any, holder: Any, key: Any) -> None:
        """What only leads to other objects."""
        self._todo += [(part, holder, key) for part in _parts(obj) if part is not None]

    def _object(self, obj: Any, holder: Any, key: Any) -> None:
        cls = type(obj)
        closed, slotted, known = _traits(cls)
        if closed:
            return
        if type(getattr(obj, "__dict__", None)) is dict:
            ident = self._add(ATTRIBUTES, vars(obj), holder, key)
            self.owners[ident] = cls
            if slotted:
                self._add(SLOTS, obj, ident, "")
        elif slotted:
            self._add(SLOTS, obj, holder, key)
        elif isinstance(obj, Iterator):
            self.hidden = holder, key
        if not known:
            self._todo.append((cls, holder, key))


def _parts(obj: Any) -> Iterable[Any]:
    if isinstance(obj, types.MethodType):
        return obj.__self__, obj.__func__
    if isinstance(obj, staticmethod | classmethod):
        return (obj.__func__,)
    if isinstance(obj, property):
        return obj.fget, obj.fset
    if isinstance(obj, partial):
        return obj.func, obj.args, obj.keywords
    return (obj.original,)  # of a patch


def _globals(function: types.FunctionType) -> list[GlobalVariable]:
    """The variables that a function names in its own module, and in the user's other ones."""
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    own = function.__globals__
    found = [GlobalVariable(own, name) for name in sorted(names) if name in own]
    for module in [own[name] for _, name in found if isinstance(own[name], types.ModuleType)]:
        if not trusted(module.__name__):
            found += [GlobalVariable(vars(module), name) for name in sorted(names) if name in vars(module)]
    return found


_WRAPPERS = (types.MethodType, staticmethod, classmethod, property, partial, PatchedForward, PatchedMethod)
_VISITS: list[tuple[Any, Any]] = [  # how objects of a class are visited: the kind of place that they are, or a method
    (torch.Tensor, TENSOR),
    *VALUES.items(),
    *VARIABLES.items(),
    (tuple(CONTAINERS), Reachable._container),
    (type, Reachable._class),
    (types.FunctionType, Reachable._function),
    (_WRAPPERS, Reachable._wrapper),
]
_visits: dict[type, Any] = {}  # by class
