"""The first rounds of a solve with windows of one width: how long they take, and what they say of the whole grid."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

import numpy as np
from torch import Tensor

from picardsolve.fixed_point.sequential import Stepper
from picardsolve.fixed_point.window import Window
from picardsolve.integrators.base import DriftChain, Rows
from picardsolve.problem.machine import Machine, drive
from picardsolve.theory.latency import fitted_line

_FIRST, _WIDER = 8, 4  # width of the first trial; how many times wider each next one is
_LEAST, _MOST = 5, 40  # rounds that a trial may take: on short grids, on long ones
_SHARE = 5  # all trials take at most one over this of the sequential solver's calls, and of their time
_FEWEST = 8  # rounds: the first three or four accept one step each, whatever the width
_SETTLED = 1  # widths that a window has to advance before its pace is about the one that it keeps
_ENOUGH = 2  # widths that it has to advance before more rounds would say nothing new
_FAR = 64  # steps that it has to advance as well: narrow windows see little of the grid
_OVERHEAD = 0.1  # of the shortest call: the least that one of no rows is taken for
_SATURATED = 1.4  # times fewer rounds with windows four times as wide: if less, wider ones do not help


class Trial(Machine):
    """A real solve that ends as soon as its pace is known.

    Attributes:
        window: the window of the solve.
        width: steps in the window.
        seconds: the least seconds of a drift "call" and of a whole "round", by how many steps of each sample it held.
        spent: seconds of all drift calls.
    """

    def __init__(self, window: Window):
        self.window, self.width = window, window.width
        self.seconds: dict[str, dict[int, float]] = {"call": {}, "round": {}}
        self.spent = 0.0
        self._began = self._call = 0.0

    @property
    def reached(self) -> int:
        """Steps that all samples have accepted; samples that failed do not count, and 0 if all have failed."""
        return min(self.window.begin[~self.window.failed], default=0)

    @property
    def settled(self) -> bool:
        """Whether the window has reached the end of the grid, or advanced far enough to show its pace."""
        return self.window.done or self.reached >= _SETTLED * self.width

    @property
    def done(self) -> bool:
        """Whether more rounds would say nothing new."""
        enough = self.reached >= max(_ENOUGH * self.width, _FAR) and len(self.window.history) >= _FEWEST
        return self.window.done or enough

    def ask(self) -> Rows:
        """The rows of the next round."""
        self._began = perf_counter()
        return self.window.ask()

    def evaluate(self, rows: Rows) -> Tensor:
        """The drift's outputs at the rows; returns when the device has computed them."""
        began = perf_counter()
        outputs = _wait_for(self.window.evaluate(rows))
        self._call = perf_counter() - began
        return outputs

    def tell(self, outputs: Tensor) -> None:
        """Take the outputs, and note how long the round took."""
        self.window.tell(outputs)
        now, held = perf_counter(), int(self.window.history[-1].width.max())
        self.spent += self._call
        if 2 * held > self.width:  # the first round is short, and slow
            for kind, taken in (("call", self._call), ("round", now - self._began)):
                self.seconds[kind][held] = min(taken, self.seconds[kind].get(held, math.inf))

    def rounds(self) -> np.ndarray:
        """Expected rounds of the whole grid at the pace of the later half of the rounds, ``(B,)``; 0 if failed."""
        window, length = self.window, self.window.chain.length
        begins = np.stack([*(record.begin.numpy() for record in window.history), window.begin])
        count = len(begins) - 1
        pace = (begins[-1] - begins[count // 2]) / (count - count // 2)
        ahead = count + np.ceil((length - begins[-1]) / np.maximum(pace, 1 / count))
        rounds = np.where(window.begin == length, (begins == length).argmax(0), np.minimum(ahead, length))
        return np.where(window.failed, 0, rounds)


def seconds_of_a_step(chain: DriftChain, y: Tensor) -> float:
    """The time that the sequential solver takes for its first step."""
    began = perf_counter()
    stepper = Stepper(chain, y)
    drive(stepper, 1)
    _wait_for(stepper.y)
    return perf_counter() - began


def _wait_for(values: Tensor) -> Tensor:
    """The values, once their device has computed them."""
    if values.device.type != "cpu":
        values.flatten()[:1].tolist()
    return values


@dataclass
class Trials:
    """Trials of a few widths, and what they say of the others.

    Attributes:
        widest: the widest window that there can be.
        each: the trials, narrowest first.
    """

    widest: int
    each: list[Trial] = field(default_factory=list)

    @staticmethod
    def run(start: Callable[[int], Window], chain: DriftChain, widest: int, step: float) -> "Trials":
        """Try windows of 8 steps, of 32, and wider ones as long as rounds fall and the trials are cheap.

        Args:
            start: makes the window of a solve, of so many steps.
            chain: the chain of all these solves.
            widest: the widest window that there can be.
            step: seconds of a step of the sequential solver.
        """
        trials, width, length = Trials(widest), min(_FIRST, widest), chain.length
        rounds = min(max((length // _SHARE - 3) // 2, _LEAST), _MOST)
        while True:
            trials.each.append(Trial(start(width)))
            drive(trials.each[-1], rounds)
            if width == widest:
                return trials
            width = min(width * _WIDER, widest)
            if len(trials.each) > 1:
                call, row = trials.seconds("call")
                seconds = sum(trial.spent for trial in trials.each) + rounds * (call + row * width)
                calls = chain.counts()[0] + rounds * chain.rounds
                dear = seconds > step * length / _SHARE or calls > length * chain.rounds / _SHARE
                if dear or trials.level:
                    return trials

    def seconds(self, of: Literal["call", "round"]) -> tuple[float, float]:
        """``a`` and ``b`` of the seconds ``a + b w`` that a drift call or a round of w steps takes."""
        measured = {held: t for trial in self.each for held, t in trial.seconds[of].items()} or {1: self.each[0].spent}
        fixed, more = fitted_line(measured)
        return max(fixed, _OVERHEAD * min(measured.values())), more

    @property
    def level(self) -> bool:
        """Whether windows wider than the last trial's are known to take no fewer rounds, or cannot be."""
        if self.each[-1].width == self.widest:
            return True
        before, last = ([math.inf] + [float(trial.rounds().max()) for trial in self.each])[-2:]
        return before < _SATURATED * last

    def known(self, width: int) -> bool:
        """Whether `rounds` are measured, or between measured ones."""
        near = next((trial for trial in self.each if trial.width >= width), self.each[-1])
        return near.settled and (width <= near.width or self.level) and not near.window.failed.all()

    def rounds(self, width: int) -> np.ndarray:
        """Expected rounds of the whole grid for each sample that did not fail, or N if all have failed.

        A power law of the width between two trials, and below the first at most in inverse proportion to the width;
        above the last trial, its rounds.
        """
        length = self.each[0].window.chain.length
        going = ~np.logical_or.reduce([trial.window.failed for trial in self.each])
        if not going.any():
            return np.full(1, length)
        tried, rounds = [trial.width for trial in self.each], [trial.rounds()[going] for trial in self.each]
        if len(tried) == 1 or width >= tried[-1]:
            return rounds[-1]
        upper = next(i for i in range(1, len(tried)) if width < tried[i])
        power = math.log(width / tried[upper - 1]) / math.log(tried[upper] / tried[upper - 1])
        law = rounds[upper - 1] * (rounds[upper] / rounds[upper - 1]) ** power
        law = np.minimum(law, rounds[0] * tried[0] / width) if width < tried[0] else law
        return np.clip(np.ceil(law), -(-length // width), length)
