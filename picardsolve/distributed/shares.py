"""How many rows of a round each device gets, from the time that its shares have taken so far."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from picardsolve.theory.latency import fitted_line

_RECENT = 8  # rounds that a device's time is fitted to: it may change
_APART = 1.5  # numbers of rows differ by this factor before a line is drawn through their times
_IDLE = 50  # rounds without rows after which a device is tried again


@dataclass
class Speed:
    """The time that one device takes for its rows, ``a + b rows`` seconds.

    Attributes:
        seen: rows and seconds of its latest shares.
        started: whether its first share is over, which takes longer.
        idle: rounds since its last share.
    """

    seen: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_RECENT))
    started: bool = False
    idle: int = 0

    def note(self, rows: int, seconds: float) -> None:
        """Take the time of a share."""
        if self.started:
            self.seen.append((rows, seconds))
        self.started, self.idle = True, 0

    def rest(self) -> None:
        """Take a round without rows."""
        self.idle += 1
        if self.idle == _IDLE:
            self.seen.clear()
            self.idle = 0

    def line(self) -> tuple[float, float] | None:
        """``a`` and ``b``; None where nothing is known. Nearly equal numbers of rows have all of the time."""
        if not self.seen:
            return None
        least: dict[int, float] = {}
        for rows, seconds in self.seen:
            least[rows] = min(seconds, least.get(rows, seconds))
        if max(least) >= _APART * min(least):
            a, b = fitted_line(least)
            if a >= 0 and b > 0:
                return a, b
        rows, seconds = self.seen[-1]
        return 0.0, least[rows] / rows


@dataclass
class Shares:
    """The shares of some devices.

    Attributes:
        speeds: of the devices.
        out: devices that get no more rows.
    """

    speeds: list[Speed]
    out: set[int] = field(default_factory=set)

    @staticmethod
    def of(devices: int) -> "Shares":
        """The shares of so many devices, of which nothing is known yet."""
        return Shares([Speed() for _ in range(devices)])

    def of_rows(self, rows: int, unit: int = 1) -> list[int]:
        """How many rows each device gets, in whole units: so that all are expected to be done at the same time."""
        whole = self._units(-(-rows // unit), unit)
        shares, left = [], rows
        for count in whole:
            shares.append(min(count * unit, left))
            left -= shares[-1]
        return shares

    def note(self, rows: Sequence[int], seconds: Sequence[float | None]) -> None:
        """Take the times of a round; None for a device without rows, or that failed. A round of one device is none."""
        if sum(value is not None for value in seconds) < 2:
            return
        for speed, count, value in zip(self.speeds, rows, seconds, strict=True):
            if value is None:
                speed.rest()
            else:
                speed.note(count, value)

    def _units(self, units: int, size: int) -> list[int]:
        devices = [k for k in range(len(self.speeds)) if k not in self.out]
        lines = [self.speeds[k].line() for k in devices]
        known = np.array([line for line in lines if line is not None])
        if known.size and units > 1:
            usual = tuple(known.mean(0))
            a, b = np.array([usual if line is None else line for line in lines]).T
        else:
            a, b = np.zeros(len(devices)), np.ones(len(devices))
        counts = _level(a, b * size, units)
        shares = [0] * len(self.speeds)
        for k, count in zip(devices, counts, strict=True):
            shares[k] = int(count)
        return shares


def _level(a: np.ndarray, b: np.ndarray, units: int) -> np.ndarray:
    """Whole numbers of units, with the given sum, whose largest time ``a + b units`` is nearly the least."""
    low, high = float(a.min()), float((a + b * units).min())
    for _ in range(50):  # the water level: within it the devices can do as much as is asked for
        middle = (low + high) / 2
        done = np.clip((middle - a) / b, 0, None).sum()
        low, high = (middle, high) if done < units else (low, middle)
    counts = np.floor(np.clip((high - a) / b, 0, None) + 1e-9).astype(int)
    while counts.sum() > units:
        counts[(a + b * counts).argmax()] -= 1
    while counts.sum() < units:  # at most one for each device
        counts[(a + b * (counts + 1)).argmin()] += 1
    return counts
