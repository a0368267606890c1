"""How far a path is from the solution at its end: errors of the segments, carried on by their flows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picardsolve.collocation.check import Checked
from picardsolve.collocation.segments import Bounds


@dataclass(frozen=True)
class Accuracy:
    """Estimates at the S ends of the segments.

    Attributes:
        error: ``(S, d)`` with its sign: what to add to the states there.
        floor: ``(S, d)`` what rounding may have become.
        growth: largest factor that an error, in tolerances, grew by on its way to the end; NaN where flows are not
            known.
    """

    error: np.ndarray
    floor: np.ndarray
    growth: float

    @staticmethod
    def of(segments: Sequence[Checked], bounds: Bounds) -> "Accuracy":
        """``e[s + 1] = flow[s] e[s] + error[s]``; where flows are not known, sizes are added up."""
        known = all(segment.flow is not None for segment in segments)
        size = len(segments[0].error)
        error, floor = np.zeros((len(segments), size)), np.zeros((len(segments), size))
        carried, growth = np.zeros(size), np.nan
        noise, flown = (np.zeros((size, size)), np.eye(size)) if known else (None, None)
        with np.errstate(all="ignore"):
            for s, segment in enumerate(segments):
                if noise is not None and flown is not None:
                    assert segment.flow is not None
                    carried = segment.flow @ carried + segment.error
                    # independent errors: their covariance is carried, and its diagonal read
                    noise = segment.flow @ noise @ segment.flow.T + np.diag(segment.noise**2)
                    flown = segment.flow @ flown
                    floor[s] = np.sqrt(np.diag(noise))
                else:
                    carried = carried + np.abs(segment.error)
                    floor[s] = segment.noise + (floor[s - 1] if s else 0)
                error[s] = carried
            if flown is not None:
                allowed = bounds.allowed(np.max([segment.scale for segment in segments], 0))
                flown = flown * (allowed / allowed[:, None])
                growth = float(np.linalg.norm(flown, 2)) if np.isfinite(flown).all() else np.inf
        return Accuracy(error, floor, growth)
