"""What rounds of each size take, as seen from rounds that are run anyway, on a machine that has other work, too."""

from dataclasses import dataclass, field
from itertools import accumulate

_NEEDED = 3  # rounds of about one size before it counts: the first ones reserve memory, and any may be interrupted


@dataclass
class Costs:
    """The shortest time of a round of each size.

    Of the sizes between two powers of two the one that was fastest for its size stands for all. Times between sizes are
    interpolated, and larger sizes never take less.
    """

    _best: dict[int, tuple[int, float]] = field(init=False, default_factory=dict)  # size and seconds, by power of two
    _counts: dict[int, int] = field(init=False, default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether any size counts."""
        return bool(self._points())

    def note(self, size: int, seconds: float) -> None:
        """Take a round."""
        power = (size - 1).bit_length()
        self._counts[power] = self._counts.get(power, 0) + 1
        best = self._best.get(power)
        if best is None or seconds * best[0] <= best[1] * size:
            self._best[power] = size, seconds

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
        counted = dict(self._counts)  # copies: the threads that share a model note what they see meanwhile
        best = sorted(point for power, point in list(self._best.items()) if counted.get(power, 0) >= _NEEDED)
        least = [*accumulate((seconds for _, seconds in reversed(best)), min)][::-1]
        return [(size, seconds) for (size, _), seconds in zip(best, least, strict=True)]


def _last_slope(points: list[tuple[int, float]]) -> float:
    """Seconds of each row more, beyond the largest size; 0 where one size is known."""
    if len(points) < 2:
        return 0.0
    (size, seconds), (more, longer) = points[-2:]
    return (longer - seconds) / (more - size)
