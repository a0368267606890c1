"""The wavefront: segments in flight one behind the other, as long as the solution allows, until the end is reached."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from picardsolve.collocation.check import Check, Checked
from picardsolve.collocation.dense import Guide
from picardsolve.collocation.grades import Grades
from picardsolve.collocation.nodes import Nodes
from picardsolve.collocation.segments import Bounds, Flight, Segment, fitted
from picardsolve.collocation.sweeps import Sweep

_GROWS = 2.0  # at most, from one segment to the next
_SHRINKS = 0.2  # at most
_SAFETY = 0.85
_EASY = 1e-2  # first changes below this: more segments at once
_HELD = 1e-3  # relative changes below this: Jacobians are held
_RESTART = 0.4  # of a segment that failed


class Stuck(Exception):
    """No segment is short enough, from a time on."""

    def __init__(self, t: float):
        super().__init__(t)
        self.t = t


@dataclass
class March:
    """One sample's way from ``t = 0`` to ``span``: `ask` what is to be evaluated, `tell` what it was.

    Attributes:
        start: ``(d,)``.
        span: time to go.
        nodes: of every segment.
        sweep: the iteration.
        bounds: what it may do.
        check: the test that every segment passes before it is accepted.
        origin: absolute time of the start, which limits how short a step can be.
        guide: an earlier path over the same span, that guesses come from.
        watch: told of every segment that is accepted; may return an earlier time to end at.
        accepted: the segments that are done.
        queue: those in flight.
        waiting: those whose check is in the present round.
        done: whether the end is reached.
        not_finite: where the drift was not, of the segment that is being restarted.
    """

    start: np.ndarray
    span: float
    nodes: Nodes
    sweep: Sweep
    bounds: Bounds
    check: Check
    origin: float = 0.0
    guide: Guide | None = None
    watch: "Callable[[Checked], float | None] | None" = None
    accepted: list[Checked] = field(default_factory=list)
    queue: list[Segment] = field(default_factory=list)
    waiting: list[Segment] = field(default_factory=list)
    done: bool = False
    not_finite: float | None = None

    def __post_init__(self):
        self._longer: float | None = None  # factor for the next segment's length, once known
        self._next = np.nan
        self._burst = 1
        self._last: Segment | None = None
        self._first: np.ndarray | None = None

    @property
    def reached(self) -> float:
        """Up to when segments are accepted."""
        return self.accepted[-1].end if self.accepted else 0.0

    def ask(self) -> tuple[np.ndarray, np.ndarray]:
        """Times ``(R,)`` and states ``(R, d)`` of the next round."""
        if self._first is None:
            return np.zeros(1), self.start[None]
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        if self.queue:
            self._flight = Flight(self.queue, self.nodes, self.bounds)
            rows.append((self._flight.times.ravel(), self._flight.states.reshape(-1, len(self.start))))
            rows.append(self.sweep.asks(self._flight) or (rows[0][0][:0], rows[0][1][:0]))
        self._counts = [len(t) for t, _ in rows]
        if self.waiting:
            rows.append(self.check.asks(self.waiting))
        if len(rows) == 1:
            return rows[0]
        return np.concatenate([t for t, _ in rows]), np.concatenate([y for _, y in rows])

    def extend(self, span: float) -> None:
        """Go on beyond the end that was reached, to a later one; from there on without a guide."""
        self.span, self.guide, self.done = span, None, False
        self._append(0.0, 1.0)

    def tell(self, drift: np.ndarray) -> None:
        """Take the drifts at the rows that were asked for, ``(R, d)``.

        Raises:
            Stuck: even the shortest segment fails.
        """
        with np.errstate(all="ignore"):
            if self._first is None:
                self._first = drift[0]
                self.queue = [self._opening(drift[0])]
                return
            flown = sum(self._counts)
            failed = self._judge(drift[flown:])
            if failed is not None:
                self._restart(failed)
            elif not self.queue:
                self.done = True
            else:
                n, d = self.nodes.n, len(self.start)
                at = drift[: self._counts[0]].reshape(-1, n, d)
                self._note_not_finite(at[0])
                self._advance(at, drift[self._counts[0] : flown])

    def _opening(self, drift: np.ndarray) -> Segment:
        """The first segment: half as long as the state takes to change by its own size, with a straight line."""
        if self.guide is not None:
            first = self.guide.segment(0.0, self.start, self.span)
            self._next = first.h
            return first
        allowed = self.bounds.allowed(np.abs(self.start))
        size, speed = (float(np.linalg.norm(value / allowed)) for value in (self.start, drift))
        h = max(0.5 * size / speed, 1e-6 * self.span) if size and speed else 1e-3 * self.span
        if self.bounds.first is not None:
            h = self.bounds.first
        h = min(h if np.isfinite(h) else 1e-3 * self.span, self.span, self.bounds.longest)
        self._next = h
        straight = self.start + h * self.nodes.c[:, None] * drift
        if not h * speed < 10 * size:
            straight = np.tile(self.start, (self.nodes.n, 1))
        self.check.differences.begin(np.maximum(np.abs(self.start), np.abs(straight[-1])))
        return Segment(0.0, h, self.start, straight)

    def _judge(self, drift: np.ndarray) -> Segment | None:
        """Accept the segments that waited for their check, up to the first that does not pass it."""
        waiting, self.waiting = self.waiting, []
        judged = self.check.of(waiting, drift, self.bounds) if waiting else []
        for segment, checked in zip(waiting, judged, strict=True):
            if checked is None:
                return segment
            self.accepted.append(checked)
            ends = None if self.watch is None else self.watch(checked)
            if ends is not None:
                self.queue, self.span = [], ends
                return None
        return None

    def _restart(self, segment: Segment) -> None:
        """Begin again where a segment failed, shorter and from a constant."""
        self._next, self._longer, self._burst = _RESTART * segment.h, None, 1
        if self._next < self._shortest(segment.t):
            raise Stuck(segment.t)
        self.queue, self.waiting = [segment.restarted(_RESTART)], []

    def _note_not_finite(self, drift: np.ndarray) -> None:
        """Remember the first time in the leading segment at which the drift is not finite."""
        finite = np.isfinite(drift).all(1) | ~np.isfinite(self.queue[0].states).all(1)
        self.not_finite = None if finite.all() else float(self._flight.times[0, finite.argmin()])

    def _shortest(self, t: float) -> float:
        """What the clock can tell apart, eight times over."""
        now = max(abs(self.origin + t), abs(self.origin - t), 1e-300)
        return 8 * np.finfo(float).eps * now if now > 1e-300 else 0.0

    def _advance(self, drift: np.ndarray, beside: np.ndarray) -> None:
        """Sweep; let go what has converged, shorten what does not resolve the solution, add new segments behind."""
        grades, queue = self._swept(drift, beside), self.queue
        fails = self._first_failing(grades)
        if fails == 0:
            self._restart(queue[0])
            return
        if fails is not None:
            self._drop(fails, 0.6)
        news = [grades.relative[i] for i, segment in enumerate(queue) if segment.age == 1]
        count, last = self._good(grades), len(queue) - 1
        self._choose_length(grades)
        poor = self._first_poor(grades, count)
        for i, segment in enumerate(queue):
            segment.change = grades.change[i]
            segment.stale = not (self.sweep.quadratic and grades.relative[i] < _HELD)
        if poor is not None:
            last = min(last, self._shorten(poor, grades.tail[poor]))
        self._release(count)
        if news and self.sweep.quadratic:
            self._burst = min(2 * self._burst, self.bounds.in_flight) if max(news) < _EASY else 1
        self._append(grades.relative[last], grades.tail[last])

    def _swept(self, drift: np.ndarray, beside: np.ndarray) -> Grades:
        """Let the iteration answer to the drifts."""
        flight = self._flight
        swept = self.sweep.sweep(flight, drift, beside)
        flight.states, flight.starts = flight.states + swept.change, flight.starts + swept.carried
        for i, segment in enumerate(self.queue):
            segment.states, segment.start = flight.states[i], flight.starts[i]
            segment.age += 1
        return Grades.of(flight, swept, drift, self.bounds)

    def _drop(self, i: int, part: float) -> None:
        """Forget a segment and those behind it; of those before nothing is lost."""
        self._next, self._longer = min(self._next, part * self.queue[i].h), None
        del self.queue[i:]

    def _shorten(self, i: int, tail: float) -> int:
        """Split a segment by its iterate; the last segment that is as it was."""
        segment = self.queue[i]
        if segment.h >= 4 * self._shortest(segment.t):
            part = min(self._factor(tail), _SAFETY)
            self.queue[i : i + 1] = segment.split(self.nodes, part)
            return len(self.queue)
        if i == 0:
            raise Stuck(segment.t)
        self._drop(i, 0.5)
        return i - 1

    def _first_failing(self, grades: Grades) -> int | None:
        """The first segment whose iteration does not converge."""
        for i, segment in enumerate(self.queue):
            slack = 1e-6 if i == 0 else 0.3
            grows = grades.change[i] > segment.change and grades.relative[i] > slack
            diverges = not grades.relative[i] < 1e3 or (grows and segment.age > self.sweep.settled)
            if diverges or segment.age > self.sweep.patience:
                return i
        return None

    def _good(self, grades: Grades) -> int:
        """How many segments from the first have converged to the tolerance, and resolve the solution."""
        for i, segment in enumerate(self.queue):
            left = grades.change[i]
            rate = left / segment.change if segment.change else 0.0
            if rate < 0.5 and segment.age > 1:
                left *= min(1.0, max(self.sweep.remainder(segment), rate / (1 - rate)))
            if left > max(0.5, grades.floor[i]) or grades.tail[i] > 1:
                return i
        return len(self.queue)

    def _first_poor(self, grades: Grades, count: int) -> int | None:
        """The first segment that does not resolve the solution."""
        for i in range(count, len(self.queue)):
            if grades.tail[i] > 1 and grades.known(i):
                return i
        return None

    def _factor(self, tail: float) -> float:
        """How much longer a segment should have been: its polynomial's terms fall off geometrically."""
        best = _SAFETY * (0.5 / max(tail, 1e-30)) ** (1 / self.nodes.n)
        return min(max(best, _SHRINKS), _GROWS)

    def _choose_length(self, grades: Grades) -> None:
        for i in range(len(self.queue) - 1, -1, -1):
            if grades.known(i):
                self._longer = self._factor(grades.tail[i])
                self._next = self.queue[i].h * self._longer
                return

    def _release(self, count: int) -> None:
        """Let converged segments wait for their check."""
        if count:
            self._last = self.queue[count - 1]
            self.waiting += self.queue[:count]
            del self.queue[:count]
            if self.queue:
                self.queue[0].start = self._last.states[-1]

    def _append(self, settled: float, tail: float) -> None:
        """New segments behind the last, once that has settled; several where the solution is easy."""
        length = min(self._next, self.bounds.longest)
        for k in range(self._burst if self.guide is None else self.bounds.in_flight):
            behind = self.queue[-1] if self.queue else self._last
            assert behind is not None
            left = self.span - behind.end
            ready = k > 0 or self.guide is not None or not self.queue or (behind.age > 0 and settled < self.sweep.eager)
            if left <= 1e-13 * self.span or len(self.queue) >= self.bounds.in_flight or not ready:
                return
            if self.guide is not None:
                self.queue.append(self.guide.segment(behind.end, behind.states[-1], left))
                continue
            if k and self._longer is None:
                return
            self.queue.append(self.sweep.follow(behind, fitted(length, left), self.bounds))
            if self._longer == _GROWS and tail < 1e-3:
                length = min(_GROWS * length, self.bounds.longest)
