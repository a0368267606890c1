"""A window as wide as pays, found from the rounds that are run anyway."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from torch import Tensor

from picardsolve.fixed_point.placement import alike
from picardsolve.fixed_point.width_costs import Seconds, Strides
from picardsolve.fixed_point.window import Window
from picardsolve.integrators.base import Rows
from picardsolve.problem.machine import Machine

_BETTER = 1.1  # a width must promise to be done so many times sooner to be worth a change
_JUDGED = 2  # rounds that a width is judged by, after a first one


class ChoosesWidth(Protocol):
    """What chooses the width of a window; see `Pace` for its attributes and methods."""

    @property
    def width(self) -> int:
        """Width of the next round."""
        ...

    @property
    def settled(self) -> bool:
        """Whether the choice is made for good."""
        ...

    @property
    def alone(self) -> bool:
        """Whether one step after the other is better from here on, for good or for now."""
        ...

    def limit(self, most: int) -> None:
        """For now no wider than ``most``."""

    def note(self, width: int, stride: float, seconds: float) -> None:
        """Take a round of ``width`` steps that accepted ``stride`` of them in some seconds."""


@dataclass
class Pace:
    """Chooses the width that is predicted to make most steps a second.

    A round of w steps takes ``t(w) = a + b w`` seconds, fitted to all rounds. It accepts ``s(w)`` steps: for widths
    that were tried, what they accepted; elsewhere in proportion to the root of the width (measured: methods with wide
    windows take 1 / sqrt(w) of the rounds). Widths 1 and 2 are tried first, then the best. Where no width promises to
    beat one step at a time, the width is 1.

    Attributes:
        most: the largest width.
        width: width of the next round; at first 1, where a round of one step costs nothing extra.
        settled: whether the choice is made.
    """

    most: int
    width: int = 1
    settled: bool = field(init=False, default=False)
    _seconds: Seconds = field(init=False, default_factory=Seconds)
    _strides: Strides = field(init=False, default_factory=lambda: Strides(_JUDGED))
    _rounds: int = field(init=False, default=0)  # since the width was chosen
    _late: bool = field(init=False, default=False)  # a window widens a round late
    _judging: bool = field(init=False, default=False)  # by what a width accepts; the first round of 2 is only timed

    @property
    def alone(self) -> bool:
        """Whether one step after the other is better from here on."""
        return self.settled and self.width == 1

    def __post_init__(self):
        self._widest = self.most
        self._late = self._judging = self.width > 1

    def note(self, width: int, stride: float, seconds: float) -> None:
        """Take a round of ``width`` steps that accepted ``stride`` of them; choose the width of the next one."""
        self._seconds.note(width, seconds)
        late, self._late = self._late, False
        if self.settled or width > self.width or (late and width < self.width):
            return
        self._rounds += 1
        if width > 2 or (self._judging and width > 1):
            self._strides.note(width, stride)
        if self._seconds.known == 1 and self.most > 1:
            self._change(2)
        elif not self._judging or self._rounds > _JUDGED:
            self._choose()

    def limit(self, most: int) -> None:
        """For now no wider than ``most``."""
        self.most = max(min(most, self._widest), 1)
        self.width = min(self.width, self.most)

    def _choose(self) -> None:
        widths = {2**k for k in range(self.most.bit_length())} | {self.most} | self._strides.widths
        best = max((w for w in widths if w <= self.most), key=self._rate)
        if self._rate(best) < _BETTER * max(self._rate(self.width), self._rate(1)):
            best = self.width if self._rate(self.width) > self._rate(1) else 1
        self.settled = best == 1 or best in self._strides.widths
        self._judging = True
        self._change(best)

    def _change(self, width: int) -> None:
        self._late = width > self.width
        self.width, self._rounds = width, 0

    def _rate(self, width: int) -> float:
        """Predicted steps a second."""
        return self._strides.of(width) / max(self._seconds.of(width), 1e-12)


@dataclass
class PacedWindow(Machine):
    """A window whose width follows from what its rounds cost.

    Attributes:
        window: what is solved.
        pace: chooses the width.
    """

    window: Window
    pace: ChoosesWidth

    def __post_init__(self):
        self.window.width = self.pace.width

    @property
    def done(self) -> bool:
        """Whether the window is done, or would do better one step at a time from here on."""
        return self.window.done or (self.pace.alone and alike(self.window.begin))

    def ask(self) -> Rows:
        """The window's rows."""
        self._began = perf_counter()
        return self.window.ask()

    def evaluate(self, rows: Rows) -> Tensor:
        """The drift's outputs at the rows."""
        return self.window.evaluate(rows)

    def tell(self, outputs: Tensor) -> None:
        """Pass the outputs on, and let the time of the round decide how wide the next one is."""
        window, before, begin = self.window, self.window.reached, self.window.begin
        window.tell(outputs)
        last, settings = window.history[-1], window.settings
        self.pace.limit(settings.stopping.widest(settings.width))
        stride = float((window.reached - before)[last.width.numpy() > 0].mean())
        again = before - begin if settings.stopping.patient else 0
        self.pace.note(int((last.width.numpy() - again).max()), stride, perf_counter() - self._began)
        self.window.width = self.pace.width
