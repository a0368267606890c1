"""How long a parallel solve takes on some devices: a model of its cost, for planning and for comparison."""

from collections.abc import Mapping
from dataclasses import dataclass

from picardsolve.theory.latency import fitted_line


@dataclass(frozen=True)
class WallClock:
    """Predicted seconds of a solve.

    Attributes:
        drift: in which the devices evaluate rows.
        gathered: in which rows and values cross between devices.
        overhead: of the rounds themselves: launches, waits, messages.
        sequential: of one step after the other on one device.
    """

    drift: float
    gathered: float
    overhead: float
    sequential: float

    @property
    def seconds(self) -> float:
        """Of the whole solve."""
        return self.drift + self.gathered + self.overhead

    @property
    def gain(self) -> float:
        """How many times sooner than the sequential solve."""
        return self.sequential / self.seconds


def wall_clock(
    steps: int,
    rounds: int,
    rows: int,
    latency: Mapping[int, float],
    devices: int = 1,
    *,
    bytes_per_row: float = 0.0,
    bandwidth: float = 1e9,
    overhead: float = 1e-3,
    message: float = 0.0,
) -> WallClock:
    """Predict the time of a solve from what a device takes for a number of rows. An estimate, not a bound.

        theory.wall_clock(steps=50, rounds=12, rows=16, latency={1: 0.167, 4: 0.240, 8: 0.425}, devices=4)

    Of each round every device does an even share of the rows, and the slowest share decides. Rows cross to the other
    devices and values come back, one after the other, over one link of the device that solves. Between the numbers of
    rows that were measured, times are interpolated; beyond them they go on along the line through the two largest.

    Args:
        steps: N, of the sequential solve.
        rounds: of the parallel one; a table of measured ones is in docs/pipelines.md.
        rows: in a round.
        latency: seconds that one device takes for some numbers of rows.
        devices: that share the rows.
        bytes_per_row: of one state; its values are taken to be as large.
        bandwidth: bytes a second between devices.
        overhead: seconds of a round beside the drift, see docs/devices.md.
        message: seconds that a message takes however small it is; there are two for each other device and round.

    Raises:
        ValueError: a number is out of range, or ``latency`` is empty.
    """
    if not latency or min(latency) < 1 or min(latency.values()) <= 0:
        raise ValueError(f"latency: expected seconds by numbers of rows from 1, got {dict(latency)!r}.")
    given = {"steps": steps, "rounds": rounds, "rows": rows, "devices": devices, "bandwidth": bandwidth}
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"{name}: expected a number > 0, got {value!r}.")
    share = -(-rows // devices)
    away = rows - share
    crossing = 2 * away * bytes_per_row / bandwidth + 2 * message * min(devices - 1, away)
    return WallClock(
        rounds * latency_of(share, latency), rounds * crossing, rounds * overhead, steps * latency_of(1, latency)
    )


def latency_of(rows: int, latency: Mapping[int, float]) -> float:
    """Seconds for a number of rows, between measured ones or beyond them; never less than for fewer rows."""
    known = sorted(latency)
    below = [n for n in known if n <= rows]
    above = [n for n in known if n >= rows]
    between = bool(below and above)
    near = (below[-1], above[0]) if between else tuple(known[-2:] if below else known[:2])
    if near[0] == near[-1]:
        return latency[near[0]]
    a, b = fitted_line({n: latency[n] for n in near})
    return max(a + b * rows, min(latency.values())) if not below else a + b * rows
