"""The march of samples: segments in flight one behind the other, as long as the solution allows, until the end."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from picardsolve.collocation.accepted import Accepted, Segments
from picardsolve.collocation.appending import followers
from picardsolve.collocation.arrays import Array
from picardsolve.collocation.beginnings import first_lengths, halves, speeds, straight
from picardsolve.collocation.check import Check, Verdict
from picardsolve.collocation.failures import Failure, stuck
from picardsolve.collocation.flight import Flight
from picardsolve.collocation.grading import Grades, Pace, graded
from picardsolve.collocation.guide import Guide, fitted
from picardsolve.collocation.initial_value import InitialValueProblem, Limits
from picardsolve.collocation.nodes import Nodes
from picardsolve.collocation.quality import Quality, corrected
from picardsolve.collocation.sweeps import Followers, Rows, SegmentSweep

_RESTART = 0.4  # of a segment that failed

EndsIn: TypeAlias = Callable[[Segments, Nodes, np.ndarray], Sequence[int]]  # of these segments, those that end a sample


class March:
    """The way of samples from elapsed time 0 to `span`: `ask` says what is to be evaluated, `tell` takes the values.

    Arrays of samples, ``(B,)``, have places for all samples of the problem, whether they take part or not.

    Attributes:
        problem: the samples.
        sweep: the iteration.
        check: the test that every segment passes before it is accepted.
        limits: of the segments.
        span: ``(B,)`` elapsed time to reach.
        accepted: the segments that are done.
        flight: the segments in flight; None: there are none.
        waiting: the segments with their check in the present round; None: there are none.
        opening: samples that begin in the present round.
        guide: earlier paths over the same spans, for the guesses.
        rounds: ``(B,)`` how many there were.
        finished: samples that reached their ends in the last round.
        failures: of samples that failed in the last round.
    """

    def __init__(
        self,
        problem: InitialValueProblem,
        sweep: SegmentSweep,
        check: Check,
        limits: Limits,
        ends_in: EndsIn | None = None,
    ):
        self.problem, self.sweep, self.check, self.limits = problem, sweep, check, limits
        self._ends_in, self.arrays, self.nodes = ends_in, problem.arrays, sweep.nodes
        count = problem.samples
        self.span = problem.elapsed[-1].copy()
        self.accepted = Accepted.of(self.arrays, count)
        self.guide = Guide(self.arrays, np.full(count, np.nan))
        self.flight: Flight | None = None
        self.waiting: Flight | None = None
        self.opening = np.zeros(0, int)
        self.rounds = np.zeros(count, int)
        self.finished = np.zeros(0, int)
        self._on = np.zeros(count, bool)
        self.failures: dict[int, Failure] = {}
        self.pace = Pace.of(count)
        self._not_finite = np.full(count, np.nan)  # where the drift was not, in the leading segments

    def begin(self, sample: np.ndarray) -> None:
        """Take in samples, or let them begin again, from elapsed time 0."""
        self.leave(sample)
        self.opening = np.sort(np.concatenate([self.opening, sample]))
        self.rounds[sample], self._on[sample] = 0, True

    def leave(self, sample: np.ndarray) -> None:
        """Let samples go, and forget what they did."""
        self.accepted.forget(sample)
        self.stop(sample)

    def stop(self, sample: np.ndarray) -> None:
        """Let samples go."""
        self._on[sample] = False
        gone = np.zeros(self.problem.samples, bool)
        gone[sample] = True
        self.opening = self.opening[~gone[self.opening]]
        parts = (part and part.without(self.arrays, gone) for part in (self.flight, self.waiting))
        self.flight, self.waiting = parts

    @property
    def under_way(self) -> bool:
        """Whether any sample is."""
        return self.flight is not None or self.waiting is not None or len(self.opening) > 0

    @property
    def active(self) -> np.ndarray:
        """The samples that are under way."""
        return np.flatnonzero(self._on)

    @property
    def shortest(self) -> float:
        """The length of the shortest segment in flight; infinity where there is none."""
        return np.inf if self.flight is None else float(self.flight.h.min())

    # ---- a round

    def ask(self) -> Rows:
        """Elapsed times ``(R,)``, states ``(R, d)`` and samples ``(R,)`` of the next round."""
        rows: list[Rows] = []
        if self.flight is not None:
            rows += self.sweep.rows(self.flight)
        if self.waiting is not None:
            rows.append(self.check.ask(self.waiting))
        if len(self.opening):
            rows.append((np.zeros(len(self.opening)), self.problem.starts(self.opening), self.opening))
        self._counts = [len(t) for t, _, _ in rows]
        if len(rows) == 1:
            return rows[0]
        t, states, sample = zip(*rows, strict=True)
        return np.concatenate(t), self.arrays.concat(states), np.concatenate(sample)

    def tell(self, drift: Array) -> None:
        """Take the drifts at the rows that were asked for, ``(R, d)``, as they are in elapsed time."""
        with np.errstate(all="ignore"):
            self._tell(drift)

    def _tell(self, drift: Array) -> None:
        arrays = self.arrays
        self.rounds += self._on
        self.failures = {}
        places = np.cumsum([0, *self._counts]).tolist()
        parts = iter([drift[first:last] for first, last in pairwise(places)])
        flight, waiting, opening = self.flight, self.waiting, self.opening
        numbers: list[Array] = []
        if flight is not None:
            numbers += self._swept(flight, parts)
        verdict = at_start = grades = None
        if waiting is not None:
            verdict = self.check.tell(waiting, next(parts), self.limits)
            numbers.append(verdict.passed)
        if len(opening):
            at_start = next(parts)
            numbers.append(speeds(self.limits, opening, self.problem.starts(opening), at_start))
        found = iter(arrays.fetch(*numbers))  # the one wait of a round

        going = np.ones(self.problem.samples, bool)
        news: list[Flight] = []
        self.waiting, self.opening, self.flight = None, opening[:0], None
        if flight is not None:
            quality, bad = Quality(*next(found)), next(found).astype(bool)
            grades = self._graded(flight, quality, bad)
        if waiting is not None and verdict is not None:
            news += self._judged(waiting, verdict, next(found).astype(bool), going)
        if flight is not None and grades is not None:
            news += self._advanced(flight, quality, grades, going)
        if at_start is not None:
            news.append(self._opened(opening, at_start, next(found)))
        if news:
            self.flight = Flight.in_order(arrays, news)
        present = np.zeros(self.problem.samples, bool)
        for part in (self.flight, self.waiting):
            if part is not None:
                present[part.sample] = True
        done = self._on & ~present
        self._on = present
        if self.failures:
            done[list(self.failures)] = False
        self.finished = np.flatnonzero(done)

    def _swept(self, flight: Flight, parts: "Iterator[Array]") -> list[Array]:
        """Sweep; the numbers of `Quality`, and whether drifts at the nodes of leading segments are not finite."""
        drift = next(parts).reshape(flight.states.shape)
        beside = next(parts) if self.sweep.quadratic and flight.stale.any() else None
        begins = flight.chains.begins
        bad = ~self.arrays.finite(self.arrays.take(drift, begins))
        correction = self.sweep.sweep(flight, drift, beside)
        return [corrected(flight, self.nodes, self.limits, correction, drift), bad]

    def _graded(self, flight: Flight, quality: Quality, bad: np.ndarray) -> Grades:
        begins = flight.chains.begins
        self._not_finite[flight.sample[begins]] = np.nan
        if np.count_nonzero(bad):
            at = flight.t[begins] + flight.h[begins] * self.nodes.c[bad.argmax(1)]
            self._not_finite[flight.sample[begins]] = np.where(bad.any(1), at, np.nan)
        return graded(flight, quality, self.sweep, self.pace, self.limits)

    # ---- what becomes of segments

    def _judged(self, waiting: Flight, verdict: Verdict, passed: np.ndarray, going: np.ndarray) -> list[Flight]:
        """Accept the segments that waited for their check; begin again at the first of a sample that fails."""
        arrays, chains = self.arrays, waiting.chains
        first = np.minimum.reduceat(np.where(passed, len(waiting), chains.level), chains.begins)
        right = verdict.segments(waiting, self.check.values)
        fails = first < chains.counts
        if self._ends_in is not None:
            stops = self._ends_in(right, self.nodes, np.flatnonzero(chains.level < first[chains.chain]))
            for place in stops:
                chain = chains.chain[place]
                first[chain], fails[chain] = chains.level[place] + 1, False
                going[waiting.sample[place]], self.span[waiting.sample[place]] = False, right.end[place]
        accepted = np.flatnonzero(chains.level < first[chains.chain])
        if len(accepted):
            self.accepted.add(right if len(accepted) == len(right) else right.take(arrays, accepted))
        failing = (chains.begins + first)[fails]
        going[waiting.sample[failing]] = False
        return self._restarted(waiting, failing)

    def _restarted(self, flight: Flight, places: np.ndarray) -> list[Flight]:
        """Begin again where segments failed, shorter and from a constant."""
        sample, t, h = flight.sample[places], flight.t[places], _RESTART * flight.h[places]
        self.pace.begin(sample, h)
        short = h < self.problem.shortest(sample, t)
        self._fail(sample[short], t[short])
        sample, t, h, places = (part[~short] for part in (sample, t, h, places))
        if not len(places):
            return []
        return [self._constant(sample, t, h, self.arrays.take(flight.starts, places))]

    def _advanced(self, flight: Flight, quality: Quality, grades: Grades, going: np.ndarray) -> list[Flight]:
        """Release what has converged, shorten what does not resolve the solution, append new segments."""
        arrays, chains, news = self.arrays, flight.chains, []
        stuck, fails = grades.stuck & going[grades.sample], grades.fails & going[grades.sample]
        if np.count_nonzero(stuck):
            self._fail(grades.sample[stuck], flight.t[chains.begins[stuck]])
        on = going[grades.sample] & ~fails & ~stuck
        if np.count_nonzero(fails):
            news += self._restarted(flight, chains.begins[fails])
        if not np.count_nonzero(on):
            return news
        chain, level, places = chains.chain, chains.level, np.arange(len(flight))
        released, left, poor = grades.released, grades.left, np.where(on, grades.poor, -1)
        out = on[chain] & (level < released[chain])
        kept = on[chain] & (level >= released[chain]) & (level < left[chain]) & (places != poor[chain])
        lines = followers(flight, quality, grades, on, self.sweep, self.pace, self.limits, self.span, self.guide)
        appended = [self._appended(flight, new) for new in lines if len(new.h)]
        moved = on & (released > 0) & (released < left)
        if np.count_nonzero(moved):
            at = (chains.begins + released)[moved]
            flight.starts = arrays.put(flight.starts, at, arrays.take(flight.states[:, -1], at - 1))
        if np.count_nonzero(out):
            self.waiting = flight.take(arrays, np.flatnonzero(out))
        flight.memory = flight.memory.without(flight.stale)
        if np.count_nonzero(kept) == len(kept):
            news.append(flight)
        elif np.count_nonzero(kept):
            news.append(flight.take(arrays, np.flatnonzero(kept)))
        if np.count_nonzero(poor >= 0):
            cut = flight.take(arrays, poor[poor >= 0])
            news += halves(arrays, self.nodes, cut, grades.part[poor >= 0], self.sweep.blank(len(cut)))
        return news + appended

    def _appended(self, flight: Flight, new: Followers) -> Flight:
        """Segments with the guess of an earlier path, or of the iteration."""
        if self.guide.guides(new.sample[:1])[0]:
            return self.guide.followers(flight, new, self.sweep.blank(len(new.h)))
        starts, states, memory = self.sweep.follow(flight, new, self.limits)
        return Flight.new(new.sample, new.t, new.h, starts, states, memory)

    # ---- beginnings and ends

    def _opened(self, sample: np.ndarray, drift: Array, sizes: np.ndarray) -> Flight:
        start, span = self.problem.starts(sample), self.span[sample]
        h = first_lengths(self.limits, span, *sizes)
        states = straight(self.nodes, self.limits, start, h, drift, sizes)
        guided = self.guide.guides(sample)
        new, led = np.flatnonzero(~guided), np.flatnonzero(guided)
        if len(new):
            ends = self.arrays.larger(self.arrays.size(start), self.arrays.size(states[:, -1]))
            self.check.differences.begin(sample[new], self.arrays.take(ends, new))
        if len(led):
            zero, own = np.zeros(len(led)), sample[led]
            h[led] = self.guide.lengths(own, zero, span[led])
            along = self.guide.states(own, zero, h[led], zero, self.arrays.take(start, led))
            states = self.arrays.put(states, led, along)
        self.pace.begin(sample, h)
        return Flight.new(sample, np.zeros(len(sample)), h, start, states, self.sweep.blank(len(sample)))

    def extend(self, sample: int, span: float) -> None:
        """Go on beyond the end that a sample has reached, to a later one; from there on without a guide."""
        which, reached = np.array([sample]), self.accepted.reached[sample]
        segments = self.accepted.of_samples(which)
        assert segments is not None
        self.span[sample], self._on[sample] = span, True
        self.guide.forget(which)
        h = fitted(np.minimum(self.pace.next[which], self.limits.longest), span - reached)
        new = self._constant(which, np.array([reached]), h, segments.values[-1:, -1])
        self.flight = Flight.in_order(self.arrays, [new] if self.flight is None else [self.flight, new])

    def _constant(self, sample: np.ndarray, t: np.ndarray, h: np.ndarray, start: Array) -> Flight:
        """Segments with constant states."""
        states = start[:, None] + self.arrays.zeros(1, self.nodes.n, 1)
        return Flight.new(sample, t, h, start, states, self.sweep.blank(len(sample)))

    def _fail(self, sample: np.ndarray, t: np.ndarray) -> None:
        """Even the shortest segment of samples fails, at elapsed times."""
        for i, time in zip(sample.tolist(), t.tolist(), strict=True):
            bad = float(self._not_finite[i])
            self.failures[i] = stuck(self.accepted.of_samples(np.array([i])), self.limits, i, time, bad)
