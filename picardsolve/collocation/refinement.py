"""March after march, each guided by the path of the one before, until the error at the end is within tolerance."""

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
_MARCHES = 4
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


@dataclass
class Refinement:
    """`ask` and `tell` of a sample, over its marches.

    Attributes:
        march: the present march.
        marches: how many there were.
        error: of the march, once it is small enough.
    """

    march: March
    marches: int = 1
    error: PropagatedError | None = None

    def __post_init__(self):
        self._wanted = self.march.problem.elapsed[1:]

    @property
    def done(self) -> bool:
        """Whether the march is over and its error small enough."""
        return self.march.done and self.error is not None

    def ask(self) -> tuple[np.ndarray, np.ndarray]:
        """Elapsed times ``(R,)`` and states ``(R, d)`` of the next round."""
        return self.march.ask()

    def tell(self, drift: np.ndarray) -> None:
        """Take the drifts there.

        Raises:
            Stuck: no segment is short enough.
            Unreachable: the error stays above the tolerance.
        """
        march = self.march
        march.tell(drift)
        if not march.done:
            return
        if march.span < self._wanted[-1] and march.watch is not None and march.watch.end is None:
            # the terminal event that shortened the span has moved beyond it, or does not happen
            march.extend(float(self._wanted[-1]))
            return
        found = PropagatedError.of(march.accepted, march.limits)
        error, floor = self._in_tolerances(found, found.error), self._in_tolerances(found, found.floor)
        if floor > _HOPELESS:
            raise Unreachable(floor)
        factor = max(_AIM / error, 1e-4, self._finest()) if error > _ENOUGH else 1.0
        if factor < 1 and self.marches < _MARCHES:
            self._again(factor)
        elif error > _HOPELESS:
            raise Unreachable(error)
        else:
            self.error = found

    def _in_tolerances(self, found: PropagatedError, error: np.ndarray) -> float:
        """The largest of ``(S, d)`` errors at either end of the segments that hold wanted times or events."""
        march, watch = self.march, self.march.watch
        ends = np.array([segment.end for segment in march.accepted])
        wanted = self._wanted if watch is None else np.concatenate([self._wanted, watch.times])
        holds = np.unique(np.searchsorted(ends[:-1], wanted))
        ratio = np.concatenate([0 * error[:1], np.abs(error) / found.allowed]).max(1)
        worst = float(np.maximum(ratio[holds], ratio[holds + 1]).max())
        return worst if np.isfinite(worst) else np.inf

    def _finest(self) -> float:
        """The least factor by which the march's tolerance can be sharpened before all is rounding."""
        limits, largest = self.march.limits, np.max([segment.scale for segment in self.march.accepted], 0)
        return float((_FINEST * limits.unit * largest / limits.allowed(largest)).max())

    def _again(self, factor: float) -> None:
        """March again, to a sharper tolerance."""
        old = self.march
        guide, in_flight = Guide(PiecewisePolynomial(old.accepted), factor ** (1 / old.nodes.n)), old.limits.in_flight
        if old.sweep.quadratic:
            in_flight = max(_ROWS // (old.nodes.n * (1 + old.problem.unknowns)), in_flight)
        limits = old.limits.sharpened(factor, in_flight)
        self.march = March(old.problem, old.sweep, old.check, limits, old.watch, guide, span=old.span)
        self.marches += 1
