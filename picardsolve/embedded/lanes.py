"""What the host knows of the samples that step side by side, and what the user asks of their steps."""

from dataclasses import dataclass

import numpy as np

_LONGER = 1.2  # times the length that was chosen, at most, for a step that ends where steps must: it saves another


@dataclass
class Lanes:
    """What the host knows of the samples that step, ``(R,)`` each.

    Attributes:
        sample: their numbers.
        t: times reached.
        h: the next length, > 0.
        sign: of the direction of time.
        end: where they stop.
        begin: where they started.
        before: the error of the step accepted last, in what is allowed.
        again: whether the step is tried again.
        stiff: how many steps in a row looked stiff.
        steps: accepted so far.
        over: whether nothing is left to do.
    """

    sample: np.ndarray
    t: np.ndarray
    h: np.ndarray
    sign: np.ndarray
    end: np.ndarray
    begin: np.ndarray
    before: np.ndarray
    again: np.ndarray
    stiff: np.ndarray
    steps: np.ndarray
    over: np.ndarray

    @staticmethod
    def of(sample: np.ndarray, begin: np.ndarray, end: np.ndarray) -> "Lanes":
        """Before the first step."""
        count, off = len(sample), np.zeros(len(sample), bool)
        zero = np.zeros(count)
        sign = np.where(end > begin, 1.0, -1.0)
        number = np.zeros(count, np.int64)
        return Lanes(sample, begin.copy(), zero, sign, end, begin, zero + 1, off, number, number, off)

    def kept(self, rows: np.ndarray) -> "Lanes":
        """Some of them."""
        return Lanes(*(value[rows] for value in vars(self).values()))

    @property
    def predicted(self) -> np.ndarray:
        """How many steps there will be if the rest goes as what is done."""
        with np.errstate(all="ignore"):
            return self.steps * np.abs(self.end - self.begin) / np.abs(self.t - self.begin)

    @property
    def shortest(self) -> np.ndarray:
        """Eight times what times can tell apart."""
        return 8 * np.finfo(float).eps * np.maximum(np.abs(self.t), np.finfo(float).eps * np.abs(self.end - self.begin))


@dataclass(frozen=True)
class Limits:
    """What the user asks of steps.

    Attributes:
        first: length of the first; None: chosen.
        least: a step this short is accepted whatever its error.
        most: longest.
        steps: most of them, of a sample.
        stops: ``(P,)`` increasing times that steps end at.
        jumps: ``(P,)`` whether the drift jumps there.
    """

    first: float | None
    least: float
    most: float
    steps: float
    stops: np.ndarray
    jumps: np.ndarray

    def targets(self, lanes: Lanes) -> tuple[np.ndarray, np.ndarray | None]:
        """Where steps end ``(R,)``, and whether the drift jumps there; None: it jumps nowhere."""
        h = lanes.h if self.free else lanes.h.clip(self.least, self.most)
        stop, jumps = self._next_stop(lanes.t, lanes.sign, lanes.end)
        left = np.abs(stop - lanes.t)
        half = left / 2  # two steps of one length, where a second one would be shorter than the first
        longest = np.where(lanes.again, h, np.minimum(_LONGER * h, self.most))  # that may have been tried already
        reached = np.where(longest >= left, stop, lanes.t + lanes.sign * np.where(h > half, half, h))
        reached = np.where(lanes.over, lanes.t, reached)
        return reached, None if jumps is None or not jumps.any() else jumps & (reached == stop)

    @property
    def free(self) -> bool:
        """Whether lengths have no limits."""
        return self.least == 0 and self.most == np.inf

    def _next_stop(self, t: np.ndarray, sign: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The next times ``(R,)`` that steps must end at, and whether the drift jumps there."""
        if not len(self.stops):
            return end, None
        up = np.searchsorted(self.stops, t, side="right")
        down = np.searchsorted(self.stops, t, side="left") - 1
        at = np.where(sign > 0, up, down)
        inside = (at >= 0) & (at < len(self.stops))
        at = np.clip(at, 0, len(self.stops) - 1)
        stop = self.stops[at]
        inside &= sign * (end - stop) > 0
        return np.where(inside, stop, end), inside & self.jumps[at]
