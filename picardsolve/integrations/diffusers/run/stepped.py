"""What a step returns where a table took it: the next state, and all else only when it is read."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from diffusers.utils.outputs import BaseOutput
from torch import Tensor


def stepped_like(real: Any, state: Tensor, read: Callable[[], Any]) -> Any:
    """A step's result of the same kind as ``real``, with another state; ``read`` computes a real one."""
    if isinstance(real, BaseOutput):
        made = _lazy(getattr(type(real), "real", type(real)))(prev_sample=state)
        made.__dict__["_read"] = read
        return made
    if len(real) == 1:
        return (state,)
    made = _LazyTuple((state, *[None] * (len(real) - 1)))
    made.read = read
    return made


def state_of(stepped: Any) -> Any:
    """The next state in a step's result."""
    return stepped[0] if isinstance(stepped, tuple) else getattr(stepped, "prev_sample", None)


def with_state(stepped: Any, state: Tensor) -> Any:
    """The same result with another state."""
    if isinstance(stepped, BaseOutput):
        made = type(stepped)(**{**stepped, "prev_sample": state})
        if "_read" in stepped.__dict__:
            made.__dict__["_read"] = stepped.__dict__["_read"]
        return made
    return stepped_like(stepped, state, stepped.read) if isinstance(stepped, _LazyTuple) else (state, *stepped[1:])


class _LazyTuple(tuple):
    read: Callable[[], Any]

    def __getitem__(self, index: Any) -> Any:
        return tuple.__getitem__(self, 0) if index == 0 else tuple(iter(self))[index]

    def __iter__(self) -> Iterator[Any]:
        return iter((self[0], *self.read()[1:]))


@cache
def _lazy(cls: Any) -> Any:
    """A class of results whose fields are computed when they are read, but for the state."""

    class Lazy(cls):
        real = cls

        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            read = super().__getattribute__("__dict__").get("_read")
            return value if value is not None or read is None or name not in cls.__dataclass_fields__ else read()[name]

        def __getitem__(self, key: Any) -> Any:
            return self.prev_sample if key in (0, "prev_sample") else self.__dict__["_read"]()[key]

        def to_tuple(self) -> tuple[Any, ...]:
            return (self.prev_sample, *self.__dict__["_read"]().to_tuple()[1:])

    return Lazy
