"""What an object remembers: every place in its reach where something can change, as it was at one moment.

A walk over attributes, slots, containers, tensors, random generators, bound methods, what functions close over and the
globals that they name, and attributes of classes. Libraries are trusted to keep no memory in globals and classes.
"""

import random
import sys
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from enum import Enum
from functools import partial
from itertools import chain
from typing import Any
from weakref import ReferenceType

import numpy as np
import torch
from torch import Tensor, nn

from picardsolve.integrations.diffusers.mutable_state.containers import (
    Cells,
    Classes,
    Contexts,
    Dicts,
    Global,
    Globals,
    Keys,
    Kind,
    Lists,
    Names,
    Sets,
    Slots,
    Tuples,
)
from picardsolve.integrations.diffusers.mutable_state.values import BUFFERS, Arrays, Buffers, Draws, Tensors, alike
from picardsolve.integrations.diffusers.patches import PatchedForward, PatchedMethod

_TRUSTED = {
    *sys.stdlib_module_names,
    *("torch", "numpy", "diffusers", "transformers", "accelerate", "peft", "safetensors", "tokenizers", "triton"),
    *("huggingface_hub", "PIL", "tqdm", "scipy", "einops", "xformers", "picardsolve", "pytest", "_pytest", "pluggy"),
    *("hypothesis", "bitsandbytes", "torchao", "torchvision", "matplotlib", "pandas"),
}
# whose objects are no denoiser's memory, or lead to everything there is
_CLOSED = {
    *("torch", "numpy", "logging", "threading", "_thread", "ctypes", "subprocess", "asyncio", "warnings", "io", "_io"),
    *("tqdm", "tokenizers", "huggingface_hub", "picardsolve", "pytest", "_pytest", "pluggy", "hypothesis", "triton"),
    *("re", "inspect", "typing", "abc", "matplotlib", "PIL", "pandas", "importlib", "concurrent", "multiprocessing"),
}
_SCALARS = {type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, torch.Size}
_PLAIN: tuple[type, ...] = (type(...), types.ModuleType, Enum, np.generic, torch.layout, torch.memory_format)
_PLAIN += (ReferenceType, types.BuiltinFunctionType, types.WrapperDescriptorType, types.GetSetDescriptorType)
_MAYBE_EMPTY = {dict, OrderedDict, list, set, deque}
_BARE = {dict, list, tuple, set, frozenset, deque}
_IS_PLAIN: dict[type, bool] = {}
_MOST = 400_000  # places: who reaches more is not watched

Place = tuple[type[Kind], Any, Any]  # its kind, itself, and what it holds
Holder = tuple[Any, Any]  # the identity of a place, and the key under which it holds something


def trusted(name: str | None) -> bool:
    """Whether a module's globals and classes hold no memory."""
    return name is None or name.partition(".")[0] in _TRUSTED


def immutable(value: Any) -> bool:
    """Whether a value cannot change, or is none that a memory could be in."""
    cls = type(value)
    if cls not in _IS_PLAIN:
        _IS_PLAIN[cls] = cls in _SCALARS or issubclass(cls, _PLAIN)
    return _IS_PLAIN[cls]


def outside(value: Any) -> bool:
    """Whether an object belongs to a library that keeps no memory for others."""
    library = type(value).__module__.partition(".")[0]
    return library in _CLOSED and not isinstance(value, nn.Module | threading.local)


class Snapshot:
    """Everything in reach of some roots that can change, as it is now.

    Attributes:
        places: by identity.
        holders: by identity, all the places that hold one, and under which keys.
        functions: in reach.
        owners: the class of an object, by the identity of its attributes.
        hidden: whether some of it has a position that cannot be seen, or there is too much of it.
    """

    def __init__(self, roots: dict[str, Any], unread: frozenset[Holder] = frozenset()):
        self.places: dict[Any, Place] = {}
        self.holders: dict[Any, list[Holder]] = {}
        self.functions: dict[int, types.FunctionType] = {}
        self.owners: dict[Any, type] = {}
        self.hidden: Any = None
        self._empty: list[Any] = []  # dictionaries and lists that hold nothing: most of a module's
        self._roots, self._unread = roots, unread
        self._unread_of = {holder for holder, _ in unread}
        self._todo: list[tuple[Any, Any, Any]] = [(root, None, name) for name, root in roots.items()]
        while self._todo and len(self.places) < _MOST:
            self._visit(*self._todo.pop())
        if self._todo:
            self.hidden = self._todo.pop()[1:]
        self._values = [held for kind, _, held in self.places.values() if kind is Tensors]
        with torch.no_grad():
            self._copies = Tensors.copy(self._values)
        self._grouped()
        self._flat = self._flattened()

    # ---- comparing, and putting back

    def again(self, unread: frozenset[Holder] = frozenset()) -> "Snapshot":
        """The same roots' memory as it is now."""
        return Snapshot(self._roots, unread)

    @property
    def unchanged(self) -> bool:
        """Whether everything is the very same: quick, and False may also be said of equal things."""
        try:
            return (
                not any(self._empty)
                and self._flattened() == self._flat
                and Tensors.unchanged(self._values, self._copies)
            )
        except (RuntimeError, ValueError, TypeError):  # two tensors, or arrays, that are not the same object
            return False

    def changed(self, now: "Snapshot") -> list[Holder]:
        """Where it differs from what it is now."""
        compared: set[tuple[Any, Any]] = set()
        changes: list[Holder] = []
        for root, value in self._roots.items():
            self._compare(value, value, now, (None, root), compared, changes)
        for ident in self.places.keys() & now.places.keys():
            self._compare_places(ident, ident, now, compared, changes)
        return changes

    def put_back(self) -> bool:
        """Put everything back as it was; whether all of it could be."""
        for obj in self._empty:
            if obj:
                obj.clear()
        return all([kind.put(obj, held) for kind, obj, held in self.places.values()])

    def members(self) -> dict[int, tuple[Any, str]]:
        """The functions that belong to classes: which, and their names there."""
        found: dict[int, tuple[Any, str]] = {}
        for kind, cls, held in self.places.values():
            if kind is Classes:
                for name, value in held.items():
                    parts = (value.fget, value.fset) if isinstance(value, property) else (value,)
                    found.update((id(getattr(part, "__func__", part)), (cls, name)) for part in parts)
        return found

    def path(self, holder: Holder) -> str:
        """Where something is, in words."""
        names: list[str] = []
        seen: set[Any] = set()
        ident, key = holder
        while True:
            if key not in ("", None):
                names.append(str(key) if not isinstance(key, int) else f"[{key}]")
            if ident is None or ident in seen or ident not in self.holders:
                break
            seen.add(ident)
            ident, key = self.holders[ident][0]
        return ".".join(reversed([name for name in names if name not in ("_modules", "_parameters", "_buffers")]))

    def _compare(self, then: Any, other: Any, now: "Snapshot", at: Holder, compared: set, changes: list) -> None:
        a, b = _ident(then), _ident(other)
        if a in self.places or b in now.places:
            if a in self.places and b in now.places:
                if a != b:
                    self._compare_places(a, b, now, compared, changes, at)
            else:
                changes.append(at)
        elif then is not other and not (type(then) in _SCALARS and alike(then, other)) and not _same_call(then, other):
            changes.append(at)

    def _compare_places(
        self, a: Any, b: Any, now: "Snapshot", compared: set, changes: list, at: Holder | None = None
    ) -> None:
        if (a, b) in compared:
            return
        compared.add((a, b))
        (kind, _, held), (other_kind, _, holds) = self.places[a], now.places[b]
        if kind is not other_kind:
            changes.append(at or self.holders[a][0])
        elif kind.leaf:
            if not alike(held, holds):
                changes.append(at or self.holders[a][0])
        else:
            for key in [*held.keys(), *(key for key in holds if key not in held)]:
                if a in self._unread_of and (a, key) in self._unread:
                    continue
                if key not in held or key not in holds:
                    changes.append((a, key))
                else:
                    self._compare(held[key], holds[key], now, (a, key), compared, changes)

    def _flattened(self) -> list[Any]:
        """All that is held, in one list, to be compared by identity first."""
        parts: list[Iterable[Any]] = [chain.from_iterable(map(dict.values, self._dicts)), map(len, self._dicts)]
        for ident, kind, obj in self._others:
            if kind.leaf:
                held = kind.read(obj)
                parts.append((held.tobytes(),) if isinstance(held, np.ndarray) else (held,))
            elif ident in self._unread_of:
                parts.append([kv for kv in kind.read(obj).items() if (ident, kv[0]) not in self._unread])
            else:
                parts.append(kind.flat(obj))
        return list(chain.from_iterable(parts))

    def _grouped(self) -> None:
        """Attributes, which are most of it, apart from all others but tensors."""
        self._dicts, self._others = [], []
        for ident, (kind, obj, _) in self.places.items():
            if (kind is Names or (kind is Dicts and type(obj) is dict)) and ident not in self._unread_of:
                self._dicts.append(obj)
                if kind is Dicts:
                    self._others.append((ident, Keys, obj))
            elif kind is not Tensors:
                self._others.append((ident, kind, obj))

    # ---- the walk

    def _visit(self, obj: Any, holder: Any, key: Any) -> None:
        cls = type(obj)
        if immutable(obj):
            return
        if cls in _MAYBE_EMPTY and not obj:
            self._empty.append(obj)
            return
        enter = _ENTER.get(cls)
        if enter is None:
            enter = _ENTER[cls] = next((how for kinds, how in _HOW if issubclass(cls, kinds)), Snapshot._object)
        enter(self, obj, holder, key)

    def _add(self, kind: type[Kind], obj: Any, holder: Any, key: Any) -> Any:
        ident = _ident(obj)
        self.holders.setdefault(ident, []).append((holder, key))
        if ident not in self.places:
            held = kind.read(obj)
            self.places[ident] = kind, obj, held
            if not kind.leaf:
                skipped = ident in self._unread_of
                for name, child in held.items():
                    cls = type(child)
                    if cls in _SCALARS or (skipped and (ident, name) in self._unread):
                        continue
                    if cls in _MAYBE_EMPTY and not child:  # most of a module's
                        self._empty.append(child)
                    else:
                        self._todo.append((child, ident, name))
        return ident

    def _container(self, kind: type[Kind], obj: Any, holder: Any, key: Any) -> None:
        ident = self._add(kind, obj, holder, key)
        if type(obj) not in _BARE and getattr(obj, "__dict__", None):
            self._add(Names, vars(obj), ident, "")

    def _class(self, obj: type, holder: Any, key: Any) -> None:
        if not trusted(obj.__module__):
            self._add(Classes, obj, holder, key)
            self._todo += [(base, holder, key) for base in obj.__bases__]

    def _function(self, obj: types.FunctionType, holder: Any, key: Any) -> None:
        if id(obj) in self.functions:
            return
        self.functions[id(obj)] = obj
        self._todo += [
            (cell, holder, name) for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True)
        ]
        self._todo += [(part, holder, key) for part in (obj.__defaults__, obj.__kwdefaults__, obj.__dict__) if part]
        if not trusted(obj.__module__):
            for space, name in _globals(obj):
                self._add(Globals, Global(space, name), holder, name)

    def _cell(self, obj: types.CellType, holder: Any, key: Any) -> None:
        self._add(Cells, obj, holder, key)

    def _method(self, obj: types.MethodType, holder: Any, key: Any) -> None:
        self._todo += [(obj.__self__, holder, key), (obj.__func__, holder, key)]

    def _wrapped(self, obj: Any, holder: Any, key: Any) -> None:
        self._todo.append((obj.__func__, holder, key))

    def _property(self, obj: property, holder: Any, key: Any) -> None:
        self._todo += [(part, holder, key) for part in (obj.fget, obj.fset) if part is not None]

    def _partial(self, obj: partial, holder: Any, key: Any) -> None:
        self._todo += [(part, holder, key) for part in (obj.func, obj.args, obj.keywords)]

    def _patch(self, obj: Any, holder: Any, key: Any) -> None:
        self._todo.append((obj.original, holder, key))

    def _iterator(self, obj: Iterator, holder: Any, key: Any) -> None:
        self.hidden = holder, key

    def _object(self, obj: Any, holder: Any, key: Any) -> None:
        cls = type(obj)
        if outside(obj):
            return
        if type(getattr(obj, "__dict__", None)) is dict:
            ident = self._add(Names, vars(obj), holder, key)
            self.owners[ident] = cls
            if any("__slots__" in vars(base) for base in cls.__mro__):
                self._add(Slots, obj, ident, "")
        elif any("__slots__" in vars(base) for base in cls.__mro__):
            self._add(Slots, obj, holder, key)
        elif isinstance(obj, Iterator):
            self._iterator(obj, holder, key)
        if not trusted(cls.__module__):
            self._todo.append((cls, holder, key))


def _ident(obj: Any) -> Any:
    """What a place is known by."""
    if type(obj) is Global:
        return id(obj.space), obj.name
    kinds = type(obj)
    if kinds in _BARE or kinds in _SCALARS or isinstance(obj, type | types.CellType | Tensor | dict | list | set):
        return id(obj)
    space = getattr(obj, "__dict__", None)
    return id(space) if type(space) is dict else id(obj)


def _same_call(then: Any, other: Any) -> bool:
    """Whether two things that hold no places do the same: methods of one object are made anew for every look."""
    if isinstance(then, types.MethodType) and isinstance(other, types.MethodType):
        return then.__func__ is other.__func__ and then.__self__ is other.__self__
    return type(then) in _SCALARS and type(then) is type(other) and then == other


def _globals(function: types.FunctionType) -> list[tuple[dict, str]]:
    """The variables that a function names in its own module, and in the user's other ones."""
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    own = function.__globals__
    found = [(own, name) for name in sorted(names) if name in own]
    for module in [own[name] for _, name in found if isinstance(own[name], types.ModuleType)]:
        if not trusted(module.__name__):
            found += [(vars(module), name) for name in sorted(names) if name in vars(module)]
    return found


_HOW: list[tuple[Any, Any]] = [
    ((PatchedForward, PatchedMethod), Snapshot._patch),
    (Tensor, lambda self, *at: self._add(Tensors, *at)),
    (np.ndarray, lambda self, *at: self._add(Arrays, *at)),
    (
        (torch.Generator, random.Random, np.random.Generator, np.random.BitGenerator, np.random.RandomState),
        lambda self, *at: self._add(Draws, *at),
    ),
    (BUFFERS, lambda self, *at: self._add(Buffers, *at)),
    (ContextVar, lambda self, *at: self._add(Contexts, *at)),
    (dict, lambda self, *at: self._container(Dicts, *at)),
    ((list, deque), lambda self, *at: self._container(Lists, *at)),
    ((tuple, frozenset), lambda self, *at: self._container(Tuples, *at)),
    (set, lambda self, *at: self._container(Sets, *at)),
    (type, Snapshot._class),
    (types.FunctionType, Snapshot._function),
    (types.CellType, Snapshot._cell),
    (types.MethodType, Snapshot._method),
    ((staticmethod, classmethod), Snapshot._wrapped),
    (property, Snapshot._property),
    (partial, Snapshot._partial),
]
_ENTER: dict[type, Any] = {}


def random_generators() -> dict[str, Any]:
    """The random generators of the process."""
    found: dict[str, Any] = {"torch's random numbers": torch.default_generator}
    if torch.cuda.is_initialized():
        found |= {f"random numbers of cuda:{k}": g for k, g in enumerate(torch.cuda.default_generators)}
    found["numpy's random numbers"] = np.random.mtrand._rand
    found["python's random numbers"] = random._inst  # pyright: ignore
    return found
