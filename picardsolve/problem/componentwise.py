"""Tolerances with a value for each component of a state, in the forms that torchdiffeq takes."""

from typing import Any

import torch
from torch import Tensor


def by_component(name: str, value: Any, y0: Any) -> Any:
    """A tolerance in the structure of y0, broadcast as torchdiffeq does.

    Raises:
        TypeError: it is neither a number nor a real tensor, nor, for a tuple of states, a tuple of these.
        ValueError: its shape or length does not fit that of y0.
    """
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Tensor) and value.dim() == 0:
        return float(value)
    if isinstance(y0, tuple):
        if not isinstance(value, tuple | list | Tensor):
            raise TypeError(f"{name}: expected a number, a tensor or a tuple of them, got {value!r}.")
        if len(value) != len(y0):
            raise ValueError(f"{name}: expected one value for each of the {len(y0)} states, got {len(value)}.")
        return tuple(_over(name, part, state) for part, state in zip(value, y0, strict=True))
    return _over(name, value, y0)


def _over(name: str, value: Any, state: Tensor) -> Tensor:
    """One value for each component of a tensor."""
    try:
        values = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected a number, a tensor or a tuple of them, got {value!r}.") from None
    if values.dim() == 1 and len(values) == state.numel():
        return values.reshape(state.shape)
    try:
        return values.expand(state.shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a number or a tensor that broadcasts over {tuple(state.shape)}, got "
            f"{tuple(values.shape)}."
        ) from None
