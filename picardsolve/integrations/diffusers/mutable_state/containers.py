"""The kinds of places that hold other things: how each is read, compared, and put back."""

import types
from collections import deque
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

_OF_CLASSES = {"__dict__", "__weakref__", "__doc__", "__annotations__", "__annotate__", "__annotate_func__"}
_OF_CLASSES |= {"__annotations_cache__", "__orig_bases__", "__parameters__", "__dataclass_fields__"}


class Kind:
    """A kind of place that holds other things under keys."""

    named = False  # whether its keys are names, by which code finds what it holds
    leaf = False

    @staticmethod
    def read(obj: Any) -> Any:
        """What it holds, by key."""
        raise NotImplementedError

    @staticmethod
    def put(obj: Any, held: Any) -> bool:
        """Put back what it held; whether that was possible."""
        raise NotImplementedError

    @staticmethod
    def flat(obj: Any) -> Iterable[Any]:
        """What it holds, to be compared one by one."""
        raise NotImplementedError


class Dicts(Kind):
    """A dictionary."""

    @staticmethod
    def read(obj: dict) -> dict:
        """What it holds."""
        return dict(dict.items(obj))

    @staticmethod
    def put(obj: dict, held: dict) -> bool:
        """Put that back; whether it could be."""
        for key in [key for key in dict.keys(obj) if key not in held]:
            dict.__delitem__(obj, key)
        for key, value in held.items():
            if key not in obj or dict.__getitem__(obj, key) is not value:
                dict.__setitem__(obj, key, value)
        return True

    @staticmethod
    def flat(obj: dict) -> Iterable[Any]:
        """What it holds, one after the other."""
        return (*dict.keys(obj), *dict.values(obj))


class Keys(Dicts):
    """The keys of a dictionary, where its values are compared elsewhere."""

    @staticmethod
    def flat(obj: dict) -> Iterable[Any]:
        """What it holds, one after the other."""
        return dict.keys(obj)


class Names(Dicts):
    """An object's attributes."""

    named = True


class Lists(Kind):
    """A list or a deque."""

    @staticmethod
    def read(obj: Any) -> dict:
        """What it holds."""
        return dict(enumerate(obj))

    @staticmethod
    def put(obj: Any, held: dict) -> bool:
        """Put that back; whether it could be."""
        if isinstance(obj, deque):
            deque.clear(obj)
            deque.extend(obj, held.values())
        else:
            list.__setitem__(obj, slice(None), list(held.values()))
        return True

    @staticmethod
    def flat(obj: Any) -> Iterable[Any]:
        """What it holds, one after the other."""
        return obj


class Tuples(Lists):
    """What cannot change, but may hold what can."""

    @staticmethod
    def put(obj: Any, held: dict) -> bool:
        """Put that back; whether it could be."""
        return True


class Sets(Kind):
    """A set."""

    @staticmethod
    def read(obj: set) -> dict:
        """What it holds."""
        return {value: value for value in obj}

    @staticmethod
    def put(obj: set, held: dict) -> bool:
        """Put that back; whether it could be."""
        if set(obj) != held.keys():
            obj.clear()
            obj.update(held)
        return True

    @staticmethod
    def flat(obj: set) -> Iterable[Any]:
        """What it holds, one after the other."""
        return obj


class Slots(Kind):
    """An object's attributes, where its class names them."""

    named = True

    @staticmethod
    def read(obj: Any) -> dict:
        """What it holds."""
        names: list[str] = []
        for base in type(obj).__mro__:
            slots = base.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                private = name.startswith("__") and not name.endswith("__")
                names.append(f"_{base.__name__.lstrip('_')}{name}" if private else name)
        found = {}
        for name in names:
            try:
                found[name] = object.__getattribute__(obj, name)
            except AttributeError:
                continue
        found.pop("__dict__", None)
        found.pop("__weakref__", None)
        return found

    @staticmethod
    def put(obj: Any, held: dict) -> bool:
        """Put that back; whether it could be."""
        present = Slots.read(obj)
        try:
            for name in present.keys() - held.keys():
                object.__delattr__(obj, name)
            for name, value in held.items():
                if name not in present or present[name] is not value:
                    object.__setattr__(obj, name, value)
        except (AttributeError, TypeError):
            return False
        return True

    @staticmethod
    def flat(obj: Any) -> Iterable[Any]:
        """What it holds, one after the other."""
        held = Slots.read(obj)
        return (*held.keys(), *held.values())


class Cells(Kind):
    """A variable that a function closes over."""

    named = True

    @staticmethod
    def read(obj: types.CellType) -> dict:
        """What it holds."""
        try:
            return {"": obj.cell_contents}
        except ValueError:  # not set yet
            return {}

    @staticmethod
    def put(obj: types.CellType, held: dict) -> bool:
        """Put that back; whether it could be."""
        if held:
            obj.cell_contents = held[""]
        else:
            del obj.cell_contents
        return True

    @staticmethod
    def flat(obj: types.CellType) -> Iterable[Any]:
        """What it holds, one after the other."""
        return Cells.read(obj).values()


class Contexts(Kind):
    """A variable of the context."""

    @staticmethod
    def read(obj: ContextVar) -> dict:
        """What it holds."""
        nothing = object()
        value = obj.get(nothing)
        return {} if value is nothing else {"": value}

    @staticmethod
    def put(obj: ContextVar, held: dict) -> bool:
        """Put that back; whether it could be."""
        if held:
            obj.set(held[""])
        return bool(held) or not Contexts.read(obj)

    @staticmethod
    def flat(obj: ContextVar) -> Iterable[Any]:
        """What it holds, one after the other."""
        return Contexts.read(obj).values()


class Classes(Kind):
    """What a class keeps for all its objects."""

    named = True

    @staticmethod
    def read(obj: type) -> dict:
        """What it holds."""
        return {name: value for name, value in vars(obj).items() if name not in _OF_CLASSES}

    @staticmethod
    def put(obj: type, held: dict) -> bool:
        """Put that back; whether it could be."""
        present = Classes.read(obj)
        for name in present.keys() - held.keys():
            delattr(obj, name)
        for name, value in held.items():
            if name not in present or present[name] is not value:
                setattr(obj, name, value)
        return True

    @staticmethod
    def flat(obj: type) -> Iterable[Any]:
        """What it holds, one after the other."""
        return tuple(vars(obj).values())


@dataclass(frozen=True)
class Global:
    """A name in a module."""

    space: dict
    name: str


class Globals(Kind):
    """A variable of a module."""

    named = True

    @staticmethod
    def read(obj: Global) -> dict:
        """What it holds."""
        return {obj.name: obj.space[obj.name]} if obj.name in obj.space else {}

    @staticmethod
    def put(obj: Global, held: dict) -> bool:
        """Put that back; whether it could be."""
        if held:
            obj.space[obj.name] = held[obj.name]
        else:
            obj.space.pop(obj.name, None)
        return True

    @staticmethod
    def flat(obj: Global) -> Iterable[Any]:
        """What it holds, one after the other."""
        return Globals.read(obj).values()
