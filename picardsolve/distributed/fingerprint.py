"""What a rank runs with, in a few bytes, so that ranks can compare it."""

import hashlib
from collections.abc import Iterable, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.problem.parameters import visited

_PIECE = 2**22  # words of a tensor that are summed at once
_WORD = 8  # bytes


def fingerprint(settings: Mapping[str, Any], reach: Iterable[Any]) -> dict[str, str]:
    """A digest of every setting, and of the code and the tensors that functions can reach.

    Tensors are compared by their shapes and by sums over all their bits: one pass over the weights.
    """
    tensors, codes = [], []
    for item in visited(*reach):
        if isinstance(item, Tensor | np.ndarray):
            tensors.append(_of(item))
        elif isinstance(item, FunctionType):
            codes.append(_of_code(item.__code__))
    found = {name: _digest(_of(value)) for name, value in settings.items()}
    return {**found, "code": _digest(sorted(map(repr, codes))), "weights": _digest(sorted(map(repr, tensors)))}


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The names of what differs between two fingerprints."""
    return [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _of(value: Any, depth: int = 8) -> Any:
    """A value as a nest of plain values, alike in every process."""
    if isinstance(value, bool | int | float | complex | str | bytes | type(None) | torch.dtype):
        return repr(value)
    if isinstance(value, Tensor):
        return "tensor", str(value.dtype), tuple(value.shape), *_sums(value)
    if isinstance(value, np.ndarray):
        return "array", str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    if not depth:
        return "deep"
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return _of_code(value.__code__), [_of(cell, depth - 1) for cell in cells]
    if isinstance(value, MethodType):
        return _of(value.__func__, depth - 1), _of(value.__self__, depth - 1)
    if isinstance(value, type):
        return value.__qualname__
    if isinstance(value, Mapping):
        return sorted((repr(key), repr(_of(part, depth - 1))) for key, part in value.items())
    if isinstance(value, list | tuple):
        return [_of(part, depth - 1) for part in value]
    own = getattr(value, "__dict__", {})
    return type(value).__qualname__, _of(dict(own), depth - 1)


def _of_code(code: CodeType) -> Any:
    constants = [_of_code(part) if isinstance(part, CodeType) else _constant(part) for part in code.co_consts]
    return code.co_name, code.co_code, code.co_names, constants


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _sums(tensor: Tensor) -> tuple[int, ...]:
    """Sums of a tensor's bits, the same in whatever order a device adds them."""
    if tensor.device.type == "meta" or tensor.layout != torch.strided:
        return ()
    flat = tensor.detach().contiguous().as_subclass(Tensor)
    flat = (torch.view_as_real(flat) if flat.is_complex() else flat).reshape(-1).view(torch.uint8)
    whole = flat.numel() // _WORD * _WORD
    words = flat[:whole].clone().view(torch.int64) if flat.storage_offset() % _WORD else flat[:whole].view(torch.int64)
    places = 2 * torch.arange(min(len(words), _PIECE), device=words.device) + 1  # a sum alone does not see the order
    sums = [(piece * places[: len(piece)]).sum() for piece in words.split(_PIECE)] if whole else []
    rest = flat[whole:].tolist()
    total = sum((number + 1) * part for number, part in enumerate(torch.stack(sums).tolist() if sums else []))
    return total % 2**64, *rest
