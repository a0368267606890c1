"""The kinds of places that hold values: tensors, arrays, random generators."""

import ctypes
import pickle
import random
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state.containers import Kind

WHOLE = 1 << 11  # elements up to which a tensor's values are compared whole
_KEPT = 1 << 24  # elements up to which a tensor can be put back
_SAMPLED = 128  # elements that are looked at of a larger one
NEAR = 1e-12  # numbers that are divided and multiplied by the same are not changed

BUFFERS = bytearray, array, *ctypes.c_int.__mro__[1:-1], ctypes.Structure, ctypes.Array


@dataclass
class Values:
    """A tensor as it was.

    Attributes:
        tensor: itself.
        version: how often it had been written to.
        pointer: where its values were.
        form: type, device, shape, layout.
        view: its elements, or some of a large one's; None where there are none to see.
        strided: whether the view is a copy, since its elements do not lie in a row.
        seen: a copy of them.
        whole: a copy of all; None of a large parameter, or of what is huge.
    """

    tensor: Tensor
    version: int | None
    pointer: int
    form: tuple
    view: Tensor | None = field(default=None, repr=False)
    strided: bool = False
    seen: Tensor | None = field(default=None, repr=False)
    whole: Tensor | None = field(default=None, repr=False)

    @property
    def untouched(self) -> bool:
        """Whether it is where it was, and nobody was seen to write to it."""
        return self.version == _version(self.tensor) and self.pointer == _pointer(self.tensor)


Seen = tuple[list[Values], Tensor]


class Tensors(Kind):
    """A tensor: its values."""

    leaf = True

    @staticmethod
    def read(obj: Tensor) -> Values:
        """All but the copies."""
        values = Values(obj, _version(obj), _pointer(obj), (obj.dtype, obj.device, obj.shape, obj.layout))
        if values.pointer and not obj.is_meta and obj.layout == torch.strided:
            flat = obj.detach().reshape(-1)
            values.view = flat if len(flat) <= WHOLE else flat[:: len(flat) // _SAMPLED]
            values.strided = not obj.is_contiguous()
            if len(flat) > WHOLE and not isinstance(obj, torch.nn.Parameter) and len(flat) <= _KEPT:
                values.whole = flat.clone()
        return values

    @staticmethod
    def copy(values: list[Values]) -> list[Seen]:
        """Copy what is seen of all of them, in few operations: the values, and their copies in one tensor."""
        copies = []
        for group in _groups(values):
            joined = torch.cat(_views(group))
            sizes = [len(value.view) for value in group if value.view is not None]
            for value, seen in zip(group, joined.split(sizes), strict=True):
                value.seen = seen
                if len(seen) == value.tensor.numel():
                    value.whole = seen
            copies.append((group, joined))
        return copies

    @staticmethod
    def unchanged(values: list[Values], copies: list[Seen]) -> bool:
        """Whether all are where they were, with the values that they had."""
        try:
            versions = [value.tensor._version for value in values]
            pointers = [value.tensor.data_ptr() for value in values]
            untouched = versions == [value.version for value in values] and pointers == [
                value.pointer for value in values
            ]
        except (RuntimeError, NotImplementedError, TypeError):  # of inference mode, or without a place of their own
            untouched = all([value.untouched for value in values])
        if not untouched:
            return False
        return all(equal(torch.cat(_views(group)), joined) for group, joined in copies)

    @staticmethod
    def put(obj: Tensor, held: Values) -> bool:
        """Put that back; whether it could be."""
        now = Tensors.read(obj)
        Tensors.copy([now])
        if alike(held, now):
            return True
        if held.whole is None or now.form != held.form:
            return False
        with torch.no_grad():
            obj.data.copy_(held.whole.reshape(obj.shape))
        return True


def _groups(values: list[Values]) -> list[list[Values]]:
    groups: dict[Any, list[Values]] = {}
    for value in values:
        if value.view is not None:
            groups.setdefault((value.view.dtype, value.view.device), []).append(value)
    return list(groups.values())


def _views(group: list[Values]) -> list[Tensor]:
    """What is seen now."""
    return [_strided(value) if value.strided else value.view for value in group if value.view is not None]


def _strided(value: Values) -> Tensor:
    flat = value.tensor.detach().reshape(-1)
    return flat if len(flat) <= WHOLE else flat[:: len(flat) // _SAMPLED]


def _pointer(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError, TypeError):
        return 0


class Arrays(Kind):
    """An array of numpy."""

    leaf = True

    @staticmethod
    def read(obj: np.ndarray) -> np.ndarray:
        """What it holds."""
        return obj.copy()

    @staticmethod
    def put(obj: np.ndarray, held: np.ndarray) -> bool:
        """Put that back; whether it could be."""
        if obj.shape != held.shape or not obj.flags.writeable:
            return alike(obj, held)
        obj[...] = held
        return True


class Buffers(Kind):
    """Bytes in a row: ``bytearray``, ``array.array``, and the data of ``ctypes``."""

    leaf = True

    @staticmethod
    def read(obj: Any) -> bytes:
        """What it holds."""
        return bytes(obj)

    @staticmethod
    def put(obj: Any, held: bytes) -> bool:
        """Put that back; whether it could be."""
        if isinstance(obj, bytearray):
            obj[:] = held
        elif isinstance(obj, array):
            del obj[:]
            obj.frombytes(held)
        else:
            ctypes.memmove(ctypes.addressof(obj), held, len(held))
        return True


@dataclass(frozen=True)
class State:
    """The state of a random generator, and what tells it from others."""

    mark: Any
    state: Any = field(compare=False, repr=False)


class Draws(Kind):
    """A generator of random numbers: its state."""

    leaf = True

    @staticmethod
    def read(obj: Any) -> State:
        """What it holds."""
        if isinstance(obj, torch.Generator):
            state = obj.get_state()
            return State(state.numpy().tobytes(), state)
        if isinstance(obj, random.Random):
            return State(obj.getstate(), obj.getstate())
        legacy = isinstance(obj, np.random.RandomState)
        state = obj.get_state(legacy=False) if legacy else Draws._bits(obj).state
        return State(pickle.dumps(state), state)

    @staticmethod
    def put(obj: Any, held: State) -> bool:
        """Put that back; whether it could be."""
        if isinstance(obj, torch.Generator):
            obj.set_state(held.state)
        elif isinstance(obj, random.Random):
            obj.setstate(held.state)
        elif isinstance(obj, np.random.RandomState):
            obj.set_state(held.state)
        else:
            Draws._bits(obj).state = held.state
        return True

    @staticmethod
    def _bits(obj: Any) -> Any:
        return obj.bit_generator if isinstance(obj, np.random.Generator) else obj


def equal(a: Tensor, b: Tensor) -> bool:
    """Equal in shape and in every element; NaN is equal to NaN."""
    if torch.equal(a, b):
        return True
    return a.shape == b.shape and a.is_floating_point() and bool(((a == b) | (a.isnan() & b.isnan())).all())


def version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None in inference mode, where torch does not count."""
    return None if tensor.is_inference() else tensor._version


def _version(tensor: Tensor) -> int | None:
    try:
        return version(tensor)
    except RuntimeError:
        return None


def alike(then: Any, now: Any) -> bool:
    """Whether two values that hold no places are the same; numbers up to rounding."""
    if then is now:
        return True
    if isinstance(then, Values) and isinstance(now, Values):
        return _alike_tensors(then, now)
    if type(then) is not type(now):
        return False
    if isinstance(then, Tensor):
        return equal(then, now)
    if isinstance(then, np.ndarray):
        return then.dtype == now.dtype and np.array_equal(then, now, equal_nan=then.dtype.kind in "fc")
    if isinstance(then, float):
        return then == now or (then != then and now != now) or abs(then - now) <= NEAR * abs(then)
    try:
        return bool(then == now)
    except (RuntimeError, ValueError, TypeError):
        return False


def _alike_tensors(then: Values, now: Values) -> bool:
    if then.form != now.form or (then.seen is None) != (now.seen is None):
        return False
    if then.seen is None or now.seen is None:
        return then.version == now.version or then.tensor is not now.tensor
    if not equal(then.seen, now.seen):
        return False
    if len(then.seen) == now.tensor.numel() or then.tensor is not now.tensor or then.version == now.version:
        return True  # a large one that was moved, or that nobody was seen to write to, is known by its sample
    return then.whole is not None and now.whole is not None and equal(then.whole, now.whole)
