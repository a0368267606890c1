"""What rounds of each size take, as seen from rounds that are run anyway, on a machine that has other work, too."""

from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import median_low

_NEEDED = 3  # rounds of about one size before it counts: the first ones reserve memory, and any may be interrupted
_KEPT = 16  # rounds of about one size that are remembered


@dataclass
class Costs:
    """The median time of the latest rounds of each size.

    Of the sizes between two powers of two one stands for all: that whose time for its size is the median. Times between
    sizes are interpolated, and larger sizes never take less.
    """

    _latest: dict[int, deque[tuple[float, int, float]]] = field(init=False, default_factory=dict)  # by power of two

    @property
    def known(self) -> bool:
        """Whether any size counts."""
        return bool(self._points())

    def note(self, size: int, seconds: float) -> None:
        """Take a round."""
        power = (size - 1).bit_length()
        self._latest.setdefault(power, deque(maxlen=_KEPT)).append((seconds / size, size, seconds))

    def knows(self, size: int) -> bool:
        """Whether rounds of about a size count."""
        return len(self._latest.get((size - 1).bit_length(), ())) >= _NEEDED

    def of(self, size: int) -> float:
        """Seconds of a round of a size; 0 where nothing is known."""
        points = self._points()
        below = max((point for point in points if point[0] <= size), default=None)
        above = min((point for point in points if point[0] >= size), default=None)
        if below is None or above is None or below[0] == size:
            if below is None:
                return 0.0 if above is None else above[1]
            return below[1] + (size - below[0]) * _last_slope(points)
        return below[1] + (above[1] - below[1]) * (size - below[0]) / (above[0] - below[0])

    def _points(self) -> list[tuple[int, float]]:
        """Sizes with their seconds, in order, none of which is longer than that of a larger size."""
        latest = [[*rounds] for rounds in [*self._latest.values()]]  # copies: threads that share a model note meanwhile
        middle = sorted(median_low(rounds)[1:] for rounds in latest if len(rounds) >= _NEEDED)
        least = [*accumulate((seconds for _, seconds in reversed(middle)), min)][::-1]
        return [(size, seconds) for (size, _), seconds in zip(middle, least, strict=True)]


def _last_slope(points: list[tuple[int, float]]) -> float:
    """Seconds of each row more, beyond the largest size; 0 where one size is known."""
    if len(points) < 2:
        return 0.0
    (size, seconds), (more, longer) = points[-2:]
    return (longer - seconds) / (more - size)
