"""Run the rounds of a solve on a grid, show how many are expected, and say how it ended."""

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from picardsolve.certificate.remaining_rounds import expected_after
from picardsolve.fixed_point.automatic_width import ChoosesWidth, Pace, PacedWindow
from picardsolve.fixed_point.grid_machine import GridMachine, forget_beyond
from picardsolve.fixed_point.sequential import Stepper
from picardsolve.fixed_point.window import Window
from picardsolve.integrators.base import DriftChain
from picardsolve.problem.machine import drive
from picardsolve.results.history import History
from picardsolve.results.progress import Progress
from picardsolve.results.solution import Result

Pacing: TypeAlias = Literal["fixed", "single", "auto"]

_AGAIN = 0.125  # of the grid: steps that are taken again at most


def run_rounds(
    machine: GridMachine,
    pace: Pacing,
    max_rounds: int | None,
    bar: Progress,
    chooses: Callable[[int], ChoosesWidth] = Pace,
) -> int:
    """Run the rounds of a solve.

    Args:
        machine: what is solved.
        pace: "fixed": in a window of the width that was asked for. "single": one step after the other. "auto": in a
            window whose width follows from what its rounds cost, and one step after the other where that is fastest.
        max_rounds: most drift calls that follow each other; None: any number.
        bar: is shown the progress.
        chooses: makes what chooses the width for "auto", from the largest one. One that never settles goes on with
            windows after steps that were taken one after the other.

    Returns:
        How many rounds there were.
    """
    chain = cast(DriftChain, machine.chain)
    most = None if max_rounds is None else max_rounds // chain.rounds

    def show(count: int) -> None:
        expected = partial(_expected, chain, machine.history)
        bar.update(int(machine.begin.min()), count * chain.rounds, expected)

    after = show if bar.shown else None
    if pace == "fixed":
        return drive(machine, most, after)
    window, rounds = cast(Window, machine), 0
    if pace == "auto":
        choice = chooses(window.settings.width)
        rounds = drive(PacedWindow(window, choice), most, after)
        while not (window.done or rounds == most or choice.settled):
            rounds += _steps_for_now(window, choice, most and most - rounds)
            rounds += drive(PacedWindow(window, choice), most and most - rounds, after)
        if window.done or rounds == most:
            return rounds
    begin, last = int(window.begin[0]), window.x[0]
    exact = _exact_steps(window)
    few = begin - exact <= _AGAIN * chain.length and (most is None or rounds + chain.length - exact <= most)
    if few and window.path is not None and not chain.memory:
        # few states are not exact, and the limit has room: taken again, their steps leave no error to be measured
        begin, last, window.exact = exact, window.path[exact].clone(), True
    stepper = Stepper(chain, last, window.path, begin, window.past)

    def show_steps(count: int) -> None:
        bar.update(stepper.n, (rounds + count) * chain.rounds)

    more = drive(stepper, None if most is None else most - rounds, show_steps if bar.shown else None)
    window.stand(stepper.y, np.minimum(stepper.reached, stepper.n), stepper.reached < stepper.n)
    if window.path is not None:
        forget_beyond(window.path, window.begin)
    if pace == "single":
        window.exact = True
        window.history.append_steps(more, window.begin)
    return rounds + more


def _steps_for_now(window: Window, choice: ChoosesWidth, most: int | None) -> int:
    """Take one step after the other, as long as that is better; returns how many steps."""
    chain, rounds = cast(DriftChain, window.chain), 0
    stepper = Stepper(chain, window.x[0], window.path, int(window.begin[0]), window.past)
    while choice.alone and not stepper.done and rounds != most:
        rounds += drive(stepper, 1)
        choice.note(1, 1, 0.0)
    window.restart(stepper.n, stepper.y)
    window.past = stepper.past
    window.stand(stepper.y, np.minimum(stepper.reached, stepper.n), stepper.reached < chain.length)
    return rounds


def _exact_steps(window: Window) -> int:
    """How many steps of all samples are exact: those before the first round that accepted several, and its first."""
    several = np.flatnonzero((window.history.counts()[1] > 1).any(1))
    return int(several[0]) + 1 if len(several) else int(window.begin[0])


def _expected(chain: DriftChain, history: History) -> float:
    return expected_after(history, len(history), chain.length) * chain.rounds


def result_of(machine: GridMachine, within: bool) -> Result:
    """How a solve ended; ``within``: whether its errors are estimated to be within the tolerance."""
    if machine.failed.any():
        return Result.nonfinite
    if not machine.done:
        return Result.max_rounds
    if machine.stopped.any():
        return Result.stopped
    return Result.converged if within else Result.doubtful


def last_states(last: Tensor, reached: np.ndarray) -> Tensor:
    """The last states as a path of one time, ``(1, B, D)``; NaN for samples that did not reach the end."""
    return last.masked_fill(torch.from_numpy(~reached[:, None]).to(last.device), torch.nan)[None]
