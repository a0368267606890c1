"""A function of one state, or of one batch, called for many: by `torch.func.vmap`, or in a loop."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.results.diagnostics import ConvergenceWarning

Out = TypeVar("Out")
MANY = "write it for many states at once and pass vectorized=True (in odeint and sdeint options={'vectorized': True})"
SINGLE = "pass vectorized=False (in odeint and sdeint leave options['vectorized'] out)"
# What one call takes: many states with their times; many states with the numbers of their steps, ``(rows,)``; one state
# and its time; all samples at one time; or a network's states first, then times ``(rows,)``, then further arguments by
# name.
Takes: TypeAlias = Literal["rows", "numbered", "state", "batch", "model"]


@dataclass
class Lifted:
    """A function ``function(t, y, *args)`` of one time as a function of many times.

    Attributes:
        name: the argument's name in messages.
        function: a function of one state, or of one batch.
        branches: whether a function that branches on values is called in a loop over the times, or raises an error.
        one_by_one: whether vmap has failed, so that the function is called in a loop over the times.
        lifts: whether vmap has lifted it: the function does not branch, is not random, and one time needs no vmap.
    """

    name: str
    function: Callable[..., Any]
    branches: bool
    one_by_one: bool = False
    lifts: bool = False

    def __call__(self, t: Tensor, y: Any, args: Sequence[Any], dims: Sequence[Any]) -> Any:
        """The values at times ``(K,)`` and states ``(K, ...)``; ``dims`` has 0 for an argument per time, else None."""
        if self.one_by_one:
            return self._in_turn(t, y, args, dims)
        if self.lifts and len(t) == 1:
            return self._alone(t, y, args, dims)
        try:
            out = torch.func.vmap(self.function, (0, 0, *dims))(t, y, *args)
        except Exception as error:
            return self._without_vmap(error, t, y, args, dims)
        self.lifts = True
        return out

    def _alone(self, t: Tensor, y: Any, args: Sequence[Any], dims: Sequence[Any]) -> Any:
        """The value at the only time."""
        own = (
            arg if dim is None else pytree.tree_map(lambda arg, dim: arg if dim is None else arg[0], arg, dim)
            for arg, dim in zip(args, dims, strict=True)
        )
        out = self.function(t[0], y[0] if isinstance(y, Tensor) else pytree.tree_map(lambda leaf: leaf[0], y), *own)
        return out[None] if isinstance(out, Tensor) else pytree.tree_map(_in_front, out)

    def _without_vmap(self, error: Exception, t: Tensor, y: Any, args: Sequence[Any], dims: Sequence[Any]) -> Any:
        said = str(error)
        if "data-dependent control flow" in said or ".item()" in said:
            if not self.branches:
                raise ValueError(
                    f"{self.name}: could not be lifted by torch.func.vmap (no `if` on values, .item()); {MANY}. It "
                    f"raised {type(error).__name__}: {error}"
                ) from error
        elif "randomness" in said:
            raise random(self.name) from error
        out = self._in_turn(t, y, args, dims)  # raises the function's own errors
        first = pytree.tree_map(lambda leaf: leaf[:1], y)
        again = not_random(self.name, t.device, lambda: self._in_turn(t[:1], first, args, dims))
        pairs = zip(pytree.tree_leaves(out), pytree.tree_leaves(again), strict=True)
        if not all(torch.allclose(one[:1], other, equal_nan=True) for one, other in pairs):
            raise random(self.name)
        self.one_by_one = True
        warnings.warn(
            f"{self.name}: called for one time after the other, which gains nothing, for torch.func.vmap cannot lift "
            f"it; {MANY}. It raised {type(error).__name__}: {said.splitlines()[0] if said else ''}",
            ConvergenceWarning,
            stacklevel=2,
        )
        return out

    def _in_turn(self, t: Tensor, y: Any, args: Sequence[Any], dims: Sequence[Any]) -> Any:
        def at(k: int) -> Any:
            own = [
                pytree.tree_map(lambda arg, dim: arg if dim is None else arg[k], arg, dim)
                for arg, dim in zip(args, dims, strict=True)
            ]
            return self.function(t[k], pytree.tree_map(lambda leaf: leaf[k], y), *own)

        return pytree.tree_map(lambda *leaves: torch.stack(leaves), *(at(k) for k in range(len(t))))


def _in_front(leaf: Any) -> Any:
    return leaf[None] if isinstance(leaf, Tensor) else leaf


def random(name: str) -> ValueError:
    """The error for a function whose value at one state differs between calls."""
    return ValueError(
        f"{name}: it is random, and an iteration needs one value at one state; call .eval() where it is dropout, or "
        "draw random numbers before the solve and let it close over them."
    )


def not_random(name: str, device: torch.device, call: Callable[[], Out]) -> Out:
    """The value of a call; ValueError if it draws from torch's generators.

    Comparing two calls is not enough: the function may seed the generators itself.
    """
    before, out = _generators(device), call()
    if not all(torch.equal(*states) for states in zip(before, _generators(device), strict=True)):
        raise random(name)
    return out


def _generators(device: torch.device) -> list[Tensor]:
    """States of the CPU's generator and of the device's own."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def check_takes_arguments(name: str, function: Callable[..., Any], arguments: Sequence[Any], error: Exception) -> None:
    """Raise a clearer TypeError if a function failed because it takes other arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments)
    except TypeError as mismatch:
        more = f" and {len(arguments) - 2} more from args" * (len(arguments) > 2)
        raise TypeError(
            f"{name}: it is called with t, y{more}, and its arguments are {signature}: {mismatch}; write it as "
            f"f(t, y{', *args' * (len(arguments) > 2)})."
        ) from error
