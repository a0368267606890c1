"""The march of one sample: segments in flight one behind the other, as long as the solution allows, until the end."""

from dataclasses import dataclass, field

import numpy as np

from picardsolve.collocation.check import Check, CheckedSegment
from picardsolve.collocation.events import EventWatch
from picardsolve.collocation.failures import Stuck
from picardsolve.collocation.flight import Flight, Quality
from picardsolve.collocation.initial_value import InitialValueProblem, Limits
from picardsolve.collocation.nodes import Nodes
from picardsolve.collocation.segments import Segment, fitted
from picardsolve.collocation.sweeps import SegmentSweep
from picardsolve.collocation.trajectory import PiecewisePolynomial

_GROWS = 2.0  # at most, from one segment to the next
_SHRINKS = 0.2  # at most
_SAFETY = 0.85
_EASY = 1e-2  # first changes below this: more segments at once
_KEPT = 1e-3  # relative changes below this: Jacobians are kept
_RESTART = 0.4  # of a segment that failed


class Guide:
    """An earlier path as the guess of segments that are shorter by a factor."""

    def __init__(self, path: PiecewisePolynomial, factor: float):
        self.path, self.factor = path, factor

    def segment(self, t: float, start: np.ndarray, left: float) -> Segment:
        """The segment at elapsed time t with ``left`` to go: along the path, moved to where the segment starts."""
        h = fitted(self.factor * float(self.path.lengths[self.path.segment_of(t)]), left)
        moved = start - self.path(np.array([t]))
        return Segment(t, h, start, self.path(t + h * self.path.nodes.c) + moved)


@dataclass
class March:
    """One sample's way from elapsed time 0 to ``span``: `ask` says what is to be evaluated, `tell` takes the values.

    Attributes:
        problem: of the sample.
        sweep: the iteration.
        check: the test that every segment passes before it is accepted.
        limits: of the segments.
        watch: looks for events in every segment that is accepted; None: there are none.
        guide: an earlier path over the same span, for the guesses; None: the iteration guesses.
        span: elapsed time to reach; 0: the last of the problem.
        accepted: the segments that are done.
        queue: the segments in flight.
        waiting: the segments with their check in the present round.
        done: whether the end is reached.
        rounds: how many there were.
    """

    problem: InitialValueProblem
    sweep: SegmentSweep
    check: Check
    limits: Limits
    watch: EventWatch | None = None
    guide: Guide | None = None
    span: float = 0.0
    accepted: list[CheckedSegment] = field(default_factory=list)
    queue: list[Segment] = field(default_factory=list)
    waiting: list[Segment] = field(default_factory=list)
    done: bool = False
    rounds: int = 0

    def __post_init__(self):
        self.span = self.span or float(self.problem.elapsed[-1])
        self._longer: float | None = None  # factor for the next segment's length, once known
        self._next = np.nan
        self._burst = 1
        self._last: Segment | None = None
        self._not_finite: float | None = None  # where the drift was not, in the leading segment

    @property
    def nodes(self) -> Nodes:
        """Of every segment."""
        return self.check.nodes

    @property
    def reached(self) -> float:
        """Elapsed time up to which segments are accepted."""
        return self.accepted[-1].end if self.accepted else 0.0

    def ask(self) -> tuple[np.ndarray, np.ndarray]:
        """Elapsed times ``(R,)`` and states ``(R, d)`` of the next round."""
        if not self.rounds:
            return np.zeros(1), self.problem.start[None]
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        if self.queue:
            self._flight = Flight(self.queue, self.nodes, self.limits)
            rows.append((self._flight.times.ravel(), self._flight.states.reshape(-1, len(self.problem.start))))
            rows.append(self.sweep.ask(self._flight) or (rows[0][0][:0], rows[0][1][:0]))
        self._counts = [len(t) for t, _ in rows]
        if self.waiting:
            rows.append(self.check.ask(self.waiting))
        if len(rows) == 1:
            return rows[0]
        return np.concatenate([t for t, _ in rows]), np.concatenate([y for _, y in rows])

    def tell(self, drift: np.ndarray) -> None:
        """Take the drifts at the rows that were asked for, ``(R, d)``.

        Raises:
            Stuck: even the shortest segment fails.
        """
        self.rounds += 1
        with np.errstate(all="ignore"):
            if self.rounds == 1:
                self.queue = [self._opening(drift[0])]
                return
            flown = sum(self._counts)
            failed = self._judge(drift[flown:])
            if failed is not None:
                self._restart(failed)
            elif self.queue:
                self._advance(
                    drift[: self._counts[0]].reshape(self._flight.states.shape), drift[self._counts[0] : flown]
                )
            else:
                self.done = True

    def extend(self, span: float) -> None:
        """Go on beyond the end that was reached, to a later one; from there on without a guide."""
        self.span, self.guide, self.done = span, None, False
        self._append(0.0, 1.0)

    def _opening(self, drift: np.ndarray) -> Segment:
        """The first segment: half as long as the state takes to change by its own size, with a straight line."""
        start = self.problem.start
        if self.guide is not None:
            first = self.guide.segment(0.0, start, self.span)
            self._next = first.h
            return first
        allowed = self.limits.allowed(np.abs(start))
        size, speed = (float(np.linalg.norm(value / allowed)) for value in (start, drift))
        h = max(0.5 * size / speed, 1e-6 * self.span) if size and speed else 1e-3 * self.span
        if self.limits.first is not None:
            h = self.limits.first
        self._next = h = min(h if np.isfinite(h) else 1e-3 * self.span, self.span, self.limits.longest)
        straight = start + h * self.nodes.c[:, None] * drift
        if not h * speed < 10 * size:
            straight = np.tile(start, (self.nodes.n, 1))
        self.check.differences.begin(np.maximum(np.abs(start), np.abs(straight[-1])))
        return Segment(0.0, h, start, straight)

    def _judge(self, drift: np.ndarray) -> Segment | None:
        """Accept the segments that waited for their check, up to the first that fails, which is returned."""
        waiting, self.waiting = self.waiting, []
        judged = self.check.tell(waiting, drift, self.limits) if waiting else []
        for segment, checked in zip(waiting, judged, strict=True):
            if checked is None:
                return segment
            self.accepted.append(checked)
            if self.watch is not None and self.watch.ends_in(checked):
                self.queue, self.span = [], checked.end
                return None
        return None

    def _advance(self, drift: np.ndarray, beside: np.ndarray) -> None:
        """Sweep; release what has converged, shorten what does not resolve the solution, append new segments."""
        finite = np.isfinite(drift[0]).all(1) | ~np.isfinite(self.queue[0].states).all(1)
        self._not_finite = None if finite.all() else float(self._flight.times[0, finite.argmin()])
        quality, queue = self._flight.corrected(self.sweep.sweep(self._flight, drift, beside), drift), self.queue
        fails = self._first_failing(quality)
        if fails == 0:
            self._restart(queue[0])
            return
        if fails is not None:
            self._drop(fails, 0.6)
        news = [quality.relative[i] for i, segment in enumerate(queue) if segment.age == 1]
        count, last = self._converged(quality), len(queue) - 1
        self._choose_length(quality)
        poor = [i for i in range(count, len(queue)) if quality.tail[i] > 1 and quality.tail_is_known(i)]
        for i, segment in enumerate(queue):
            segment.change = quality.change[i]
            segment.stale = not (self.sweep.quadratic and quality.relative[i] < _KEPT)
        if poor:
            last = min(last, self._shorten(poor[0], quality.tail[poor[0]]))
        self._release(count)
        if news and self.sweep.quadratic:
            self._burst = min(2 * self._burst, self.limits.in_flight) if max(news) < _EASY else 1
        self._append(quality.relative[last], quality.tail[last])

    def _first_failing(self, quality: Quality) -> int | None:
        """The first segment whose iteration does not converge."""
        for i, segment in enumerate(self.queue):
            slack = 1e-6 if i == 0 else 0.3
            grows = quality.change[i] > segment.change and quality.relative[i] > slack
            diverges = not quality.relative[i] < 1e3 or (grows and segment.age > self.sweep.settled)
            if diverges or segment.age > self.sweep.patience:
                return i
        return None

    def _converged(self, quality: Quality) -> int:
        """How many segments from the first have converged to the tolerance, and resolve the solution."""
        for i, segment in enumerate(self.queue):
            left = quality.change[i]
            rate = left / segment.change if segment.change else 0.0
            if rate < 0.5 and segment.age > 1:
                left *= min(1.0, max(self.sweep.remainder(segment), rate / (1 - rate)))
            if left > max(0.5, quality.floor[i]) or quality.tail[i] > 1:
                return i
        return len(self.queue)

    def _choose_length(self, quality: Quality) -> None:
        """From the last segment in flight with a tail that is known."""
        for i in range(len(self.queue) - 1, -1, -1):
            if quality.tail_is_known(i):
                self._longer = self._factor(quality.tail[i])
                self._next = self.queue[i].h * self._longer
                return

    def _factor(self, tail: float) -> float:
        """How much longer a segment should have been: the terms of its polynomial decay geometrically."""
        best = _SAFETY * (0.5 / max(tail, 1e-30)) ** (1 / self.nodes.n)
        return min(max(best, _SHRINKS), _GROWS)

    def _restart(self, segment: Segment) -> None:
        """Begin again where a segment failed, shorter and from a constant."""
        self._next, self._longer, self._burst = _RESTART * segment.h, None, 1
        if self._next < self._shortest(segment.t):
            raise self._stuck(segment.t)
        self.queue, self.waiting = [segment.restarted(_RESTART)], []

    def _drop(self, i: int, part: float) -> None:
        """Drop a segment and those behind it; the next one is a part as long."""
        self._next, self._longer = min(self._next, part * self.queue[i].h), None
        del self.queue[i:]

    def _shorten(self, i: int, tail: float) -> int:
        """Split a segment, with its iterate; returns the last segment in flight that is as it was."""
        segment = self.queue[i]
        if segment.h >= 4 * self._shortest(segment.t):
            part = min(self._factor(tail), _SAFETY)
            self.queue[i : i + 1] = segment.split(self.nodes, part)
            return len(self.queue)
        if i == 0:
            raise self._stuck(segment.t)
        self._drop(i, 0.5)
        return i - 1

    def _shortest(self, t: float) -> float:
        """Eight times what times around here can tell apart."""
        begin = float(self.problem.ts[0])
        now = max(abs(begin + t), abs(begin - t), 1e-300)
        return 8 * np.finfo(float).eps * now if now > 1e-300 else 0.0

    def _stuck(self, t: float) -> Stuck:
        if not self.accepted:
            return Stuck(t, self._not_finite, 0.0, 0.0)
        start = self.problem.start
        early = [segment.scale for segment in self.accepted if segment.end <= self.reached / 2]
        before = np.maximum(np.abs(start), np.max([np.zeros_like(start), *early], 0))
        now = self.accepted[-1].scale
        growth = now / (before + self.limits.allowed(before))
        most = int(growth.argmax())
        return Stuck(t, self._not_finite, float(now[most]), float(growth[most]))

    def _release(self, count: int) -> None:
        """Let converged segments wait for their check."""
        if count:
            self._last = self.queue[count - 1]
            self.waiting += self.queue[:count]
            del self.queue[:count]
            if self.queue:
                self.queue[0].start = self._last.states[-1]

    def _append(self, settled: float, tail: float) -> None:
        """Append segments behind the last, once its relative change is small; several where the solution is easy."""
        length = min(self._next, self.limits.longest)
        for k in range(self._burst if self.guide is None else self.limits.in_flight):
            behind = self.queue[-1] if self.queue else self._last
            assert behind is not None
            left = self.span - behind.end
            ready = k > 0 or self.guide is not None or not self.queue or (behind.age > 0 and settled < self.sweep.eager)
            if left <= 1e-13 * self.span or len(self.queue) >= self.limits.in_flight or not ready:
                return
            if self.guide is not None:
                self.queue.append(self.guide.segment(behind.end, behind.states[-1], left))
                continue
            if k and self._longer is None:
                return
            self.queue.append(self.sweep.follow(behind, fitted(length, left), self.limits))
            if self._longer == _GROWS and tail < 1e-3:
                length = min(_GROWS * length, self.limits.longest)
