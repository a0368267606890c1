"""How errors are propagated to the end, and the sharper march that follows where they exceed the tolerance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picardsolve.collocation.check import CheckedSegment
from picardsolve.collocation.failures import Unreachable
from picardsolve.collocation.initial_value import Limits
from picardsolve.collocation.march import Guide, March
from picardsolve.collocation.trajectory import PiecewisePolynomial

_ENOUGH = 1.0  # tolerances that the estimated error may be
_AIM = 0.2  # tolerances that another march aims at
_FINEST = 16.0  # units of rounding
_HOPELESS = 10.0  # tolerances: rounding alone
_ROWS = 20_000  # of a round of Newton's method that is guided


@dataclass(frozen=True)
class PropagatedError:
    """Errors of segments, propagated by their flows: estimates at the S ends of the segments.

    Attributes:
        error: ``(S, d)`` signed: what to add to the states there.
        floor: ``(S, d)`` standard deviation from rounding.
        allowed: ``(S, d)`` error that the user's tolerance allows.
        growth: largest factor by which an error, in tolerances, grew on its way to the end; NaN where flows are not
            known.
    """

    error: np.ndarray
    floor: np.ndarray
    allowed: np.ndarray
    growth: float

    @staticmethod
    def of(segments: Sequence[CheckedSegment], limits: Limits) -> "PropagatedError":
        """``e[s + 1] = flow[s] e[s] + error[s]``; where flows are not known, sizes of errors are added up."""
        scales = np.array([segment.scale for segment in segments])
        flows = [segment.flow for segment in segments if segment.flow is not None]
        if len(flows) < len(segments):
            errors = np.abs([segment.error for segment in segments]).cumsum(0)
            floor, growth = np.cumsum([segment.noise for segment in segments], 0), np.nan
            return PropagatedError(errors, floor, limits.allowed(scales) / limits.scale, growth)
        size = scales.shape[1]
        error, floor = np.zeros_like(scales), np.zeros_like(scales)
        carried, covariance, flown = np.zeros(size), np.zeros((size, size)), np.eye(size)
        with np.errstate(all="ignore"):
            for s, (segment, flow) in enumerate(zip(segments, flows, strict=True)):
                error[s] = carried = flow @ carried + segment.error
                covariance = flow @ covariance @ flow.T + np.diag(segment.noise**2)  # roundings are independent
                floor[s] = np.sqrt(np.diag(covariance))
                flown = flow @ flown
            allowed = limits.allowed(scales.max(0))
            flown = flown * (allowed / allowed[:, None])
            growth = float(np.linalg.norm(flown, 2)) if np.isfinite(flown).all() else np.inf
        return PropagatedError(error, floor, limits.allowed(scales) / limits.scale, growth)

    def at_either_end(self) -> np.ndarray:
        """``(S, d)``: the larger error of each segment's two ends."""
        sizes = np.abs(self.error)
        return np.maximum(np.concatenate([0 * sizes[:1], sizes[:-1]]), sizes)


def _in_tolerances(errors: np.ndarray, march: March, allowed: np.ndarray) -> float:
    """The largest of ``(S, d)`` errors at either end of the segments that hold wanted times or events."""
    ends, wanted = np.array([segment.end for segment in march.accepted]), march.problem.elapsed[1:]
    if march.watch is not None:
        wanted = np.concatenate([wanted, march.watch.times])
    holds = np.unique(np.searchsorted(ends[:-1], wanted))
    ratio = np.concatenate([0 * errors[:1], np.abs(errors) / allowed]).max(1)
    worst = float(np.maximum(ratio[holds], ratio[holds + 1]).max())
    return worst if np.isfinite(worst) else np.inf


def refined(march: March, found: PropagatedError, again: bool) -> March | None:
    """A march to a sharper tolerance, guided by the path of one that is done; None where that one is good enough.

    Args:
        march: that is done.
        found: its error.
        again: whether another march may be begun.

    Raises:
        Unreachable: the error stays above the tolerance.
    """
    error, floor = (_in_tolerances(value, march, found.allowed) for value in (found.error, found.floor))
    if floor > _HOPELESS:
        raise Unreachable(floor)
    if error <= _ENOUGH:
        return None
    limits, largest, n = march.limits, np.max([segment.scale for segment in march.accepted], 0), march.nodes.n
    finest = float((_FINEST * limits.unit * largest / limits.allowed(largest)).max())  # beyond, all is rounding
    factor = max(_AIM / error, 1e-4, finest)
    if not again or factor >= 1:
        if error > _HOPELESS:
            raise Unreachable(error)
        return None
    in_flight = limits.in_flight
    if march.sweep.quadratic:
        in_flight = max(_ROWS // (n * (1 + march.problem.unknowns)), in_flight)
    guide = Guide(PiecewisePolynomial(march.accepted), factor ** (1 / n))
    sharper = limits.sharpened(factor, in_flight)
    return March(march.problem, march.sweep, march.check, sharper, march.watch, guide, span=march.span)
