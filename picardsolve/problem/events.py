"""Events: functions of a solution, and which of their changes of sign are wanted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.problem.checks import check_callable
from picardsolve.problem.clock import Clock
from picardsolve.problem.state import Layout

_LAST_BITS = 4 * np.finfo(float).eps  # of a place; the least that brentq takes


@dataclass(frozen=True)
class Event:
    """A function of the solution, and which of its changes of sign are wanted.

    Attributes:
        function: ``function(t, y, *args)`` of one state, a number.
        count: the solve ends at this occurrence, counted from 1; None: it does not.
        direction: of the wanted changes of sign in the solve's direction: > 0 rising, < 0 falling, 0 both.
    """

    function: Callable[..., Any]
    count: int | None
    direction: float

    @staticmethod
    def of(given: Any) -> "tuple[Event, ...]":
        """Read functions with scipy's attributes ``terminal`` and ``direction``; None is no event.

        Raises:
            TypeError: one is not a function, or an attribute has the wrong type.
            ValueError: ``terminal`` is negative.
        """
        functions = () if given is None else (given,) if callable(given) else given
        if not isinstance(functions, Sequence):
            raise TypeError(f"events: expected a function or a list of functions, got {type(given).__name__}.")
        return tuple(_event(function) for function in functions)

    def happens(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Whether the value passes 0 in the wanted direction between values ``(k,)`` and those after them."""
        rises, falls = (before <= 0) & (after >= 0), (before >= 0) & (after <= 0)
        return rises if self.direction > 0 else falls if self.direction < 0 else rises | falls


def _event(function: Any) -> Event:
    check_callable("events", function)
    terminal, direction = getattr(function, "terminal", None), getattr(function, "direction", 0)
    if not isinstance(terminal, int | None):
        raise TypeError(f"events: expected .terminal to be True or how often it may occur, got {terminal!r}.")
    if terminal is not None and terminal < 0:
        raise ValueError(f"events: expected .terminal to be True or how often it may occur, got {terminal!r}.")
    if not isinstance(direction, int | float):
        raise TypeError(f"events: expected .direction to be a number (> 0 rising, < 0 falling), got {direction!r}.")
    return Event(function, int(terminal) if terminal else None, float(direction))


@dataclass
class EventFunction:
    """An event's function along the solution of one sample, or at rows of several.

    Attributes:
        event: the event.
        layout: of the state.
        clock: in which dtype times are given.
        args: of the sample, or of the rows.
        dims: in the structure of ``args``, 0 for those of rows, otherwise None; None: those are of one sample.
    """

    event: Event
    layout: Layout
    clock: Clock
    args: Sequence[Any]
    dims: Sequence[Any] | None = None
    _vectorizable: bool = True

    @torch.no_grad()
    def __call__(self, t: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Values ``(k,)`` at the user's times ``(k,)`` and states ``(k, d)``; in one call where `vmap` can do that.

        Raises:
            TypeError: the function returns something that is not a number.
        """
        y = self.layout.unpack(torch.from_numpy(states).to(self.layout.device, self.layout.compute_dtype))
        exact = torch.from_numpy(t)
        return self.clock.called("events", lambda dtype: self._values(exact.to(self.layout.device, dtype), y))

    def _values(self, times: Tensor, y: Any) -> np.ndarray:
        dims = [None] * len(self.args) if self.dims is None else self.dims
        if self._vectorizable and len(times) > 1:
            try:
                values = torch.func.vmap(self.event.function, (0, 0, *dims))(times, y, *self.args)
            except Exception:  # branches, .item() or numpy inside; called for one state it says itself what is wrong
                values = None
            if isinstance(values, Tensor) and values.numel() == len(times):
                return values.reshape(-1).to("cpu", torch.float64).numpy().copy()
            self._vectorizable = False

        def value(k: int) -> float:
            args = (
                arg if dim is None else pytree.tree_map(lambda arg, dim: arg if dim is None else arg[k], arg, dim)
                for arg, dim in zip(self.args, dims, strict=True)
            )
            return _number(self.event.function(times[k], pytree.tree_map(lambda leaf: leaf[k], y), *args))

        return np.array([value(k) for k in range(len(times))])


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        got = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise TypeError(f"events: expected a function that returns one number for one state, got {got}.") from None


def root(function: Callable[[float], float], a: float, b: float) -> float:
    """A zero between two places of about 1 or less, with values of different signs, to the last bits."""
    from scipy.optimize import brentq  # a quarter of a second, which only events need

    return float(brentq(function, a, b, xtol=_LAST_BITS, rtol=_LAST_BITS))  # pyright: ignore[reportArgumentType]
