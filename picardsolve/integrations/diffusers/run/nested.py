"""Nested arguments and outputs: tensors within containers, and within objects with a ``sample``."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state import version


def rebuilt(like: Any, parts: Any) -> Any:
    """A dict, list or tuple of the same class with other parts."""
    if isinstance(like, dict):
        return parts if type(like) is dict else type(like)(**parts)
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)


def with_sample(out: Any, sample: Any) -> Any:
    """An object of the same class with another ``sample``."""
    changed = copy.copy(out)
    object.__setattr__(changed, "sample", sample)
    return changed


def joined(outputs: list[Any], join: Callable[[list[Any]], Any]) -> Any:
    """One output, in which ``join`` makes one tensor from the tensors of all outputs; the rest is the first one's."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return join(outputs)
    if isinstance(first, dict):
        return rebuilt(first, {key: joined([out[key] for out in outputs], join) for key in first})
    if isinstance(first, list | tuple):
        return rebuilt(first, [joined([out[k] for out in outputs], join) for k in range(len(first))])
    if isinstance(getattr(first, "sample", None), Tensor):
        return with_sample(first, joined([out.sample for out in outputs], join))
    return first


def copied(out: Any) -> Any:
    """The same output in memory of its own."""
    return joined([out], lambda values: values[0].clone())


def moved(out: Any, device: torch.device) -> Any:
    """The same output on a device."""
    return joined([out], lambda values: values[0].to(device))


def tensors(value: Any) -> list[Tensor]:
    """The tensors in nested arguments or outputs, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in tensors(part)]
    sample = getattr(value, "sample", None)
    return [sample] if isinstance(sample, Tensor) else []


def described(value: Any) -> tuple[Any, list[Tensor]]:
    """What must agree exactly between the arguments of two equal calls, and their tensors, in order."""
    found: list[Tensor] = []

    def describe(part: Any) -> Any:
        if isinstance(part, Tensor):
            found.append(part)
            return part.shape, part.dtype
        if isinstance(part, list | tuple):
            return tuple([describe(inner) for inner in part])
        if isinstance(part, dict):
            return tuple([(key, describe(part[key])) for key in sorted(part)])
        return part if isinstance(part, int | float | str | bool | type(None)) else id(part)

    return describe(value), found


def distance(output: Any, expected: Any) -> float:
    """The largest distance between the tensors of two outputs, relative to their size; NaN is equal to NaN."""
    largest = 0.0
    for now, then in zip(tensors(output), tensors(expected), strict=True):
        both = now.isnan() & then.isnan()
        change, size = (torch.linalg.vector_norm(x.double().masked_fill(both, 0)) for x in (now - then, then))
        largest = max(largest, float(change / size.clamp(min=1e-30)))
    return largest


def same_memory(value: Tensor, known: Tensor, written: int) -> bool:
    """Whether a tensor has the memory of a known one, and nobody wrote to it since version ``written``."""
    return (
        type(value) is Tensor
        and value.shape == known.shape
        and value.dtype == known.dtype
        and value.device == known.device
        and value.layout == known.layout == torch.strided
        and value.stride() == known.stride()
        and value.storage_offset() == known.storage_offset()
        and value.untyped_storage()._cdata == known.untyped_storage()._cdata
        and version(value) == version(known) == written
    )
