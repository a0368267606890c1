"""March after march, each from the path of the one before, until the carried error is within the tolerance."""

from dataclasses import dataclass, replace

import numpy as np

from picardsolve.collocation.accuracy import Accuracy
from picardsolve.collocation.dense import Guide, Path
from picardsolve.collocation.events import Watch
from picardsolve.collocation.march import March

_ENOUGH = 1.0  # tolerances that the estimated error may be
_AIM = 0.2  # tolerances that another march aims at
_MARCHES = 4
_FINEST = 16.0  # units of rounding
_HOPELESS = 10.0  # tolerances: rounding alone


class Unreachable(Exception):
    """The tolerance cannot be reached; by what factor a larger one can."""

    def __init__(self, factor: float):
        super().__init__(factor)
        self.factor = factor


@dataclass
class Refinement:
    """`ask` and `tell` of a sample, over its marches.

    Attributes:
        march: the present one.
        widest: segments in flight of a march that is guided.
        wanted: ``(T,)`` times whose states are to be within tolerance, beside those of events; the last is the end.
        watch: that finds events.
        marches: how many there were.
        accuracy: of the path, once it is good enough.
        scaled: tolerance of the march in the user's.
    """

    march: March
    widest: int
    wanted: np.ndarray
    watch: Watch | None = None
    marches: int = 1
    accuracy: Accuracy | None = None
    scaled: float = 1.0

    @property
    def done(self) -> bool:
        """Whether the march is over, and good enough."""
        return self.march.done and self.accuracy is not None

    def ask(self) -> tuple[np.ndarray, np.ndarray]:
        """Times ``(R,)`` and states ``(R, d)`` of the next round."""
        return self.march.ask()

    def tell(self, drift: np.ndarray) -> None:
        """Take the drifts there.

        Raises:
            Stuck: no segment is short enough.
            Unreachable: the error stays above the tolerance.
        """
        self.march.tell(drift)
        if not self.march.done:
            return
        if self.march.span < self.wanted[-1] and self.watch is not None and self.watch.end is None:
            # the terminal event that shortened the span has moved beyond it, or does not happen
            self.march.extend(float(self.wanted[-1]))
            return
        accuracy = Accuracy.of(self.march.accepted, self.march.bounds)
        error, floor = self._in_tolerances(accuracy.error), self._in_tolerances(accuracy.floor)
        if floor > _HOPELESS:
            raise Unreachable(floor)
        if error <= _ENOUGH:
            self.accuracy = accuracy
            return
        factor = max(_AIM / error, 1e-4, self._finest())
        if self.marches < _MARCHES and factor < 1:
            self._again(factor)
        elif error > _HOPELESS:
            raise Unreachable(error)
        else:
            self.accuracy = accuracy

    def _in_tolerances(self, error: np.ndarray) -> float:
        """The largest of ``(S, d)`` errors at the ends of segments with wanted times in them, or of their starts."""
        segments, bounds = self.march.accepted, self.march.bounds
        allowed = bounds.allowed(np.array([segment.scale for segment in segments])) / self.scaled
        ends = np.array([segment.end for segment in segments])
        wanted = self.wanted if self.watch is None else np.concatenate([self.wanted, self.watch.times])
        holds = np.unique(np.searchsorted(ends[:-1], wanted))
        ratio = np.concatenate([0 * error[:1], np.abs(error) / allowed]).max(1)
        worst = float(np.maximum(ratio[holds], ratio[holds + 1]).max())
        return worst if np.isfinite(worst) else np.inf

    def _finest(self) -> float:
        """By what factor the present march's tolerance can be sharpened before all is rounding."""
        bounds, largest = self.march.bounds, np.max([segment.scale for segment in self.march.accepted], 0)
        return float((_FINEST * bounds.unit * largest / bounds.allowed(largest)).max())

    def _again(self, factor: float) -> None:
        """March again, to a sharper tolerance."""
        old, self.scaled = self.march, self.scaled * factor
        guide = Guide(Path(old.accepted, old.nodes), factor ** (1 / old.nodes.n))
        bounds = replace(
            old.bounds, rtol=old.bounds.rtol * factor, atol=old.bounds.atol * factor, in_flight=self.widest
        )
        self.marches += 1
        self.march = March(old.start, old.span, old.nodes, old.sweep, bounds, old.check, old.origin, guide, old.watch)
