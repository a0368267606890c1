"""The bank's drifts in JAX: torch's functions act on traced arrays (`tests/references.py` does it in 80 bits)."""

import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import torch

JAX = {
    "stack": lambda parts, dim: jnp.stack(parts, dim),
    "cat": lambda parts, dim: jnp.concatenate(parts, dim),
    "roll": lambda x, shift, dim: jnp.roll(x, shift, dim),
    "to": lambda x, like: x,
    "tensor_pow": operator.pow,
}


def raw(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [raw(each) for each in value]
    if isinstance(value, torch.Tensor):
        return jnp.asarray(value.numpy())
    return value.array if isinstance(value, Traced) else value


class Traced:
    """An array of JAX that torch's functions take for a tensor."""

    def __init__(self, array: Any):
        self.array = array
        self.shape = array.shape

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> "Traced":
        name = function.__name__
        act = JAX.get(name) or getattr(jnp, name, None) or getattr(operator, name)
        return cls(act(*map(raw, args), **(kwargs or {})))

    @property
    def T(self) -> "Traced":
        return Traced(self.array.T)

    def __getitem__(self, index: Any) -> "Traced":
        return Traced(self.array[index])

    def unbind(self, dim: int) -> list["Traced"]:
        return [Traced(each) for each in jnp.moveaxis(self.array, dim, 0)]

    def sum(self, dim: int) -> "Traced":
        return Traced(self.array.sum(dim))

    def __neg__(self) -> "Traced":
        return Traced(-self.array)


for name in ("add", "sub", "mul", "truediv", "pow", "matmul"):
    act = getattr(operator, name)
    setattr(Traced, f"__{name}__", lambda a, b, act=act: Traced(act(a.array, raw(b))))
    setattr(Traced, f"__r{name}__", lambda a, b, act=act: Traced(act(raw(b), a.array)))


def in_jax(f: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """A drift ``(t, y, args)`` of diffrax."""
    return lambda t, y, args: f(Traced(jnp.reshape(t, (1,))), Traced(y)).array
