"""What a width has been seen to cost and to bring, and what is expected of widths that were not tried."""

from collections import deque
from dataclasses import dataclass, field
from statistics import mean

from picardsolve.theory.latency import fitted_line

_SHARE = 0.7  # of a window's steps are accepted in a round, before any round has been seen
_TURN = 32  # steps beyond which the number of rounds falls only with the root of the width


@dataclass
class Seconds:
    """The shortest time of a round of each size; ``t(w) = a + b w``, fitted to them, for others."""

    _least: dict[int, float] = field(init=False, default_factory=dict)

    @property
    def known(self) -> int:
        """How many sizes have been seen."""
        return len(self._least)

    def note(self, size: int, seconds: float) -> None:
        """Take a round."""
        self._least[size] = min(seconds, self._least.get(size, seconds))

    def of(self, size: int) -> float:
        """Seconds of a round of a size; 0 where nothing is known."""
        if not self._least or size in self._least:
            return self._least.get(size, 0.0)
        a, b = fitted_line(self._least)
        return max(a + b * size, min(self._least.values()) * 0.1)


@dataclass
class Strides:
    """The steps that a round of each width accepts, averaged over its last rounds.

    Widths that were not tried are expected to accept in proportion to the root of the width (measured: methods with
    wide windows take 1 / sqrt(w) of the rounds).

    Attributes:
        judged: rounds of a width that are remembered.
    """

    judged: int
    _seen: dict[int, deque[float]] = field(init=False, default_factory=dict)

    @property
    def widths(self) -> set[int]:
        """The widths that were tried."""
        return set(self._seen)

    def note(self, width: int, stride: float) -> None:
        """Take a round."""
        if width > 1:
            self._seen.setdefault(width, deque(maxlen=self.judged)).append(float(stride))

    def of(self, width: int) -> float:
        """Steps that a round of a width accepts."""
        if width == 1:
            return 1.0
        tried = {w: mean(list(strides)) for w, strides in list(self._seen.items())}
        if width in tried:
            return tried[width]
        if tried:
            near = min(tried, key=lambda w: max(w / width, width / w))
            return min(width, tried[near] * (width / near) ** 0.5)
        return _SHARE * min(width, (width * _TURN) ** 0.5)
