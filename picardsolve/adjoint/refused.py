"""A value without gradients that says so."""

from typing import Any

import torch
from torch import Tensor


class Refused(torch.autograd.Function):
    """A value that says a sentence when it is asked for its gradient by the tensors given."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, sentence: str, value: Tensor, *given: Tensor
    ) -> Tensor:
        """The value."""
        ctx.sentence = sentence
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        """Raises a RuntimeError."""
        raise RuntimeError(ctx.sentence)
