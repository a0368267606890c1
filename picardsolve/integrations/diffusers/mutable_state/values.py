"""The kinds of places that hold values: arrays, bytes, random generators; and when two values are the same."""

import ctypes
import random
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state.kinds import Kind

_TWISTER = 625 * 4  # bytes of a Mersenne twister: its words, and the position in them
_NEAR = 1e-12  # relative; a number that is multiplied and divided by the same has not changed
BUFFERS = bytearray, array, *ctypes.c_int.__mro__[1:-1], ctypes.Structure, ctypes.Array
GENERATORS = torch.Generator, random.Random, np.random.Generator, np.random.BitGenerator, np.random.RandomState


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


def _put_array(obj: np.ndarray, held: np.ndarray) -> bool:
    if obj.shape != held.shape or not obj.flags.writeable:
        return same_value(obj, held)
    obj[...] = held
    return True


def _put_bytes(obj: Any, held: bytes) -> bool:
    if isinstance(obj, bytearray):
        obj[:] = held
    elif isinstance(obj, array):
        del obj[:]
        obj.frombytes(held)
    else:
        ctypes.memmove(ctypes.addressof(obj), held, len(held))
    return True


def _bits(generator: Any) -> Any:
    return generator.bit_generator if isinstance(generator, np.random.Generator) else generator


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return _bits(generator).state


def _put_state(generator: Any, held: Any) -> bool:
    if isinstance(generator, torch.Generator | np.random.RandomState):
        generator.set_state(held)
    elif isinstance(generator, random.Random):
        generator.setstate(held)
    else:
        _bits(generator).state = held
    return True


def _comparable(state: Any) -> Any:
    """A generator's state with bytes in the place of tensors and arrays."""
    if isinstance(state, dict):
        return [_comparable(part) for part in state.values()]
    if isinstance(state, Tensor):
        return state.numpy().tobytes()
    return state.tobytes() if isinstance(state, np.ndarray) else state


class _Drawn:
    """Whether a generator was drawn from: iterated, it gives the present state, comparably.

    The state of numpy's functions takes long to be read. Its bits tell first: where no second normal number is kept,
    a draw changes them.
    """

    def __init__(self, generator: Any, state: Any):
        self._generator, self._state = generator, _comparable(state)
        bits = _raw_bits(generator)
        self._bits = None if bits is None or state["has_gauss"] else bits

    def __iter__(self) -> Iterator[Any]:
        if self._bits is not None and _raw_bits(self._generator) == self._bits:
            yield self._state
        else:
            yield _comparable(_state(self._generator))


def _raw_bits(generator: Any) -> bytes | None:
    """The memory of numpy's Mersenne twister, as it is; None of other generators."""
    bits = getattr(generator, "_bit_generator", None)
    return ctypes.string_at(bits.ctypes.state_address, _TWISTER) if type(bits) is np.random.MT19937 else None


ARRAY = Kind(np.ndarray.copy, flat=lambda held: (held.tobytes(),), put_all=_put_array, same=same_value)
BUFFER = Kind(bytes, flat=lambda held: (held,), put_all=_put_bytes, same=same_value)
GENERATOR = Kind(
    _state,
    live=lambda obj, held: (_Drawn(obj, held),),
    put_all=_put_state,
    same=lambda then, now: _comparable(then) == _comparable(now),
)
VALUES: dict[Any, Kind] = {np.ndarray: ARRAY, GENERATORS: GENERATOR, BUFFERS: BUFFER}
