"""By what it is seen that a function has changed: its tensors, its settings, its hooks, its code."""

import weakref
from collections import deque
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.problem.parameters import visited

_PLAIN = (str, bytes, int, float, complex, type(None), type, torch.dtype, torch.device)


_SAMPLED = 32  # elements of each tensor whose values are looked at


class Marks:
    """How everything that a function reaches stands now: tensors by version, all else by its plain values and code.

    Writes through ``.data`` or NumPy leave a tensor's version as it is: these are seen where they change an element of
    a sample.

    Attributes:
        tensors: each tensor or array, weakly, how often it had been written to, and where its values are.
        samples: some elements of all of them, as bytes.
        others: the type of each other object and what it holds, in the order in which they are reached.
    """

    def __init__(self, function: Any):
        self.tensors: list[tuple[Any, tuple[int, int]]] = []
        self.others: list[tuple[Any, ...]] = []
        found: list[Tensor] = []
        for item in visited(function):
            if isinstance(item, Tensor | np.ndarray):
                self.tensors.append((weakref.ref(item), _version(item)))
                found += _sample(item)
            else:
                self.others.append((type(item), *_held(item)))
        devices = dict.fromkeys(part.device for part in found)
        self.samples = [torch.cat([part for part in found if part.device == one]).tolist() for one in devices]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Marks) or len(self.tensors) != len(other.tensors):
            return False
        if self.others != other.others or self.samples != other.samples:
            return False
        return all(
            one() is two() is not None and version == version_now
            for (one, version), (two, version_now) in zip(self.tensors, other.tensors, strict=True)
        )


def _version(tensor: Tensor | np.ndarray) -> tuple[int, int]:
    if isinstance(tensor, np.ndarray):
        return 0, tensor.ctypes.data
    return 0 if tensor.is_inference() else tensor._version, tensor.data_ptr() if _readable(tensor) else 0


def _readable(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own, which those of other classes may not have."""
    ordinary = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    return ordinary and not (tensor.is_meta or tensor.is_quantized or tensor.is_conj() or tensor.is_neg())


def _sample(tensor: Tensor | np.ndarray) -> list[Tensor]:
    """The bytes of some elements; of a tensor whose elements do not lie in a row none."""
    if isinstance(tensor, np.ndarray):
        if not tensor.flags.writeable or not tensor.flags.c_contiguous or tensor.dtype.kind not in "fiub":
            return []
        tensor = torch.from_numpy(tensor)
    if not _readable(tensor) or not tensor.is_contiguous():
        return []
    flat = tensor.detach().reshape(-1)
    flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
    return [flat[:: max(len(flat) // _SAMPLED, 1)].contiguous().view(torch.uint8)] if len(flat) else []


def _held(item: Any) -> tuple[Any, ...]:
    """Plain values in an object, by name, and code."""
    if "__wrapped__" in getattr(item, "__dict__", {}):  # stands for a function, which is reached, too
        return ()
    if isinstance(item, FunctionType):
        return (item.__code__,)
    if isinstance(item, BuiltinFunctionType):
        return (item,)
    if isinstance(item, Mapping):
        return tuple((key if isinstance(key, _PLAIN) else None, _plain(value)) for key, value in item.items())
    if isinstance(item, list | tuple | deque):
        return tuple(map(_plain, item))
    if isinstance(item, set | frozenset):
        return (frozenset(part for part in item if isinstance(part, _PLAIN)),)
    return tuple((name, _plain(value)) for name, value in getattr(item, "__dict__", {}).items())


def _plain(value: Any) -> Any:
    """A plain value, of another one its type."""
    return value if isinstance(value, _PLAIN) else type(value)
