"""The kinds of places that hold other objects: how each is read, looked at, and put back."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import CellType
from typing import Any, Literal, NamedTuple

_NOT_STATE = {"__dict__", "__weakref__", "__doc__", "__annotations__", "__annotate__", "__annotate_func__"}
_NOT_STATE |= {"__annotations_cache__", "__orig_bases__", "__parameters__", "__dataclass_fields__"}


def _keys_and_values(content: dict) -> Iterable[Any]:
    return *content, *content.values()


def _refused(*_: Any) -> Any:
    raise TypeError("this cannot be put back")


@dataclass(frozen=True)
class Kind:
    """How one kind of place is read, looked at and put back.

    Attributes:
        read: the content of an object: objects by key, of a leaf one value.
        live: of an object and its content, iterables that give the present content whenever they are iterated; None
            where it must be read again.
        flat: what of the content is compared in a look that reads it again.
        put: puts one object back under its key.
        delete: takes away what is held under a key.
        put_all: puts everything back at once, and says whether that was possible; instead of ``put`` and ``delete``.
        same: whether two values of a leaf are the same; None of what is no leaf.
        named_by: how code names what is held: by the key (attributes, global variables), by the key under which the
            place itself is found (variables of a closure), or not at all (elements of a list).
    """

    read: Callable[[Any], Any]
    live: Callable[[Any, Any], tuple[Iterable[Any], ...]] | None = None
    flat: Callable[[Any], Iterable[Any]] = _keys_and_values
    put: Callable[[Any, Any, Any], Any] = _refused
    delete: Callable[[Any, Any], Any] = _refused
    put_all: Callable[[Any, Any], bool] | None = None
    same: Callable[[Any, Any], bool] | None = None
    named_by: Literal["key", "holder"] | None = None


class Place:
    """An object whose content can change, with its content at the time when the place was made.

    Attributes:
        kind: what kind of place it is.
        obj: the object.
        held: its content then.
    """

    def __init__(self, kind: Kind, obj: Any):
        self.kind, self.obj, self.held = kind, obj, kind.read(obj)

    def live(self) -> tuple[Iterable[Any], ...]:
        """Iterables that give the present content whenever they are iterated."""
        return (self,) if self.kind.live is None else self.kind.live(self.obj, self.held)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.kind.flat(self.kind.read(self.obj)))

    def same_as(self, now: "Place") -> bool:
        """Whether a later place of the same kind holds the same value; True of what is no leaf."""
        return self.kind.same is None or self.kind.same(self.held, now.held)

    def restore(self) -> bool:
        """Put the content of then back; whether that was possible."""
        if self.kind.put_all is not None:
            return self.kind.put_all(self.obj, self.held)
        now = self.kind.read(self.obj)
        try:
            for key in [key for key in now if key not in self.held]:
                self.kind.delete(self.obj, key)
            for key, value in self.held.items():
                if key not in now or now[key] is not value:
                    self.kind.put(self.obj, key, value)
        except (AttributeError, TypeError):
            return False
        return True


class GlobalVariable(NamedTuple):
    """A variable of a module: the module's dictionary, and the name."""

    space: dict
    name: str


def slots(obj: Any) -> dict[str, Any]:
    """An object's attributes that the ``__slots__`` of its class name."""
    found: dict[str, Any] = {}
    for base in type(obj).__mro__:
        own = base.__dict__.get("__slots__", ())
        for name in (own,) if isinstance(own, str) else own:
            private = name.startswith("__") and not name.endswith("__")
            mangled = f"_{base.__name__.lstrip('_')}{name}" if private else name
            if mangled not in ("__dict__", "__weakref__"):
                try:
                    found[mangled] = object.__getattribute__(obj, mangled)
                except AttributeError:  # not set yet
                    continue
    return found


def _in_cell(cell: CellType) -> dict:
    try:
        return {"": cell.cell_contents}
    except ValueError:  # not set yet
        return {}


def _in_context(variable: ContextVar) -> dict:
    unset = object()
    value = variable.get(unset)
    return {} if value is unset else {"": value}


def _put_elements(obj: Any, held: dict) -> bool:
    if isinstance(obj, deque):
        deque.clear(obj)
        deque.extend(obj, held.values())
    else:
        list.__setitem__(obj, slice(None), list(held.values()))
    return True


def _put_members(obj: set, held: dict) -> bool:
    if set(obj) != held.keys():
        obj.clear()
        obj.update(held)
    return True


DICT = Kind(
    read=lambda obj: dict(dict.items(obj)),
    live=lambda obj, _: (dict.keys(obj), dict.values(obj)),
    put=dict.__setitem__,
    delete=dict.__delitem__,
)
ATTRIBUTES = replace(
    DICT, live=lambda obj, _: (obj.values(),), named_by="key"
)  # there are too many names to compare them
SLOTS = Kind(slots, put=object.__setattr__, delete=object.__delattr__, named_by="key")
CLASS = Kind(
    read=lambda cls: {name: value for name, value in vars(cls).items() if name not in _NOT_STATE},
    live=lambda cls, _: (vars(cls).values(),),
    put=setattr,
    delete=delattr,
    named_by="key",
)
GLOBAL = Kind(
    read=lambda variable: {variable.name: variable.space[variable.name]} if variable.name in variable.space else {},
    put=lambda variable, name, value: variable.space.__setitem__(name, value),
    delete=lambda variable, name: variable.space.__delitem__(name),
    named_by="key",
)
CELL = Kind(
    read=_in_cell,
    put=lambda cell, _, value: setattr(cell, "cell_contents", value),
    delete=lambda cell, _: delattr(cell, "cell_contents"),
    named_by="holder",
)
CONTEXT = Kind(_in_context, put=lambda variable, _, value: variable.set(value))
LIST = Kind(lambda obj: dict(enumerate(obj)), live=lambda obj, _: (obj,), put_all=_put_elements)
TUPLE = replace(LIST, live=lambda *_: (), put_all=lambda *_: True)  # it cannot change, but its elements may
SET = Kind(lambda obj: {member: member for member in obj}, live=lambda obj, _: (obj,), put_all=_put_members)

CONTAINERS: dict[type, Kind] = {dict: DICT, list: LIST, deque: LIST, tuple: TUPLE, frozenset: TUPLE, set: SET}
VARIABLES: dict[type, Kind] = {CellType: CELL, ContextVar: CONTEXT}
