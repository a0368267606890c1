"""The denoiser's calls, remembered from a round and given back when the pipeline's own loop gets there."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from integrations.diffusers.batching import tensors
from integrations.diffusers.window_tensor import WindowTensor, pick


@dataclass
class Call:
    """One denoiser call at one step, as the pipeline would have made it.

    Attributes:
        inputs: its tensors, each with its version: a pipeline may write to them afterwards.
    """

    signature: Any
    inputs: list[tuple[Tensor, int]]
    output: Any

    @property
    def intact(self) -> bool:
        """Whether its tensors are as they were."""
        return all(tensor._version == version for tensor, version in self.inputs)


@dataclass
class Replay:
    """Remembered calls by step and number within the step.

    Attributes:
        tolerance: how far an input may be from the remembered one, relative to its size.
        copying: whether inputs are copied, once a pipeline was seen to write to them.
    """

    tolerance: float
    calls: dict[tuple[int, int], Call] = field(default_factory=dict)
    copying: bool = False

    def recall(self, step: int, number: int, module: Any, args: tuple, kwargs: dict) -> Call | None:
        """The remembered call, if this one is the same to the tolerance."""
        call = self.calls.get((step, number))
        if call is None or call.signature != signature(module, args, kwargs):
            return None
        if not call.intact:
            self.copying = True
            return None
        pairs = zip(tensors((args, kwargs)), call.inputs, strict=True)
        return call if all(now is then or self._close(now, then) for now, (then, _) in pairs) else None

    def _close(self, now: Tensor, then: Tensor) -> bool:
        """Equal, or states of which every sample is within tolerance; NaN is equal to NaN."""
        if not now.is_floating_point() or now.dim() < 2:
            return torch.equal(now, then)
        distance, size = (torch.linalg.vector_norm(x.flatten(1), dim=1) for x in ((now - then).float(), then.float()))
        if bool((distance <= self.tolerance * size).all()):
            return True
        both = now.isnan() & then.isnan()
        return bool(both.any()) and self._close(now.masked_fill(both, 0), then.masked_fill(both, 0))

    def remember(self, first: int, number: int, module: Any, args: tuple, kwargs: dict, outputs: list[Any]) -> None:
        """Keep the outputs of one batched call, one for each step from ``first``."""
        lanes_signature = signature(module, pick(args, 0), pick(kwargs, 0))  # lanes have the same shapes
        inputs = [t.items if isinstance(t, WindowTensor) else t for t in tensors((args, kwargs))]
        for j, output in enumerate(outputs):
            own = [(t[j].clone() if self.copying else t[j]) if isinstance(t, list) else t for t in inputs]
            self.calls[first + j, number] = Call(lanes_signature, [(t, t._version) for t in own], output)

    def keep(self, first: int, last: int) -> None:
        """Forget all but the steps ``first ... last - 1``."""
        self.calls = {key: call for key, call in self.calls.items() if first <= key[0] < last}


def signature(module: Any, args: tuple, kwargs: dict) -> Any:
    """What must agree exactly between two calls."""

    def describe(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.shape, value.dtype
        if isinstance(value, list | tuple):
            return tuple([describe(part) for part in value])
        if isinstance(value, dict):
            return tuple([(key, describe(part)) for key, part in sorted(value.items())])
        return value if isinstance(value, int | float | str | bool | type(None)) else id(value)

    return id(module), describe(args), describe(kwargs)
