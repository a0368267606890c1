"""Events: where functions of the solution change sign, found on the polynomials of the segments that are accepted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.collocation.check import Checked
from picardsolve.collocation.nodes import Nodes
from picardsolve.problem.checks import check_callable
from picardsolve.problem.clock import Clock
from picardsolve.problem.state import Layout

_LAST_BITS = 4 * np.finfo(float).eps  # of the place in a segment; the least that brentq takes


@dataclass(frozen=True)
class Event:
    """What is to be found.

    Attributes:
        function: ``function(t, y, *args)`` of one state, a number.
        count: the occurrence that ends the solve; None: none does.
        direction: of the change of sign along the way: > 0 rising, < 0 falling, 0 either.
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
class Reading:
    """The value of an event's function along the way of one sample.

    Attributes:
        event: whose.
        layout: of the state.
        clock: how times are given.
        args: the sample's own.
    """

    event: Event
    layout: Layout
    clock: Clock
    args: Sequence[Any]
    _liftable: bool = True

    @torch.no_grad()
    def __call__(self, t: np.ndarray, states: np.ndarray) -> np.ndarray:
        """At the user's times ``(k,)`` and states ``(k, d)``: ``(k,)``, by one call where the function can be lifted.

        Raises:
            TypeError: the function returns something that is not a number.
        """
        y = self.layout.unpack(torch.from_numpy(states).to(self.layout.device, self.layout.compute_dtype))
        exact = torch.from_numpy(t)
        return self.clock.called("events", lambda dtype: self._values(exact.to(self.layout.device, dtype), y))

    def _values(self, times: Tensor, y: Any) -> np.ndarray:
        lifted = self._lifted(times, y) if self._liftable and len(times) > 1 else None
        if lifted is not None:
            return lifted
        picked = (pytree.tree_map(lambda leaf, k=k: leaf[k], y) for k in range(len(times)))
        values = [self.event.function(*row, *self.args) for row in zip(times, picked, strict=True)]
        return np.array([_number(value) for value in values])

    def _lifted(self, times: Tensor, y: Any) -> np.ndarray | None:
        try:
            values = torch.func.vmap(self.event.function, (0, 0, *[None] * len(self.args)))(times, y, *self.args)
        except Exception:  # branches, .item() or numpy inside; called one by one it says itself what is wrong
            values = None
        self._liftable = isinstance(values, Tensor) and values.numel() == len(times)
        return (
            values.reshape(-1).to("cpu", torch.float64).numpy().copy()
            if self._liftable and values is not None
            else None
        )


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        got = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise TypeError(f"events: expected a function that returns one number for one state, got {got}.") from None


class Watch:
    """Finds one sample's events: told of its accepted segments one behind the other, from the first of every march on.

    Attributes:
        found: per event, times on the march's clock and states ``(d,)``.
        end: time of the event that ended the march.
    """

    def __init__(self, readings: Sequence[Reading], nodes: Nodes, clock: Callable[[np.ndarray], np.ndarray]):
        self.readings, self.nodes, self.clock = readings, nodes, clock
        between = (nodes.points[1:] + nodes.points[:-1]) / 2
        self._places = np.sort(np.concatenate([nodes.points, between]))  # in a segment, where signs are compared
        self._to_places = nodes.interpolate(self._places)
        self._begin()

    def _begin(self) -> None:
        self.found: list[list[tuple[float, np.ndarray]]] = [[] for _ in self.readings]
        self.end: float | None = None
        self._before: list[float | None] = [None] * len(self.readings)

    @property
    def times(self) -> np.ndarray:
        """Of all that was found, in no order."""
        return np.array([t for event in self.found for t, _ in event])

    def __call__(self, segment: Checked) -> float | None:
        """Note what happens in a segment; its end where a terminal event is in it, which ends the march there."""
        if segment.t == 0:
            self._begin()
        places = [(x, e) for e in range(len(self.readings)) for x in self._crossings(segment, e)]
        for x, e in sorted(places):
            t = segment.t + x * segment.h
            self.found[e].append((t, self._state(segment, x)))
            if len(self.found[e]) == self.readings[e].event.count:
                self.end = t
                return segment.end
        return None

    def _state(self, segment: Checked, x: float) -> np.ndarray:
        return self.nodes.interpolate(np.array(x)) @ segment.values

    def _crossings(self, segment: Checked, e: int) -> list[float]:
        """Where in ``[0, 1]`` of a segment an event happens."""
        reading, places = self.readings[e], self._places

        def value(x: float) -> float:
            return float(reading(self.clock(np.array([segment.t + x * segment.h])), self._state(segment, x)[None])[0])

        values = reading(self.clock(segment.t + segment.h * places), self._to_places @ segment.values)
        first = self._before[e] is None
        if not first:  # where the segment before ended, to the last bit
            values[0] = self._before[e]
        self._before[e] = float(values[-1])
        before, after = values[:-1], values[1:]
        rises, falls = (before <= 0) & (after >= 0), (before >= 0) & (after <= 0)
        wanted = rises if reading.event.direction > 0 else falls if reading.event.direction < 0 else rises | falls
        fresh = before != 0  # otherwise it was seen when zero was reached
        fresh[0] |= first  # as in scipy, leaving zero at the start is an event
        out = []
        for k in np.flatnonzero(wanted & fresh):
            (a, b), (left, right) = places[k : k + 2].tolist(), values[k : k + 2].tolist()
            known = {a: left, b: right}  # what was lifted may differ by rounding
            out.append(_root(lambda x, known=known: known[x] if x in known else value(x), a, b))
        return out


def _root(function: Callable[[float], float], a: float, b: float) -> float:
    return float(brentq(function, a, b, xtol=_LAST_BITS, rtol=_LAST_BITS))  # pyright: ignore[reportArgumentType]
