"""Events: where functions of the solution change sign, found on the polynomials of accepted segments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.collocation.accepted import Segments
from picardsolve.collocation.checked_segment import CheckedSegment
from picardsolve.collocation.initial_value import InitialValueProblem
from picardsolve.collocation.nodes import Nodes
from picardsolve.problem.checks import check_callable
from picardsolve.problem.clock import Clock
from picardsolve.problem.state import Layout

_LAST_BITS = 4 * np.finfo(float).eps  # of the place in a segment; the least that brentq takes


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
    """An event's function along the solution of one sample.

    Attributes:
        event: the event.
        layout: of the state.
        clock: in which dtype times are given.
        args: of the sample.
    """

    event: Event
    layout: Layout
    clock: Clock
    args: Sequence[Any]
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
        if self._vectorizable and len(times) > 1:
            try:
                values = torch.func.vmap(self.event.function, (0, 0, *[None] * len(self.args)))(times, y, *self.args)
            except Exception:  # branches, .item() or numpy inside; called for one state it says itself what is wrong
                values = None
            if isinstance(values, Tensor) and values.numel() == len(times):
                return values.reshape(-1).to("cpu", torch.float64).numpy().copy()
            self._vectorizable = False
        states = (pytree.tree_map(lambda leaf, k=k: leaf[k], y) for k in range(len(times)))
        values = [self.event.function(*row, *self.args) for row in zip(times, states, strict=True)]
        return np.array([_number(value) for value in values])


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        got = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise TypeError(f"events: expected a function that returns one number for one state, got {got}.") from None


@lru_cache
def _places(nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Where in a segment signs are compared, and the interpolation to there."""
    between = (nodes.points[1:] + nodes.points[:-1]) / 2
    places = np.sort(np.concatenate([nodes.points, between]))
    return places, nodes.interpolate(places)


@dataclass
class EventWatches:
    """Watches for the events of all samples.

    Attributes:
        problem: the samples.
        samples: a watch for each.
    """

    problem: InitialValueProblem
    samples: "Sequence[EventWatch]"

    def __call__(self, segments: Segments, nodes: Nodes, which: np.ndarray) -> list[int]:
        """Note the events in some of the segments, ``which``; of those in which a terminal event ends a sample."""
        (values,) = self.problem.arrays.fetch(segments.values)
        ended: dict[int, int] = {}
        for i in which.tolist():
            sample = int(segments.sample[i])
            segment = CheckedSegment(float(segments.t[i]), float(segments.h[i]), nodes, values[i])
            if sample not in ended and self.samples[sample].ends_in(segment):
                ended[sample] = i
        return list(ended.values())

    @property
    def times(self) -> tuple[np.ndarray, np.ndarray]:
        """Elapsed times of all that was found, and their samples, ``(E,)`` each."""
        found = [watch.times for watch in self.samples]
        return np.concatenate(found), np.repeat(np.arange(len(found)), [len(times) for times in found])

    @property
    def ends(self) -> np.ndarray:
        """``(B,)`` elapsed times of the events that ended samples; infinity where none did."""
        return np.array([np.inf if watch.end is None else watch.end for watch in self.samples])


class EventWatch:
    """Finds the events of one sample in its accepted segments, in order; the first segment of a march begins again.

    Attributes:
        found: for each event, elapsed times and states ``(d,)``.
        end: elapsed time of the event that ended the march; None where none did.
    """

    def __init__(self, functions: Sequence[EventFunction], problem: InitialValueProblem, sample: int):
        self.functions, self.problem, self.sample = functions, problem, sample
        self._begin()

    def _begin(self) -> None:
        self.found: list[list[tuple[float, np.ndarray]]] = [[] for _ in self.functions]
        self.end: float | None = None
        self._before: list[float | None] = [None] * len(self.functions)  # values at the end of the segment before

    @property
    def times(self) -> np.ndarray:
        """Elapsed times of all that was found, in no order."""
        return np.array([t for event in self.found for t, _ in event])

    def ends_in(self, segment: CheckedSegment) -> bool:
        """Note the events in a segment, up to a terminal one; whether there is a terminal one."""
        if segment.t == 0:
            self._begin()
        places = [(x, e) for e in range(len(self.functions)) for x in self._crossings(segment, e)]
        for x, e in sorted(places):
            t = segment.t + x * segment.h
            self.found[e].append((t, segment(np.array(x))))
            if len(self.found[e]) == self.functions[e].event.count:
                self.end = t
                return True
        return False

    def _crossings(self, segment: CheckedSegment, e: int) -> list[float]:
        """The places in ``[0, 1]`` of a segment at which an event happens."""
        function, (places, to_places) = self.functions[e], _places(segment.nodes)

        def value(x: float) -> float:
            time = self.problem.time(np.array([segment.t + x * segment.h]), self.sample)
            return float(function(time, segment(np.array(x))[None])[0])

        values = function(self.problem.time(segment.t + segment.h * places, self.sample), to_places @ segment.values)
        first = self._before[e] is None
        if not first:  # the same to the last bit as at the end of the segment before
            values[0] = self._before[e]
        self._before[e] = float(values[-1])
        new = values[:-1] != 0  # a zero was seen when it was reached
        new[0] |= first  # as in scipy, leaving zero at the start is an event
        out = []
        for k in np.flatnonzero(function.event.happens(values[:-1], values[1:]) & new):
            (a, b), (left, right) = places[k : k + 2].tolist(), values[k : k + 2].tolist()
            known = {a: left, b: right}  # one call for one state may differ by rounding from a call for many
            out.append(_root(lambda x, known=known: known[x] if x in known else value(x), a, b))
        return out


def _root(function: Callable[[float], float], a: float, b: float) -> float:
    return float(brentq(function, a, b, xtol=_LAST_BITS, rtol=_LAST_BITS))  # pyright: ignore[reportArgumentType]
