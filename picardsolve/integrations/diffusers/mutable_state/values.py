"""Places that hold values: tensors, arrays, bytes, random generators; and when two values are the same."""

import ctypes
import random
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state.places import Place

_WHOLE = 1 << 11  # elements up to which all of a tensor's values are compared
_SAMPLED = 128  # elements that are compared of a larger tensor
_KEPT = 1 << 24  # elements up to which a larger tensor is copied, to be restored
_NEAR = 1e-12  # relative; a number that is multiplied and divided by the same has not changed

_WHOLE_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
BUFFERS = bytearray, array, *ctypes.c_int.__mro__[1:-1], ctypes.Structure, ctypes.Array
GENERATORS = torch.Generator, random.Random, np.random.Generator, np.random.BitGenerator, np.random.RandomState


class Leaf(Place):
    """A place that holds one value."""

    leaf = True

    def __iter__(self) -> Iterator[Any]:
        yield self.read()

    def same_as(self, now: Any) -> bool:
        """Whether another place of this class holds the same value."""
        return same_value(self.held, now.held)


class TensorPlace(Leaf):
    """A tensor. Its values are copied, and looked at, together with those of others: see `Tensors`.

    Attributes:
        version: how often it had been written to; None where torch does not count that.
        pointer: where its values were; 0 where that is unknown.
        form: type, device, shape and layout.
        readable: whether it has values that can be read.
        in_a_row: whether they lie in a row, so that a view of them shows later changes.
        held: a copy of its values, of a large tensor of some of them.
        whole: a copy of all its values; None of a large parameter, and of what is too large to be kept.
    """

    def __init__(self, obj: Tensor):
        self.obj, self.held, self.whole = obj, None, None
        self.version, self.pointer = version(obj), _pointer(obj)
        self.form = obj.dtype, obj.device, obj.shape, obj.layout
        self.in_a_row = self.readable = False
        if self.pointer and not obj.is_meta and not obj.is_quantized and obj.layout == torch.strided:
            self.readable = True
            as_stored = not (obj.is_conj() or obj.is_neg()) and obj.element_size() in _WHOLE_NUMBERS
            self.in_a_row = obj.is_contiguous() and as_stored
            if _WHOLE < obj.numel() <= _KEPT and not isinstance(obj, torch.nn.Parameter):
                self.whole = obj.detach().reshape(-1).clone()

    def live(self) -> tuple[()]:
        """Nothing: its values are read by `Tensors`."""
        return ()

    def bits(self) -> Tensor:
        """The present values, of a large tensor some of them, as whole numbers."""
        flat = self.obj.detach().resolve_conj().resolve_neg().reshape(-1)
        flat = flat if flat.numel() <= _WHOLE else flat[:: flat.numel() // _SAMPLED]
        if flat.element_size() not in _WHOLE_NUMBERS:  # complex numbers of double precision
            flat = torch.view_as_real(flat.contiguous()).flatten()
        return flat.view(_WHOLE_NUMBERS[flat.element_size()])

    def same_as(self, now: "TensorPlace") -> bool:
        """Whether the tensor, or the one in its place, has the same values.

        A large tensor that nobody was seen to write to is judged by a sample; so is a large one that was replaced.
        """
        if self.form != now.form or (self.held is None) != (now.held is None):
            return False
        if self.held is None:
            return self.version == now.version or self.obj is not now.obj
        if not equal(self.held, now.held):
            return False
        if self.held.numel() == self.obj.numel() or self.obj is not now.obj or self.version == now.version:
            return True
        return self.whole is not None and now.whole is not None and equal(self.whole, now.whole)

    def restore(self) -> bool:
        """Put back the values, if a copy was kept."""
        now = TensorPlace(self.obj)
        Tensors([now])
        if self.same_as(now):
            return True
        if self.whole is None or now.form != self.form:
            return False
        with torch.no_grad():
            self.obj.data.copy_(self.whole.reshape(self.obj.shape))
        return True


class Tensors:
    """All tensors among some places: their values are read in few operations."""

    def __init__(self, found: Iterable[Place]):
        places = [place for place in found if isinstance(place, TensorPlace)]
        self._counted = [place.obj for place in places if place.version is not None]
        self._versions = [place.version for place in places if place.version is not None]
        self._stored = [place.obj for place in places if place.pointer]
        self._pointers = [place.pointer for place in places if place.pointer]
        groups: dict[Any, list[TensorPlace]] = {}
        for place in places:
            if place.readable:  # torch.cat is fast for tensors of one type that all lie in a row
                form = place.obj.element_size(), place.obj.device, place.obj.numel() <= _WHOLE
                groups.setdefault(form, []).append(place)
        self._groups = [_Group(group) for group in groups.values()]

    @property
    def unchanged(self) -> bool:
        """Whether no tensor was seen to be written to or moved, and the values that are looked at are the same."""
        return (
            [tensor._version for tensor in self._counted] == self._versions
            and [tensor.data_ptr() for tensor in self._stored] == self._pointers
            and all(group.unchanged for group in self._groups)
        )


class _Group:
    """Tensors whose values are read in one operation, as whole numbers with the same bits."""

    def __init__(self, places: list[TensorPlace]):
        self._views = [place.bits() for place in places]
        # values that do not lie in a row are copied to be read: the view shows no later change
        self._copied = [(k, place) for k, place in enumerate(places) if not place.in_a_row]
        joined = torch.cat(self._views)
        for place, part in zip(places, joined.split([view.numel() for view in self._views]), strict=True):
            place.held = held = part.view(place.form[0])
            if held.numel() == place.obj.numel():
                place.whole = held
        self._on_host = joined.device.type == "cpu"  # where numpy reads many small pieces faster than torch
        self._then: Any = joined.numpy() if self._on_host else joined
        self._arrays = [view.numpy() for view in self._views] if self._on_host else []

    @property
    def unchanged(self) -> bool:
        for k, place in self._copied:
            self._views[k] = place.bits()
            if self._on_host:
                self._arrays[k] = self._views[k].numpy()
        if self._on_host:
            return bool((np.concatenate(self._arrays) == self._then).all())
        return torch.equal(torch.cat(self._views), self._then)


class ArrayPlace(Leaf):
    """An array of numpy."""

    def read(self) -> np.ndarray:
        """A copy."""
        return self.obj.copy()

    def __iter__(self) -> Iterator[Any]:
        yield self.obj.tobytes()

    def restore(self) -> bool:
        """Put back the values."""
        if self.obj.shape != self.held.shape or not self.obj.flags.writeable:
            return same_value(self.obj, self.held)
        self.obj[...] = self.held
        return True


class BufferPlace(Leaf):
    """Bytes in a row: ``bytearray``, ``array.array``, and the data of ``ctypes``."""

    def read(self) -> bytes:
        """A copy."""
        return bytes(self.obj)

    def restore(self) -> bool:
        """Put back the bytes."""
        if isinstance(self.obj, bytearray):
            self.obj[:] = self.held
        elif isinstance(self.obj, array):
            del self.obj[:]
            self.obj.frombytes(self.held)
        else:
            ctypes.memmove(ctypes.addressof(self.obj), self.held, len(self.held))
        return True


class GeneratorPlace(Leaf):
    """A generator of random numbers."""

    def read(self) -> Any:
        """Its state."""
        if isinstance(self.obj, torch.Generator):
            return self.obj.get_state()
        if isinstance(self.obj, random.Random):
            return self.obj.getstate()
        if isinstance(self.obj, np.random.RandomState):
            return self.obj.get_state(legacy=False)
        return self._bits.state

    def __iter__(self) -> Iterator[Any]:
        yield _comparable(self.read())

    def same_as(self, now: Any) -> bool:
        """Whether another generator has the same state."""
        return _comparable(self.held) == _comparable(now.held)

    def restore(self) -> bool:
        """Put back the state."""
        if isinstance(self.obj, torch.Generator | np.random.RandomState):
            self.obj.set_state(self.held)
        elif isinstance(self.obj, random.Random):
            self.obj.setstate(self.held)
        else:
            self._bits.state = self.held
        return True

    @property
    def _bits(self) -> Any:
        return self.obj.bit_generator if isinstance(self.obj, np.random.Generator) else self.obj


def _comparable(state: Any) -> Any:
    """A generator's state with bytes in the place of tensors and arrays."""
    if isinstance(state, dict):
        return [_comparable(part) for part in state.values()]
    if isinstance(state, Tensor):
        return state.numpy().tobytes()
    return state.tobytes() if isinstance(state, np.ndarray) else state


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape and the same elements; NaN is equal to NaN."""
    if torch.equal(a, b):
        return True
    return a.shape == b.shape and a.is_floating_point() and bool(((a == b) | (a.isnan() & b.isnan())).all())


def version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None where torch does not count that, as in inference mode."""
    try:
        return None if tensor.is_inference() else tensor._version
    except RuntimeError:
        return None


def _pointer(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError, TypeError):
        return 0


def same_value(then: Any, now: Any) -> bool:
    """Whether two values that hold no other objects are the same; numbers up to rounding."""
    if then is now:
        return True
    if type(then) is not type(now):
        return False
    if isinstance(then, tuple):
        return len(then) == len(now) and all(map(same_value, then, now))
    if isinstance(then, np.ndarray):
        return then.dtype == now.dtype and np.array_equal(then, now, equal_nan=then.dtype.kind in "fc")
    if isinstance(then, float):
        return then == now or (then != then and now != now) or abs(then - now) <= _NEAR * abs(then)
    try:
        return bool(then == now)
    except (RuntimeError, ValueError, TypeError):
        return False


VALUES: dict[Any, type[Leaf]] = {
    Tensor: TensorPlace,
    np.ndarray: ArrayPlace,
    **dict.fromkeys(GENERATORS, GeneratorPlace),
    **dict.fromkeys(BUFFERS, BufferPlace),
}
