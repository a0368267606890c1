"""Which segments are appended behind those in flight: where they begin, and how long they are."""

import numpy as np

from picardsolve.collocation.flight import Flight
from picardsolve.collocation.grading import GROWS, Grades, Pace
from picardsolve.collocation.guide import Guide, fitted
from picardsolve.collocation.initial_value import Limits
from picardsolve.collocation.quality import Quality
from picardsolve.collocation.sweeps import Followers, SegmentSweep


def followers(
    flight: Flight,
    quality: Quality,
    grades: Grades,
    on: np.ndarray,
    sweep: SegmentSweep,
    pace: Pace,
    limits: Limits,
    span: np.ndarray,
    guide: Guide,
) -> list[Followers]:
    """The segments to be appended behind the last of each sample, once its relative change is small.

    Several where the solution is easy. First those of samples without a guide, then those of samples with one.

    Args:
        flight: after the sweep.
        quality: of its segments.
        grades: what is decided of them.
        on: ``(A,)`` which of the samples go on.
        sweep: the iteration.
        pace: of the samples, ``(B,)``.
        limits: of segments.
        span: ``(B,)`` elapsed time to reach.
        guide: earlier paths.
    """
    behind, sample = flight.chains.begins + grades.left - 1, grades.sample
    flying = grades.left - grades.released + (grades.poor >= 0)
    settled = (grades.relative[behind] < sweep.eager) & (grades.poor != behind)
    guided = guide.guides(sample)
    ready, out = on & (guided | (flying == 0) | settled), []
    for which, most in ((ready & ~guided, pace.burst), (ready & guided, limits.in_flight)):
        if np.count_nonzero(which):
            own, at = sample[which], behind[which]
            room = np.minimum(most[own], limits.in_flight[own] - flying[which])
            easy = (pace.longer[own] == GROWS) & (quality.tail[at] < 1e-3)
            out.append(_line(own, at, flight.end[at], room, easy, pace, limits.longest, span[own], guide))
    return out


def _line(
    sample: np.ndarray,
    behind: np.ndarray,
    end: np.ndarray,
    most: np.ndarray,
    easy: np.ndarray,
    pace: Pace,
    longest: float,
    span: np.ndarray,
    guide: Guide,
) -> Followers:
    """Segments behind elapsed times ``end``, at most so many of each sample; all are guided, or none is."""
    led = bool(guide.guides(sample)[0])
    length, before, known = np.minimum(pace.next[sample], longest), sample, led | ~np.isnan(pace.longer[sample])
    parts, level, made = [], 0, 0
    while True:
        left = span - end
        more = (left > 1e-13 * span) & (level < most)
        if level:
            more &= known
        count = np.count_nonzero(more)
        if not count:
            break
        if count < len(more):
            each = sample, behind, end, most, span, length, easy, known, left, before
            sample, behind, end, most, span, length, easy, known, left, before = (part[more] for part in each)
        h = guide.lengths(sample, end, left) if led else fitted(length, left)
        parts.append((np.full(len(sample), level), behind, before, sample, end, h))
        before, made = made + np.arange(len(sample)), made + len(sample)
        end, level = end + h, level + 1
        length = np.where(easy, np.minimum(GROWS * length, longest), length)
    if not parts:
        return Followers.none()
    return Followers(*(part[0] if level == 1 else np.concatenate(part) for part in zip(*parts, strict=True)))
