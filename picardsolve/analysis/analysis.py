"""What a solve is going to take: measured in its first rounds, with windows of two or three widths."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from picardsolve.analysis.constants import Constants
from picardsolve.analysis.trial import Trials, seconds_of_a_step
from picardsolve.brownian.path import Path
from picardsolve.certificate.grid_solve import GridSolve
from picardsolve.fixed_point.iterations import Iteration
from picardsolve.fixed_point.window import Window
from picardsolve.integrators import Integrator
from picardsolve.integrators.posed import posed
from picardsolve.problem.checks import check_type
from picardsolve.problem.terms import Term
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.plot import plot_expected

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WORTH = 1.1  # gain below which a parallel solve is not worth it
_NARROWEST = 4  # width in the table
_USUAL = 32  # the width of a solve that is given none
_SHOWN = 8  # widths in print


@dataclass(frozen=True)
class Expected:
    """What a solve with windows of one width is expected to take.

    Attributes:
        iteration: the iteration.
        width: steps in the window.
        rounds: batched drift calls that follow each other, stages counted.
        evaluations: drift evaluations at one state, divided by those of the sequential solver.
        seconds: of the solve.
        gain: seconds of the sequential solver divided by ``seconds``.
        reliable: False where the width is beyond those that were tried though rounds still fell from one to the next
            (``rounds`` are then those of the widest that was tried), where the trial was too short to show its pace, or
            where rounding would grow beyond the tolerance. Such a width is not recommended.
    """

    iteration: Iteration
    width: int
    rounds: float
    evaluations: float
    seconds: float
    gain: float
    reliable: bool


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found out.

    Constants are those that were seen along the changes of states in the rounds, extrapolated to the rest of the grid;
    NaN where no change was well above rounding, or ``tol`` is 0.

    Attributes:
        steps: steps N of the grid.
        table: what to expect, for each width: 4, 8, 16 ... up to the widest that there can be.
        width: the recommended window; 1 where none is better than one step at a time.
        iteration: the iteration.
        pays: whether a parallel solve is expected to be faster than the sequential one.
        contraction: Picard number of the whole grid, ``sum |h_n| L_n``; windows of a few are solved in a few rounds.
        lipschitz: largest ``|dF - dX| / (|h| |dX|)`` that was seen, in the time of ``ts``. With `Picard` a lower bound
            of the Lipschitz constant of the drift (of a step with its noise, for an SDE; of the sampler's step, for a
            `Denoiser`); with other iterations it may be half of that.
        one_sided: largest ``<dX, dF - dX> / (|h| <dX, dX>)``: below 0 changes die out.
        stiff: whether changes die out many times faster than the grid goes by.
        growth: of a `Denoiser`, the factor by which an error made at the start is expected to grow until the end: the
            product of the slopes. NaN for other terms: there slopes say nothing of it, and the first rounds show too
            little of the solution. ``solution.certificate`` has it after a solve.
        seconds: of a drift call of one row (of each sample), and more for each further row.
        sequential: expected seconds of the sequential solver.
        seen: share of the grid that the rounds reached; the rest is taken to be like it.
        calls: of the drift, all of them.
        evaluations: of the drift at one state of one sample.
        notes: warnings, each with a remedy.
    """

    steps: int
    table: tuple[Expected, ...]
    width: int
    iteration: Iteration
    pays: bool
    contraction: float
    lipschitz: float
    one_sided: float
    stiff: bool
    growth: float
    seconds: tuple[float, float]
    sequential: float
    seen: float
    calls: int
    evaluations: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        chosen = sum(row.width < self.width for row in self.table)
        first = max(min(chosen - _SHOWN // 2, len(self.table) - _SHOWN), 0)
        advice = f"window={self.width}, iteration={self.iteration!r}" if self.pays else "sequential"
        lines = [
            f"{self.steps} steps, {self.seen:.0%} of them solved in {self.calls} drift calls: {advice}",
            f"Picard number {self.contraction:.3g}, Lipschitz constant >= {self.lipschitz:.3g}, one-sided "
            f"{self.one_sided:.3g}, an error grows {self.growth:.2g} times",
            f"a drift call takes {_time(self.seconds[0])}, {_time(self.seconds[1])} more for each further row; "
            f"one step at a time {_time(self.sequential)}",
            "  width   rounds  evaluations / N     time   gain",
        ]
        for row in self.table[first : first + _SHOWN]:
            doubt = "" if row.reliable else "  ?"
            lines.append(
                f"{row.width:7d} {row.rounds:8.0f} {row.evaluations:16.2f} {_time(row.seconds):>8s} "
                f"{row.gain:6.2g}{doubt}"
            )
        return "\n".join([*lines, *(f"- {note}" for note in self.notes)])

    def plot(self) -> "Figure":
        """Draw expected rounds and seconds over the width.

        Raises:
            ImportError: matplotlib is missing (``pip install picardsolve[plot]``).
        """
        widths, rounds, seconds = ([getattr(row, of) for row in self.table] for of in ("width", "rounds", "seconds"))
        return plot_expected(widths, rounds, seconds, self.sequential)


@torch.no_grad()
def analyze(
    term: Term,
    y0: Any,
    ts: Tensor | Sequence[float],
    *,
    integrator: Integrator,
    iteration: Iteration | None = None,
    tol: float | Tensor | None = None,
    rtol: float | Tensor | None = None,
    atol: float | Tensor | None = None,
    brownian: Path | None = None,
    args: Sequence[Any] = (),
    cond: Mapping[str, Any] | None = None,
    batch_dims: int | None = None,
    max_batch: int | None = None,
) -> Analysis:
    """Measure in a few rounds what `solve` would take, with which window, and whether it pays.

    The solve itself is started with windows of 8, 32 and, as long as that is cheap, 128 ... steps, and stopped as soon
    as its pace is known: after 8 to 40 rounds each. The rest of the grid is taken to go by at the same pace, and widths
    between those that were tried are interpolated. What differs far from the start is not seen: see ``seen``.

    The trials make at most a fifth of the sequential solver's drift calls, or 13 times the calls of a step on short
    grids; a third width is tried only if all of them together also take at most a fifth of its time. So which widths
    are ``reliable`` may depend on the machine. On nineteen problems, calls were 2 to 19 % of the sequential solver's,
    and expected rounds 0.55 to 1.74 times the true ones where ``reliable`` (docs/how-it-works.md).

    Args:
        term: as in `solve`, and so are all others.
        y0: as in `solve`.
        ts: as in `solve`.
        integrator: as in `solve`, but for `Collocation`.
        iteration: as in `solve`, but for `Parareal`.
        tol: as in `solve`, with ``stop="error"``.
        rtol: as in `solve`.
        atol: as in `solve`.
        brownian: the noise.
        args: passed on to the drift.
        cond: passed on to a `Denoiser`'s model.
        batch_dims: whether ``y0[i]`` are independent samples.
        max_batch: most rows a drift call may hold; no wider windows are considered.

    Returns:
        An `Analysis`; print it.

    Raises:
        TypeError: an argument has the wrong type, or the integrator does not take the term.
        ValueError: an argument has a wrong value or shape, or the drift does not keep its contract.
    """
    problem, y = posed(term, y0, ts, integrator, brownian, args, cond, batch_dims, max_batch)
    check_type("integrator", integrator, Integrator, "one with fixed steps, such as picardsolve.RK4()")
    chain = integrator.chain(problem)

    def start(width: int) -> GridSolve:
        return GridSolve.of(problem, y, chain, iteration, None, width, "error", (tol, rtol, atol), False, False)

    narrow = start(1)  # refuses wrong arguments before any work
    if narrow.method.stop is not None:
        raise TypeError(f"iteration: analyze reads error estimates, and {narrow.method!r} makes none; pass another.")
    step = min(seconds_of_a_step(chain, y) for _ in range(3))  # the first of many calls is slow
    widest = chain.length if max_batch is None else min(chain.length, max(max_batch // len(y), 1))
    trials = Trials.run(lambda width: cast(Window, start(width).machine), chain, widest, step)
    method = cast(Iteration, narrow.method)
    seen, room = Constants.of(problem, [trial.window for trial in trials.each[:2]]), _room(trials, narrow.tolerance)
    table = _table(trials, method, step, room * chain.length / max(seen.contraction, 1e-300))
    best = _best(table)
    pays = best is not None and best.gain >= _WORTH
    (call, row), (calls, evaluations) = trials.seconds("call"), chain.counts()
    analysis = Analysis(
        steps=chain.length,
        table=table,
        width=best.width if pays and best else 1,
        iteration=method,
        pays=pays,
        **vars(seen),
        seconds=(call + row, row / len(y)),
        sequential=chain.length * step,
        seen=max(trial.reached for trial in trials.each) / chain.length,
        calls=calls,
        evaluations=evaluations,
        notes=(),
    )
    return replace(analysis, notes=_notes(analysis, trials.each[0].window, room))


def _room(trials: Trials, tolerance: Tolerance) -> float:
    """Largest Picard number of a window in which rounding stays below the tolerance (`theory.largest_contraction`)."""
    states = trials.each[0].window.x
    rounding = tolerance.measure(torch.finfo(states.dtype).eps * states, states, None)[0].nan_to_num(0, 0, 0)
    largest = float(rounding.max())
    return max(-math.log(largest), 0.0) if largest else math.inf


def _table(trials: Trials, iteration: Iteration, step: float, precise: float) -> tuple[Expected, ...]:
    """What to expect of each width; up to ``precise`` steps arithmetic is precise enough for a window."""
    chain, (fixed, each), table = trials.each[0].window.chain, trials.seconds("round"), []
    at = np.arange(chain.length)[:, None]
    for width in [*(2**k for k in range(2, 40) if _NARROWEST <= 2**k < trials.widest), trials.widest]:
        rounds = trials.rounds(width)
        held = np.minimum(width, chain.length * (1 - at / rounds).clip(0))  # near its end a grid has fewer steps left
        count, evaluations = float(rounds.max()), float(held.sum(0).mean()) / chain.length
        seconds = count * (fixed + each * width)
        gain, reliable = chain.length * step / max(seconds, 1e-12), trials.known(width) and not width > precise
        table.append(Expected(iteration, width, count * chain.rounds, evaluations, seconds, gain, reliable))
    return tuple(table)


def _best(table: tuple[Expected, ...]) -> Expected | None:
    """The fastest; the narrowest of those that are as good."""
    sure = [row for row in table if row.reliable]
    least = min((row.seconds for row in sure), default=0.0)
    return min((row for row in sure if row.seconds <= 1.05 * least), key=lambda row: row.width, default=None)


def _notes(analysis: Analysis, window: Window, room: float) -> tuple[str, ...]:
    notes, per_step, steps = [], analysis.contraction / analysis.steps, analysis.steps
    if analysis.stiff:
        notes.append(
            f"stiff: changes die out {analysis.contraction:.3g} times within the grid; keep windows to "
            f"{max(int(5 / per_step), 1)} steps or so, or pass iteration=Newton() if the state is small."
        )
    if per_step * min(_USUAL, steps) > room:
        dtype = str(window.x.dtype).removeprefix("torch.")
        notes.append(
            f"precision: rounding in {dtype} grows beyond the tolerance in windows of "
            f"more than {max(int(room / per_step), 1)} steps; pass y0.double(), or loosen tol."
        )
    if not analysis.pays:
        notes.append(
            "uneconomic: no window is expected to be faster than one step at a time; use sequential(), or a device "
            "that takes many rows in the time of one."
        )
    if window.failed.any():
        step = int(window.begin[window.failed].min())
        notes.append(f"nonfinite: step {step} of a sample is not finite; take smaller steps, or another y0.")
    return tuple(notes)


def _time(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 1e-6:.2g} us"
