"""Events: where functions of the solution change sign, found on the polynomials of accepted segments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from picardsolve.collocation.accepted import Segments
from picardsolve.collocation.checked_segment import CheckedSegment
from picardsolve.collocation.initial_value import InitialValueProblem
from picardsolve.collocation.nodes import Nodes
from picardsolve.problem.events import Event, EventFunction, root

__all__ = ["Event", "EventFunction", "EventWatch"]


@lru_cache
def _places(nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Where in a segment signs are compared, and the interpolation to there."""
    between = (nodes.points[1:] + nodes.points[:-1]) / 2
    places = np.sort(np.concatenate([nodes.points, between]))
    return places, nodes.interpolate(places)


@dataclass
class EventWatches:
    """Watches for the events of all samples. Signs are compared for all segments at once.

    Attributes:
        problem: the samples.
        samples: a watch for each.
        functions: of the events, at rows of any samples.
        args_of_rows: their arguments for rows of samples ``(R,)``, and which of these are by row.
    """

    problem: InitialValueProblem
    samples: "Sequence[EventWatch]"
    functions: Sequence[EventFunction]
    args_of_rows: Callable[[np.ndarray], tuple[Any, Any]]

    def __post_init__(self):
        self._before = np.full((len(self.functions), len(self.samples)), np.nan)  # values at the last segments' ends

    def __call__(self, segments: Segments, nodes: Nodes, which: np.ndarray) -> list[int]:
        """Note the events in some of the segments, ``which``; of those in which a terminal event ends a sample."""
        if not len(which):
            return []
        (values,) = self.problem.arrays.fetch(segments.values)
        sample, begins = segments.sample[which], segments.t[which] == 0
        for i in sample[begins].tolist():
            self.samples[i].begin()
        seen = self._values(segments, nodes, which, values)
        follows = np.append(False, sample[1:] == sample[:-1])
        before = np.where(follows, np.roll(seen[..., -1], 1, 1), self._before[:, sample])
        seen[..., 0] = np.where(begins, seen[..., 0], before)  # the same to the last bit as where the last one ends
        ended = self._noted(segments, nodes, which, values, seen, begins)
        last = np.append(~follows[1:], True)
        self._before[:, sample[last]] = seen[:, last, -1]
        for i in ended.values():
            self._before[:, segments.sample[which[i]]] = seen[:, i, -1]
        return which[list(ended.values())].tolist()

    def _values(self, segments: Segments, nodes: Nodes, which: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Of every event in segments at the places where signs are compared, ``(E, W, places)``."""
        places, to_places = _places(nodes)
        sample = np.repeat(segments.sample[which], len(places))
        elapsed = segments.t[which, None] + segments.h[which, None] * places
        times, states = self.problem.time(elapsed.ravel(), sample), to_places @ values[which]
        args, dims = self.args_of_rows(sample)
        for function in self.functions:
            function.args, function.dims = args, dims
        rows = states.reshape(len(times), -1)
        return np.stack([function(times, rows).reshape(len(which), -1) for function in self.functions])

    def _noted(
        self,
        segments: Segments,
        nodes: Nodes,
        which: np.ndarray,
        values: np.ndarray,
        seen: np.ndarray,
        begins: np.ndarray,
    ) -> dict[int, int]:
        """The place among ``which`` of the segment that a terminal event ends a sample in, by sample."""
        new = seen[..., :-1] != 0  # a zero was seen when it was reached
        new[..., 0] |= begins  # as in scipy, leaving zero at the start is an event
        happens = [
            each.event.happens(own[..., :-1], own[..., 1:]) for each, own in zip(self.functions, seen, strict=True)
        ]
        crossed, ended = np.stack(happens) & new, {}
        for i in np.flatnonzero(crossed.any((0, 2))).tolist():
            at, sample = which[i], int(segments.sample[which[i]])
            segment = CheckedSegment(float(segments.t[at]), float(segments.h[at]), nodes, values[at])
            if sample not in ended and self.samples[sample].ends_in(segment, seen[:, i], crossed[:, i]):
                ended[sample] = i
        return ended

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
    """The events of one sample.

    Attributes:
        found: for each event, elapsed times and states ``(d,)``.
        end: elapsed time of the event that ended the march; None where none did.
    """

    def __init__(self, functions: Sequence[EventFunction], problem: InitialValueProblem, sample: int):
        self.functions, self.problem, self.sample = functions, problem, sample
        self.begin()

    def begin(self) -> None:
        """Forget what was found."""
        self.found: list[list[tuple[float, np.ndarray]]] = [[] for _ in self.functions]
        self.end: float | None = None

    @property
    def times(self) -> np.ndarray:
        """Elapsed times of all that was found, in no order."""
        return np.array([t for event in self.found for t, _ in event])

    def ends_in(self, segment: CheckedSegment, values: np.ndarray, crossed: np.ndarray) -> bool:
        """Note the events in a segment, up to a terminal one; whether there is a terminal one.

        Args:
            segment: the next of the sample.
            values: ``(E, places)`` of the events where signs are compared.
            crossed: ``(E, places - 1)`` whether they happen between two of these.
        """
        found = [(self._root(segment, e, k, values[e]), e) for e, k in zip(*np.nonzero(crossed), strict=True)]
        for x, e in sorted(found):
            t = segment.t + x * segment.h
            self.found[e].append((t, segment(np.array(x))))
            if len(self.found[e]) == self.functions[e].event.count:
                self.end = t
                return True
        return False

    def _root(self, segment: CheckedSegment, e: int, k: int, values: np.ndarray) -> float:
        """The place in ``[0, 1]`` of a segment between two places at which an event happens."""
        a, b = _places(segment.nodes)[0][k : k + 2].tolist()
        known = {a: float(values[k]), b: float(values[k + 1])}  # a call for many states may differ by rounding

        def value(x: float) -> float:
            if x in known:
                return known[x]
            time = self.problem.time(np.array([segment.t + x * segment.h]), self.sample)
            return float(self.functions[e](time, segment(np.array(x))[None])[0])

        return root(value, a, b)
