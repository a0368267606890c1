"""The denoiser's calls: batched in a round, remembered, and given back when the pipeline's own loop gets there."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from integrations.diffusers.window_tensor import WindowTensor, find, pick

SHARED = ("img_ids", "txt_ids")  # arguments of transformers that have no batch dimension


@dataclass
class Call:
    """One denoiser call at one step, as the pipeline would have made it."""

    signature: Any
    inputs: list[Tensor]
    output: Any


@dataclass
class Replay:
    """Remembered calls by step and number within the step.

    Attributes:
        tolerance: how far an input may be from the remembered one, relative to its size.
    """

    tolerance: float
    calls: dict[tuple[int, int], Call] = field(default_factory=dict)

    def recall(self, step: int, number: int, module: Any, args: tuple, kwargs: dict) -> Call | None:
        """The remembered call, if this one is the same to the tolerance."""
        call = self.calls.get((step, number))
        if call is None or call.signature != signature(module, args, kwargs):
            return None
        pairs = zip(tensors((args, kwargs)), call.inputs, strict=True)
        return call if all(now is then or self._close(now, then) for now, then in pairs) else None

    def _close(self, now: Tensor, then: Tensor) -> bool:
        if not now.is_floating_point() or now.numel() == 1:
            return bool((now == then).all())
        distance = torch.linalg.vector_norm((now - then).float())
        return not bool(distance > self.tolerance * torch.linalg.vector_norm(then.float()))

    def remember(self, first: int, number: int, module: Any, args: tuple, kwargs: dict, outputs: list[Any]) -> None:
        """Keep the outputs of one batched call, one for each step from ``first``."""
        for j, output in enumerate(outputs):
            own = (pick(args, j), pick(kwargs, j))
            self.calls[first + j, number] = Call(signature(module, *own), tensors(own), output)

    def keep(self, first: int, last: int) -> None:
        """Forget all but the steps ``first ... last - 1``."""
        self.calls = {key: call for key, call in self.calls.items() if first <= key[0] < last}


def signature(module: Any, args: tuple, kwargs: dict) -> Any:
    """What must agree exactly between two calls."""

    def describe(value: Any) -> Any:
        if isinstance(value, Tensor):
            return tuple(value.shape), value.dtype
        if isinstance(value, list | tuple):
            return tuple(describe(part) for part in value)
        if isinstance(value, dict):
            return tuple((key, describe(part)) for key, part in sorted(value.items()))
        return value if isinstance(value, int | float | str | bool | type(None)) else id(value)

    return id(module), describe(args), describe(kwargs)


def tensors(value: Any) -> list[Tensor]:
    """The tensors in nested arguments, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    return [tensor for part in value for tensor in tensors(part)] if isinstance(value, list | tuple) else []


def batched(function: Callable[..., Any], width: int, args: tuple, kwargs: dict) -> list[Any]:
    """Call a denoiser once for the first ``width`` items of its window arguments; the outputs, one per item."""
    samples = _samples(find((args, kwargs)))

    def widened(value: Any, name: str | None = None) -> Any:
        if isinstance(value, WindowTensor):
            items = value.items[:width]
            return torch.cat([item.expand(samples) if item.dim() == 0 else item for item in items])
        if isinstance(value, Tensor):
            has_batch = value.dim() > 0 and len(value) == samples and name not in SHARED
            return torch.cat([value] * width) if has_batch else value
        if isinstance(value, list) and len(value) == samples:
            return [pick(part, j) for j in range(width) for part in value]
        if isinstance(value, list | tuple):
            return type(value)(widened(part) for part in value)
        if type(value) is dict:
            return {key: widened(part, key) for key, part in value.items()}
        return value

    out = function(*widened(args), **{key: widened(value, key) for key, value in kwargs.items()})
    return [_part(out, j, width, samples) for j in range(width)]


def joined(outputs: list[Any], count: int, shrink: Callable[[int], None]) -> Any:
    """One output whose tensors carry all items, the last one repeated up to ``count``."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return WindowTensor.of(outputs + outputs[-1:] * (count - len(outputs)), shrink)
    if isinstance(first, dict):
        return type(first)(**{key: joined([out[key] for out in outputs], count, shrink) for key in first})
    if isinstance(first, list | tuple):
        parts = [joined([out[k] for out in outputs], count, shrink) for k in range(len(first))]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    if isinstance(getattr(first, "sample", None), Tensor):
        return _with_sample(first, joined([out.sample for out in outputs], count, shrink))
    return first


def _samples(windows: list[WindowTensor]) -> int:
    return max((len(window.items[0]) for window in windows if window.items[0].dim()), default=1)


def _part(out: Any, j: int, width: int, samples: int) -> Any:
    if isinstance(out, Tensor):
        if out.dim() == 0 or len(out) != width * samples:
            raise RuntimeError(
                f"the denoiser was given {width * samples} states and returned shape {tuple(out.shape)}: it cannot be "
                "run in parallel; call the pipeline itself."
            )
        return out[j * samples : (j + 1) * samples]
    if isinstance(out, dict):
        return type(out)(**{key: _part(value, j, width, samples) for key, value in out.items()})
    if isinstance(out, list) and len(out) == width * samples:
        return out[j * samples : (j + 1) * samples]
    if isinstance(out, list | tuple):
        parts = [_part(value, j, width, samples) for value in out]
        return type(out)(*parts) if hasattr(out, "_fields") else type(out)(parts)
    if isinstance(getattr(out, "sample", None), Tensor):
        return _with_sample(out, _part(out.sample, j, width, samples))
    return out


def _with_sample(out: Any, sample: Tensor) -> Any:
    """The same kind of object with another ``sample``."""
    changed = copy.copy(out)
    object.__setattr__(changed, "sample", sample)
    return changed
