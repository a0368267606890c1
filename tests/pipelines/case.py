"""One pipeline with the arguments of one call."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A small pipeline and how to call it.

    Attributes:
        name: such as "SD inpainting, 9 channels".
        make: a quiet pipeline with a scheduler of its own; its modules are shared and in evaluation mode.
        inputs: keyword arguments of the call except ``generator`` and ``num_inference_steps``; the result is an array.
        field: the attribute of the output that holds the result.
        steps: ``num_inference_steps``.
        schedulers: which schedulers the pipeline may run with instead: "betas" for those that predict noise (DDIM,
            Euler, DPM-Solver++, UniPC, PNDM, Heun, ...), "flow" for flow matching, None for its own or a few others.
    """

    name: str
    make: Callable[[], Any]
    inputs: dict[str, Any]
    field: str = "images"
    steps: int = 8
    schedulers: str | None = None

    def __str__(self) -> str:
        return self.name

    def arguments(self, **more: Any) -> dict[str, Any]:
        """The keyword arguments of a call, up to the generator."""
        return {**self.inputs, "num_inference_steps": self.steps, **more}

    def result(self, out: Any) -> Tensor:
        """What a call has made, as one tensor."""
        return torch.as_tensor(getattr(out, self.field))
