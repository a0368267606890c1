"""The time of a round as a line in its number of rows."""

from collections.abc import Mapping
from statistics import mean


def fitted_line(seconds: Mapping[int, float]) -> tuple[float, float]:
    """``a`` and ``b >= 0`` of ``t(w) = a + b w``, fitted by least squares to the seconds of rounds of w rows."""
    centre = mean(seconds)
    spread = sum((w - centre) ** 2 for w in seconds)
    slope = sum((w - centre) * t for w, t in seconds.items()) / spread if spread else 0.0
    slope = max(slope, 0.0)
    return mean(seconds.values()) - slope * centre, slope
