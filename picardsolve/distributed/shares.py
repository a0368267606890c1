"""How many rows of a round each device gets, from the time that its shares have taken so far."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from picardsolve.theory.latency import fitted_line

_BETTER = 1.1  # other shares must promise a round so many times shorter to be worth a change
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

    def line(self) -> tuple[float, float]:
        """``a`` and ``b``. Where numbers of rows were nearly equal, all of the time is theirs."""
        least: dict[int, float] = {}
        for rows, seconds in self.seen:
            least[rows] = min(seconds, least.get(rows, seconds))
        if max(least) >= _APART * min(least):
            a, b = fitted_line(least)
            if a >= 0 and b > 0:
                return a, b
        rows, _ = self.seen[-1]
        return 0.0, least[rows] / rows


@dataclass
class Shares:
    """The shares of some devices. They are even at first, and change where that makes a round clearly shorter.

    Attributes:
        speeds: of the devices.
        weights: what part of the rows each gets.
        out: devices that get no more rows.
    """

    speeds: list[Speed]
    weights: np.ndarray
    out: set[int] = field(default_factory=set)

    @staticmethod
    def of(devices: int) -> "Shares":
        """The shares of so many devices, of which nothing is known yet."""
        return Shares([Speed() for _ in range(devices)], np.ones(devices))

    def of_rows(self, rows: int, unit: int = 1) -> list[int]:
        """How many rows each device gets, in whole units."""
        units = -(-rows // unit)
        exact = units * self.weights / self.weights.sum()
        whole = np.floor(exact + 1e-9)
        more = np.argsort(whole - exact, kind="stable")[: int(units - whole.sum())]
        whole[more] += 1
        shares = []
        for count in whole.astype(int):
            shares.append(int(min(count * unit, rows - sum(shares))))
        return shares

    def drop(self, device: int) -> None:
        """Give a device no more rows."""
        self.out.add(device)
        self.weights[device] = 0
        if not self.weights.any():
            self._even()

    def note(self, rows: Sequence[int], seconds: Sequence[float | None]) -> None:
        """Take the times of a round, None for a device without rows. Fewer rows than devices tell nothing."""
        if sum(rows) < len(rows):
            return
        alone = sum(value is not None for value in seconds) < 2
        for k, (speed, count, value) in enumerate(zip(self.speeds, rows, seconds, strict=True)):
            if value is None and k not in self.out:
                speed.idle += 1
                if speed.idle == _IDLE:
                    speed.seen.clear()
                    self._even()
            elif value is not None and not alone:
                speed.note(count, value)
        if alone:
            return
        devices = [k for k in range(len(rows)) if k not in self.out]
        if any(not self.speeds[k].seen for k in devices):
            return
        a, b = np.array([self.speeds[k].line() for k in devices]).T
        took = max(value for value in seconds if value is not None)
        level, counts = _level(a, b, sum(rows))
        if took > _BETTER * level:
            self.weights[devices] = counts

    def _even(self) -> None:
        self.weights = np.array([0.0 if k in self.out else 1.0 for k in range(len(self.speeds))])


def _level(a: np.ndarray, b: np.ndarray, rows: int) -> tuple[float, np.ndarray]:
    """The least time in which devices of ``a + b rows`` seconds can do so many rows, and how many each does."""
    low, high = float(a.min()), float((a + b * rows).min())
    for _ in range(50):
        middle = (low + high) / 2
        done = np.clip((middle - a) / b, 0, None).sum()
        low, high = (middle, high) if done < rows else (low, middle)
    return high, np.clip((high - a) / b, 0, None)
