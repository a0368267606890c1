"""Places that hold other objects: attributes, containers, variables. Each keeps its content as it was."""

import types
from collections import deque
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, ClassVar, Literal, NamedTuple

_NOT_STATE = {"__dict__", "__weakref__", "__doc__", "__annotations__", "__annotate__", "__annotate_func__"}
_NOT_STATE |= {"__annotations_cache__", "__orig_bases__", "__parameters__", "__dataclass_fields__"}


class Place:
    """An object whose content can change, with its content at the time when the place was made.

    Attributes:
        obj: the object.
        held: its content then, by key; a leaf's is one value.
        leaf: whether its content is a value, not other objects.
        named_by: how code names the content: by the place's own keys (attributes, global variables), by the key under
            which the place itself is found (variables of a closure), or not at all (elements of a list).
    """

    leaf: ClassVar[bool] = False
    named_by: ClassVar[Literal["key", "holder"] | None] = None

    def __init__(self, obj: Any):
        self.obj = obj
        self.held: Any = self.read()

    def read(self) -> Any:
        """The present content."""
        raise NotImplementedError

    def live(self) -> tuple[Iterable[Any], ...]:
        """Iterables that give the present content whenever they are iterated."""
        return (self,)

    def __iter__(self) -> Iterator[Any]:
        content = self.read()
        return iter((*content, *content.values()))

    def same_as(self, now: Any) -> bool:
        """Of a leaf: whether a later place holds the same value."""
        raise NotImplementedError

    def restore(self) -> bool:
        """Put back the content of then; whether that was possible."""
        now = self.read()
        try:
            for key in [key for key in now if key not in self.held]:
                self._delete(key)
            for key, value in self.held.items():
                if key not in now or now[key] is not value:
                    self._set(key, value)
        except (AttributeError, TypeError):
            return False
        return True

    def _set(self, key: Any, value: Any) -> None:
        raise NotImplementedError

    def _delete(self, key: Any) -> None:
        raise NotImplementedError


class DictPlace(Place):
    """A dictionary."""

    def read(self) -> dict:
        """Its values by their keys."""
        return dict(dict.items(self.obj))

    def live(self) -> tuple[Iterable[Any], ...]:
        """Its keys and its values."""
        return dict.keys(self.obj), dict.values(self.obj)

    def _set(self, key: Any, value: Any) -> None:
        dict.__setitem__(self.obj, key, value)

    def _delete(self, key: Any) -> None:
        dict.__delitem__(self.obj, key)


class AttributesPlace(DictPlace):
    """The attributes of an object: its ``__dict__``."""

    named_by = "key"

    def live(self) -> tuple[Iterable[Any], ...]:
        """Its values; there are too many attributes to look at the names, too."""
        return (self.obj.values(),)


class ListPlace(Place):
    """A list or a deque."""

    def read(self) -> dict:
        """Its elements by their indices."""
        return dict(enumerate(self.obj))

    def live(self) -> tuple[Iterable[Any], ...]:
        """Its elements."""
        return (self.obj,)

    def restore(self) -> bool:
        """Put back the elements."""
        if isinstance(self.obj, deque):
            deque.clear(self.obj)
            deque.extend(self.obj, self.held.values())
        else:
            list.__setitem__(self.obj, slice(None), list(self.held.values()))
        return True


class TuplePlace(ListPlace):
    """A tuple or a frozen set: it does not change, but its elements may."""

    def live(self) -> tuple[Iterable[Any], ...]:
        """Nothing that could change."""
        return ()

    def restore(self) -> bool:
        """Nothing to do."""
        return True


class SetPlace(Place):
    """A set."""

    def read(self) -> dict:
        """Its elements."""
        return {element: element for element in self.obj}

    def live(self) -> tuple[Iterable[Any], ...]:
        """Its elements."""
        return (self.obj,)

    def restore(self) -> bool:
        """Put back the elements."""
        if set(self.obj) != self.held.keys():
            self.obj.clear()
            self.obj.update(self.held)
        return True


class SlotsPlace(Place):
    """The attributes of an object that are named in ``__slots__``."""

    named_by = "key"

    def read(self) -> dict:
        """Its attributes by their names."""
        return slots(self.obj)

    def _set(self, key: str, value: Any) -> None:
        object.__setattr__(self.obj, key, value)

    def _delete(self, key: str) -> None:
        object.__delattr__(self.obj, key)


class CellPlace(Place):
    """A variable that a function closes over."""

    named_by = "holder"

    def read(self) -> dict:
        """Its value; nothing before it is set."""
        try:
            return {"": self.obj.cell_contents}
        except ValueError:
            return {}

    def _set(self, key: str, value: Any) -> None:
        self.obj.cell_contents = value

    def _delete(self, key: str) -> None:
        del self.obj.cell_contents


class ContextPlace(Place):
    """A variable of the context."""

    def read(self) -> dict:
        """Its value; nothing where it has none."""
        unset = object()
        value = self.obj.get(unset)
        return {} if value is unset else {"": value}

    def _set(self, key: str, value: Any) -> None:
        self.obj.set(value)

    def _delete(self, key: str) -> None:
        raise TypeError("a context variable cannot be unset")


class ClassPlace(Place):
    """What a class keeps for all its objects."""

    named_by = "key"

    def read(self) -> dict:
        """Its attributes by their names."""
        return {name: value for name, value in vars(self.obj).items() if name not in _NOT_STATE}

    def live(self) -> tuple[Iterable[Any], ...]:
        """Its values."""
        return (vars(self.obj).values(),)

    def _set(self, key: str, value: Any) -> None:
        setattr(self.obj, key, value)

    def _delete(self, key: str) -> None:
        delattr(self.obj, key)


class GlobalVariable(NamedTuple):
    """A variable of a module: the module's dictionary, and the name."""

    space: dict
    name: str


class GlobalPlace(Place):
    """A variable of a module."""

    named_by = "key"

    def read(self) -> dict:
        """Its value; nothing where it is not defined."""
        space, name = self.obj
        return {name: space[name]} if name in space else {}

    def _set(self, key: str, value: Any) -> None:
        self.obj.space[key] = value

    def _delete(self, key: str) -> None:
        del self.obj.space[key]


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


CONTAINERS: dict[type, type[Place]] = {
    dict: DictPlace,
    list: ListPlace,
    deque: ListPlace,
    tuple: TuplePlace,
    frozenset: TuplePlace,
    set: SetPlace,
}
VARIABLES: dict[type, type[Place]] = {types.CellType: CellPlace, ContextVar: ContextPlace}
