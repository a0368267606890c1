"""Events: where functions of the solution change sign, found on the polynomials of accepted segments."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

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
            out.append(root(lambda x, known=known: known[x] if x in known else value(x), a, b))
        return out
