"""What a solve is going to take, told before it from about ten drift calls."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from picardsolve.analysis.forecast import Errors, errors_of
from picardsolve.analysis.pilot import Pilot, fly
from picardsolve.brownian.path import Path
from picardsolve.fixed_point.iterations import Iteration, MultiSecant, Picard, Secant, iteration_for
from picardsolve.integrators import RK4, Heun, Integrator
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import Denoiser, Term
from picardsolve.problem.tolerances import Tolerance
from picardsolve.problem.validation import tolerance_of
from picardsolve.results.plot import plot_expected
from picardsolve.solve import posed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WORTH = 1.1  # gain below which a parallel solve is not worth it
_FAR = 10.0  # errors so many times as large as the states are not where the pilot looked
_MOST = 100  # rounds of a forecast, which then goes on alike
_NARROWEST, _USUAL = 4, 32  # widths: the first to look at, and that of a solve that is not told
_SHOWN = 8  # widths in print
_STIFF = 20.0  # how many times over the fastest change dies out within the grid
_ROUNDING = 10.0  # tolerance that is asked for at least, in units of rounding


@dataclass(frozen=True)
class Expected:
    """What one iteration is expected to take with windows of one width.

    Attributes:
        iteration: which.
        width: steps in the window.
        rounds: batched drift calls that follow each other, stages counted.
        evaluations: drifts at one state, over those of the sequential solver.
        seconds: of the solve.
        gain: seconds of the sequential solver over these.
        reliable: False where errors would grow beyond what the pilot has seen, or rounding beyond the tolerance: such a
            window may take any number of rounds, and is not recommended.
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

    Attributes:
        steps: steps N of the grid.
        table: what to expect, for each iteration and width.
        width: the recommended window; 1 where none is better than one step at a time.
        iteration: the recommended one.
        pays: whether a parallel solve is expected to be faster than the sequential one.
        contraction: Picard number of the whole grid, ``sum |h_n| L_n``; windows of a few are solved in a few rounds.
        lipschitz: largest ``|dF - dX| / (|h| |dX|)`` that was seen: a lower bound of the Lipschitz constant in the time
            of ``ts`` (of a step with its noise, for an SDE; of the sampler's step, for a `Denoiser`).
        one_sided: largest ``<dX, dF - dX> / (|h| <dX, dX>)`` in the median of the rounds: below 0 changes die out.
        stiff: whether changes die out many times faster than the grid goes by.
        growth: what a small error made at the start is expected to have grown to at the end.
        seconds: of a drift call of one row (of each sample), and more for each further row.
        sequential: expected seconds of the sequential solver.
        seen: share of the grid that the pilot reached; the rest is taken to be like it.
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
        rows = [row for row in self.table if row.iteration == self.iteration]
        chosen = sum(row.width < self.width for row in rows)
        first = max(min(chosen - _SHOWN // 2, len(rows) - _SHOWN), 0)
        advice = f"window={self.width}, iteration={self.iteration!r}" if self.pays else "sequential"
        lines = [
            f"{self.steps} steps, of which {self.seen:.0%} were looked at in {self.calls} drift calls: {advice}",
            f"Picard number {self.contraction:.3g}, Lipschitz constant >= {self.lipschitz:.3g}, one-sided "
            f"{self.one_sided:.3g}, an error grows {self.growth:.2g} times",
            f"a drift call takes {_time(self.seconds[0])}, {_time(self.seconds[1])} more for each further row; "
            f"one step at a time {_time(self.sequential)}",
            "  width   rounds  evaluations / N     time   gain",
        ]
        for row in rows[first : first + _SHOWN]:
            doubt = "" if row.reliable else "  ?"
            lines.append(
                f"{row.width:7d} {row.rounds:8.0f} {row.evaluations:16.2f} {_time(row.seconds):>8s} "
                f"{row.gain:6.2g}{doubt}"
            )
        return "\n".join([*lines, *(f"- {note}" for note in self.notes)])

    def plot(self) -> "Figure":
        """Draw expected rounds and seconds over the width, of the recommended iteration.

        Raises:
            ImportError: matplotlib is missing (``pip install picardsolve[plot]``).
        """
        rows = [row for row in self.table if row.iteration == self.iteration]
        widths, rounds, seconds = ([getattr(row, of) for row in rows] for of in ("width", "rounds", "seconds"))
        return plot_expected(widths, rounds, seconds, self.sequential)


@torch.no_grad()
def analyze(
    term: Term,
    y0: Any,
    ts: Tensor | Sequence[float],
    *,
    integrator: Integrator,
    tol: float | Tensor | None = None,
    rtol: float | Tensor | None = None,
    atol: float | Tensor | None = None,
    brownian: Path | None = None,
    args: Sequence[Any] = (),
    cond: Mapping[str, Any] | None = None,
    batch_dims: int | None = None,
    max_batch: int | None = None,
) -> Analysis:
    """Tell from about ten drift calls what `solve` would take, with which window, and whether it pays.

    A pilot solves the problem on a coarser grid for a few rounds: what part of a change an iteration fails to foresee
    hardly depends on how finely time is cut. From the sizes of these parts, and of the errors of guesses, the window is
    run on numbers in the place of states, for every width. Where changes grow too fast for one window over all of the
    grid, the pilot looks at its beginning only (``seen``).

    Measured on nineteen problems, expected rounds were 0.42 to 1.77 times the true ones where ``reliable``
    (docs/how-it-works.md). It takes a second or two besides the calls.

    Args:
        term: as in `solve`, and so are all others.
        y0: as in `solve`.
        ts: as in `solve`.
        integrator: as in `solve`.
        tol: as in `solve`, with ``stop="error"``.
        rtol: likewise.
        atol: likewise.
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
    tolerance = tolerance_of(term, problem.layout, tol, rtol, atol, "error")
    chain = integrator.chain(problem)
    usual = iteration_for(None, chain)
    if not isinstance(usual, MultiSecant | Picard | Secant):
        raise TypeError(
            f"integrator: analyze forecasts Picard iteration and secants, not what {integrator!r} is iterated by; "
            "solve with it and read solution.stats."
        )
    length = chain.length
    pilot = fly(problem, y, integrator, _above_rounding(tolerance, y))
    denoiser, stages = isinstance(term, Denoiser), _stages(integrator)
    iterations: tuple[Iteration, ...] = (usual, Picard()) if denoiser else (usual,)
    alone = length * stages * pilot.seconds.step
    table: list[Expected] = []
    for iteration in iterations:
        errors = errors_of(pilot, length, not isinstance(iteration, Picard), denoiser)
        for width in _widths(length, max_batch, len(y)):
            table.append(_expected(iteration, width, errors, pilot, stages, chain.rounds, alone))
    best, reach = _best(table), _reach(pilot, length)
    pays = best is not None and best.gain >= _WORTH
    analysis = Analysis(
        steps=length,
        table=tuple(table),
        width=best.width if pays and best else 1,
        iteration=best.iteration if best else iterations[0],
        pays=pays,
        **_constants(problem, pilot, errors, reach),
        seconds=(pilot.seconds.call + pilot.seconds.row * len(y), pilot.seconds.row),
        sequential=alone,
        seen=float(reach[reach > 0].min()) if bool((reach > 0).any()) else 0.0,
        calls=pilot.calls,
        evaluations=pilot.evaluations,
        notes=(),
    )
    return replace(analysis, notes=_notes(analysis, pilot, y))


def _above_rounding(tolerance: Tolerance, y: Tensor) -> Tolerance:
    """The tolerance; where it is 0, what rounding makes of it."""
    least, rtol = _ROUNDING * torch.finfo(y.dtype).eps, tolerance.rtol
    rtol = rtol.clamp(min=least) if isinstance(rtol, Tensor) else max(rtol, least) if rtol else rtol
    return replace(tolerance, rtol=rtol, state=tolerance.state + least)


def _stages(integrator: Integrator) -> int:
    """How many of the pilot's evaluations one of the chain's is worth."""
    return integrator.order if isinstance(integrator, Heun | RK4) else 1


def _widths(length: int, max_batch: int | None, samples: int) -> list[int]:
    """4, 8, 16 and so on, and the widest that there can be."""
    widest = length if max_batch is None else min(length, max(max_batch // samples, 1))
    return [*(2**k for k in range(2, 40) if _NARROWEST <= 2**k < widest), widest]


def _expected(
    iteration: Iteration, width: int, errors: Errors, pilot: Pilot, stages: int, calls: int, alone: float
) -> Expected:
    """Of a window; ``calls`` of the drift follow each other in a round, ``stages`` times as many as in the pilot's."""
    length, samples = errors.carried.shape
    forecast, seconds = errors.forecast(width, _MOST), pilot.seconds
    drift = stages * (forecast.rounds * seconds.call + forecast.evaluations * seconds.row)
    sweeps = seconds.sweep * forecast.evaluations / samples if isinstance(iteration, MultiSecant) else 0.0
    noise = forecast.rounds * seconds.draw + length * seconds.drawn
    total = drift + sweeps + noise + forecast.rounds * forecast.loop
    number = float(errors.direct.mean(0).max()) * width
    reliable = forecast.far <= _FAR and number <= _room(pilot)
    work = forecast.evaluations / (length * samples)
    return Expected(iteration, width, forecast.rounds * calls, work, total, alone / max(total, 1e-12), reliable)


def _room(pilot: Pilot) -> float:
    """Largest Picard number of a window whose rounding stays below the tolerance."""
    eps = torch.finfo(pilot.size.dtype).eps
    return math.log(max(1 / (eps * float(pilot.size.nan_to_num(0).max()) + 1e-300), 1.0))


def _best(table: list[Expected]) -> Expected | None:
    """The fastest; the narrowest of those that are as good."""
    sure = [row for row in table if row.reliable]
    least = min((row.seconds for row in sure), default=0.0)
    return min((row for row in sure if row.seconds <= 1.05 * least), key=lambda row: row.width, default=None)


def _reach(pilot: Pilot, length: int) -> Tensor:
    """What share of the grid the pilot knows of each sample, ``(B,)``; 0 where already the first step is not finite."""
    known = pilot.unit.isfinite().sum(0).cpu() - 1
    return torch.from_numpy(pilot.at)[known] / length


def _constants(problem: Problem, pilot: Pilot, errors: Errors, reach: Tensor) -> dict[str, Any]:
    """Picard number, Lipschitz and one-sided constant, growth, stiffness."""
    h = problem.ts[pilot.at].diff().abs()[:, None]
    typical = pilot.one_sided.double().nanmedian(0).values
    dying, growing = ((typical * sign).clamp(min=0).nansum(0) for sign in (-1, 1))
    reach = reach.clamp(min=1 / errors.length)
    exponent = pilot.exponent / reach
    dies_out = (dying / reach > _STIFF) & (growing < dying / 4) & (exponent < 0)
    return {
        "contraction": float(errors.direct.sum(0).max()),
        "lipschitz": float((pilot.contraction.double() / h).nan_to_num(0).max()),
        "one_sided": float((typical / h).nan_to_num(-torch.inf).max()),
        "stiff": bool(dies_out.any()),
        "growth": float(exponent.max().clamp(-700, 700).exp()),
    }


def _notes(analysis: Analysis, pilot: Pilot, y: Tensor) -> tuple[str, ...]:
    notes, room = [], _room(pilot)
    per_step = analysis.contraction / analysis.steps
    if analysis.stiff:
        notes.append(
            f"stiff: changes die out {analysis.contraction:.3g} times within the grid; keep windows to "
            f"{max(int(5 / per_step), 1)} steps or so, or pass iteration=Newton() if the state is small."
        )
    if math.log(max(analysis.growth, 1.0)) > room:
        notes.append(
            f"unpredictable, if errors go on growing as in the {analysis.seen:.0%} that were looked at: rounding would "
            "grow beyond the tolerance, in any solver; shorten ts, or use the sequential solver for statistics."
        )
    if per_step * min(_USUAL, analysis.steps) > room:
        notes.append(
            f"precision: rounding in {str(y.dtype).removeprefix('torch.')} grows beyond the tolerance in windows of "
            f"more than {max(int(room / per_step), 1)} steps; pass y0.double(), or loosen tol."
        )
    if not analysis.pays:
        notes.append(
            "uneconomic: no window is expected to be faster than one step at a time; use sequential(), or a device "
            "that takes many rows in the time of one."
        )
    if not bool(pilot.unit[1:].isfinite().any(0).all()):
        notes.append("nonfinite: the first steps of a sample are not finite; take smaller steps, or another y0.")
    return tuple(notes)


def _time(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 1e-6:.2g} us"
