"""What becomes of the segments in flight after a round: which are released, split, dropped, or begun again."""

from dataclasses import dataclass

import numpy as np

from picardsolve.collocation.flight import Flight
from picardsolve.collocation.initial_value import Limits
from picardsolve.collocation.quality import Quality
from picardsolve.collocation.sweeps import SegmentSweep

GROWS = 2.0  # at most, from one segment to the next
SAFETY = 0.85
_SHRINKS = 0.2  # at most
_EASY = 1e-2  # first changes below this: more segments at once
_KEPT = 1e-3  # relative changes below this: Jacobians are kept


@dataclass
class Pace:
    """How the samples of a march go on, ``(B,)`` each.

    Attributes:
        next: length of the next segment.
        longer: factor that it is longer by than the last in flight; NaN where it is not known.
        burst: how many segments may be appended at once.
    """

    next: np.ndarray
    longer: np.ndarray
    burst: np.ndarray

    @staticmethod
    def of(samples: int) -> "Pace":
        """Before the first segment."""
        return Pace(np.full(samples, np.nan), np.full(samples, np.nan), np.ones(samples, int))

    def begin(self, sample: np.ndarray, h: np.ndarray) -> None:
        """Of samples that begin, or begin again, with segments of lengths h."""
        self.next[sample], self.longer[sample], self.burst[sample] = h, np.nan, 1


@dataclass(frozen=True)
class Grades:
    """What is decided of A samples with segments in flight; places are of the flight.

    Attributes:
        sample: ``(A,)``.
        fails: ``(A,)`` whether the first segment does not converge.
        released: ``(A,)`` how many segments have converged, and resolve the solution.
        left: ``(A,)`` how many are left, with those: the others are dropped.
        poor: ``(A,)`` place of the segment that does not resolve the solution; -1: there is none.
        part: ``(A,)`` part of it that might.
        stuck: ``(A,)`` whether it is the first, and too short to be split.
        relative: ``(K,)`` the last change divided by the states, both in tolerances.
    """

    sample: np.ndarray
    fails: np.ndarray
    released: np.ndarray
    left: np.ndarray
    poor: np.ndarray
    part: np.ndarray
    stuck: np.ndarray
    relative: np.ndarray


def longer(tail: np.ndarray, n: int) -> np.ndarray:
    """How much longer a segment should have been: the terms of its polynomial decay geometrically."""
    best = SAFETY * (0.5 / np.maximum(tail, 1e-30)) ** (1 / n)
    return np.minimum(np.maximum(best, _SHRINKS), GROWS)


def graded(flight: Flight, quality: Quality, sweep: SegmentSweep, pace: Pace, limits: Limits) -> Grades:
    """Judge the segments; the flight's changes and the pace become those of the next round.

    Args:
        flight: after the sweep.
        quality: of its segments.
        sweep: the iteration.
        pace: of all samples.
        limits: of segments.
    """
    chains = flight.chains
    begins, counts, chain, level = chains.begins, chains.counts, chains.chain, chains.level
    sample, places, n = flight.sample[begins], np.arange(len(flight)), sweep.nodes.n
    relative = quality.change / (quality.largest + 1)

    fails, left, alive = np.zeros(len(begins), bool), counts.copy(), np.ones(len(flight), bool)
    diverging = _diverging(flight, quality, relative, sweep)
    if np.count_nonzero(diverging):
        first = np.minimum.reduceat(np.where(diverging, level, len(flight)), begins)
        fails, left = first == 0, np.minimum(first, counts)
        dropped = np.flatnonzero((left < counts) & ~fails)
        _drop(pace, sample[dropped], 0.6 * flight.h[begins[dropped] + left[dropped]])
        alive = level < left[chain]

    rough = np.where(_rough(flight, quality, sweep), level, len(flight))
    released = np.minimum(np.minimum.reduceat(rough, begins), left)

    known = alive & quality.tail_is_known
    factor = longer(quality.tail, n)
    if np.count_nonzero(known):
        tells = np.maximum.reduceat(np.where(known, places, -1), begins)
        told = tells >= 0
        at, of = tells[told], sample[told]
        pace.longer[of], pace.next[of] = factor[at], flight.h[at] * factor[at]
    poor, stuck, part = np.full(len(begins), -1), np.zeros(len(begins), bool), np.ones(len(begins))
    unresolved = known & (quality.tail > 1) & (level >= released[chain])
    if np.count_nonzero(unresolved):
        poor = np.minimum.reduceat(np.where(unresolved, places, len(flight)), begins)
        poor[poor == len(flight)] = -1
        shortest = limits.problem.shortest(sample, flight.t[poor])
        short = (poor >= 0) & (flight.h[poor] < 4 * shortest)
        stuck = short & (poor == begins)
        cut = np.flatnonzero(short & ~stuck)
        _drop(pace, sample[cut], 0.5 * flight.h[poor[cut]])
        left[cut] = poor[cut] - begins[cut]
        poor[short] = -1
        part = np.minimum(factor[poor], SAFETY)
    flight.change = quality.change
    if sweep.quadratic:
        flight.stale = ~(relative < _KEPT)
        news = np.maximum.reduceat(np.where(alive & (flight.age == 1), relative, -1.0), begins)
        more = np.where(news < _EASY, np.minimum(2 * pace.burst[sample], limits.in_flight[sample]), 1)
        pace.burst[sample] = np.where(news >= 0, more, pace.burst[sample])
    return Grades(sample, fails, released, left, poor, part, stuck, relative)


def _drop(pace: Pace, sample: np.ndarray, h: np.ndarray) -> None:
    """Segments are dropped; the next one is at most h long."""
    pace.next[sample], pace.longer[sample] = np.minimum(pace.next[sample], h), np.nan


def _diverging(flight: Flight, quality: Quality, relative: np.ndarray, sweep: SegmentSweep) -> np.ndarray:
    """Whether the iteration of a segment does not converge."""
    slack = np.where(flight.chains.level == 0, 1e-6, 0.3)
    grows = (quality.change > flight.change) & (relative > slack) & (flight.age > sweep.settled)
    return ~(relative < 1e3) | grows | (flight.age > sweep.patience)


def _rough(flight: Flight, quality: Quality, sweep: SegmentSweep) -> np.ndarray:
    """Whether a segment has not converged to the tolerance, or does not resolve the solution."""
    left, before = quality.change, flight.change
    rate = np.where(before > 0, left / before, 0.0)
    next_change = np.minimum(1.0, np.maximum(sweep.remainder(flight.stale), rate / (1 - rate)))
    steady = (rate < 0.5) & (flight.age > 1)
    return (np.where(steady, left * next_change, left) > np.fmax(0.5, quality.floor)) | (quality.tail > 1)
