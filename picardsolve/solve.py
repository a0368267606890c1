"""The public calls: check what was given, choose the parts, run, return a `Solution`."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.adjoint.along_grid import recorded
from picardsolve.adjoint.by_collocation import differentiable
from picardsolve.baselines.parareal import Parareal
from picardsolve.baselines.wavefront import Wavefront
from picardsolve.brownian.path import Path
from picardsolve.certificate.accepted import Accepted
from picardsolve.certificate.certificate import Certificate, Evidence
from picardsolve.certificate.growth import Growth, measurable, measured
from picardsolve.certificate.remaining_rounds import expected_after
from picardsolve.collocation import AdaptiveSolve, Collocation, Event
from picardsolve.fixed_point import sequential as reference
from picardsolve.fixed_point.automatic_width import Pace
from picardsolve.fixed_point.error_estimate import ErrorEstimate, stopping_of
from picardsolve.fixed_point.guesses import Copy, FromTrajectory, Guess, guess_for
from picardsolve.fixed_point.iterations import Iteration, iteration_for
from picardsolve.fixed_point.stopping import Increment, MakesRule
from picardsolve.fixed_point.window import Settings, Window
from picardsolve.integrators import Chain, DriftChain, Integrator
from picardsolve.integrators.discretization import Discretization
from picardsolve.problem.checks import (
    check_choice,
    check_optional_positive_integer,
    check_type,
    check_width,
)
from picardsolve.problem.machine import Machine
from picardsolve.problem.parameters import within_reach
from picardsolve.problem.problem import Problem
from picardsolve.problem.recurrence import rms
from picardsolve.problem.terms import ODE, SDE, Denoiser, SecondOrderODE, Term
from picardsolve.problem.tolerances import Stop, Tolerance
from picardsolve.problem.validation import tolerance_of, validated
from picardsolve.results.carried import Carried
from picardsolve.results.diagnostics import ConvergenceWarning, half_precision
from picardsolve.results.history import Round
from picardsolve.results.progress import Progress
from picardsolve.results.solution import Result, Solution, SolveError, Stats

_DOUBTED = 2.0  # tolerances: samples whose estimated error anywhere is more are solved again
_KEPT = 2**22  # numbers of a solution that is kept while it is solved, to measure growth along it
_TRIES = 2  # of a solve whose errors have grown beyond the tolerance
_ROUNDING = 4.0  # units of rounding that a sharper tolerance is at least
_ROOM = 2**20  # bytes of functions that go along into a pickle
_WIDEST = 256  # rows of a window that is tried by itself, where max_batch does not say

Save = Literal["all", "last"]


def solve(
    term: Term,
    y0: Any,
    ts: Tensor | Sequence[float],
    *,
    integrator: Discretization,
    iteration: Iteration | Parareal | None = None,
    guess: Guess | Callable[[Tensor, Any], Any] | None = None,
    window: int | Literal["auto"] | None = None,
    tol: float | Tensor | None = None,
    rtol: float | Tensor | None = None,
    atol: float | Tensor | None = None,
    stop: Stop | MakesRule = "error",
    brownian: Path | None = None,
    args: Sequence[Any] = (),
    cond: Mapping[str, Any] | None = None,
    batch_dims: int | None = None,
    max_batch: int | None = None,
    max_rounds: int | None = None,
    events: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
    save: Save = "all",
    progress: bool = False,
    throw: bool = True,
) -> Solution:
    """Solve a term on a grid, a window of steps at a time, to the sequential integrator's answer.

    Gradients are recorded by y0, args and whatever the functions close over: with `Collocation`, by ts too, to its
    tolerance (`picardsolve.adjoint`); on a grid, of an `ODE` or `SDE` with an explicit integrator, along its steps and
    given the noise (`picardsolve.adjoint`). Elsewhere whoever asks for them is told; but not of those by the
    parameters of a `Denoiser`'s model. What a function closes over is what its first call shows, and the
    modules and tensors in its closure, its object, or the globals that it names, whether they are used at first or not:
    by what was not used there is none. A parameter that is met beyond these is an error of ``backward``.

    Args:
        term: an `ODE`, `SecondOrderODE`, `SemilinearODE`, `SDE` or `Denoiser`.
        y0: initial state: a floating-point tensor, or a tuple, list or dict of them.
        ts: ``(N + 1,)`` times, strictly increasing or decreasing; see `picardsolve.grids`.
        integrator: what makes a step. Of an `ODE`: `Collocation`, which is adaptive, or `Euler`, `Heun`, `RK4`,
            `BackwardEuler`; of a `SecondOrderODE` the same; of a `SemilinearODE` these and `ETD1`, `ETDRK2`, `ETDRK4`;
            of an `SDE`: `EulerMaruyama`, `Milstein`, `SRA1`, `SRID2`, `StochasticHeun`, `StochasticMidpoint`; of a
            `Denoiser`: `DDIM`, `DDPM`, `DPMSolver`.
        iteration: how a window answers to a round; by default `MultiSecant` for a `Denoiser`, `Newton` for
            `BackwardEuler`, `Exponential` for `ETD1` and its kin, `Secant` for an `SDE`, `Picard` elsewhere.
            `Parareal` has no window but cores along the grid, and solves one-step integrators.
        guess: what states entering the window start from; the last evaluation held fixed by default. A function
            ``guess(ts, y)`` of the times ``(L,)`` asked for and the last known state returns ``(L, *y0.shape)``. Unused
            by `Parareal`.
        window: steps solved at once, at least 1 (which is the sequential solver), 32 by default; of `Parareal`, most
            cores, of which ``solution.notes`` says how many there were. `Collocation` has segments in flight instead,
            and refuses it. "auto": as many as pay, found in the rounds that are run anyway: how long a round of so many
            steps takes is fitted; never more than ``max_batch`` and the arithmetic's precision allow; one at a time
            where that is fastest.
        tol: tolerance, relative to the root mean square of the state for a `Denoiser` (0.001 where none is given, more
            in half precision), to ``1 + |y|`` elementwise for an `ODE` or `SDE`. 0 gives the sequential answer to the
            last bits. A tensor ``(B,)``: per sample.
        rtol: instead of ``tol``: relative to ``|y|``. Default 1e-5 where tol is not given. Shapes as of ``atol``.
        atol: with ``rtol``: absolute, in the units of y. Default 1e-7 where tol is not given. A number; or one for each
            component, in the shape or structure of y0 (in the place of a tensor of several a number does). With
            ``batch_dims=1``: ``(B,)`` is one for each sample, ``(1, *shape)`` one for each component of a sample,
            ``(B, *shape)`` one for each of each; ``shape`` alone is refused, for it could mean either.
        stop: what the tolerance is about. "error": states are left when their estimated distance to the sequential
            solution is within it. "residual": when their change in a round and the residuals up to them, added up, are.
            "increment": when a round changes them by no more (ParaDiGMS); ``tol`` is then relative to the noise of the
            step for a `Denoiser` (default 0.05) or an `SDE`. Or a function of the tolerance that returns a rule of your
            own for this solve, a `picardsolve.extend.Stopping`: its class, for example. See docs/extending.md.
        brownian: the noise; ``BrownianPath(seed=0)`` by default. `Collocation` has none, and refuses it.
        args: passed on to the drift after ``t, y``; with ``batch_dims=1`` tensors hold an entry per sample.
        cond: passed on to a `Denoiser`'s model by name; tensors hold an entry per sample.
        batch_dims: 1: ``y0[i]`` are independent samples, each with its own window, tolerance and end. 0: ``y0`` is one
            system. Always 1 for a `Denoiser`, 0 by default elsewhere.
        max_batch: most rows a drift call may hold; larger rounds are cut into chunks.
        max_rounds: stop after so many rounds.
        events: of `Collocation`: a function ``event(t, y, *args)`` of one state and a 0-d time, or several; where their
            values change sign is found to the precision of the solution, seen where signs differ between two of
            ``2 * order + 1`` places of a segment. As in scipy: an attribute ``terminal`` of True or a count ends the
            solve there (``ys`` is NaN at later times), ``direction`` of 1 or -1 takes only what rises or falls, and
            zero at the start is an event where it is left in that direction. Each sample of a batch by itself.
        save: "all" keeps the state at every time, "last" only at the last: memory of one window. By `Collocation` only
            the last time is then held to the tolerance; its polynomials are kept.
        progress: show a bar of converged steps and rounds.
        throw: False returns a failed solve's partial solution instead of raising.

    Returns:
        A `Solution`.

    Raises:
        TypeError: an argument has the wrong type, or the integrator does not take the term.
        ValueError: an argument has a wrong value or shape, or the drift does not keep its contract.
        SolveError: a sequential step is not finite, or ``max_rounds`` was reached; it carries the partial solution.
    """
    problem, y = posed(term, y0, ts, integrator, brownian, args, cond, batch_dims, max_batch)
    check_choice("save", save, ("all", "last"))
    if window is not None:
        check_width(window)
    check_optional_positive_integer("max_rounds", max_rounds)
    if integrator.adaptive:
        _refuse_of_grids(window, brownian)
        problem = replace(
            problem,
            args=pytree.tree_map(_detached, problem.args),
            parameters=[] if torch.is_grad_enabled() else None,
        )
        how = iteration, guess, stop, (tol, rtol, atol), events, save
        machine = _collocated(problem, y, cast(Collocation, integrator), *how)
        with Progress(100, progress, "%") as bar:
            after = (lambda rounds: bar.update(machine.percent, rounds)) if progress else None
            solution = machine.solution(drive(machine, max_rounds or machine.most_rounds, after), throw)
        times = ts if isinstance(ts, Tensor) else problem.ts
        if not torch.is_grad_enabled():
            return solution
        return differentiable(solution, machine, y0, times, args, _reach(term, args))
    if events is not None:
        raise ValueError("events: found between steps, which only picardsolve.Collocation() knows; leave them out.")
    integrator = cast(Integrator, integrator)
    given = {"integrator": integrator, "brownian": brownian, "args": args, "cond": cond, "batch_dims": batch_dims}
    kept = {"max_batch": max_batch, "save": save}
    how = iteration, guess, 32 if window is None else window, stop, max_rounds, progress, throw
    noted = [] if torch.is_grad_enabled() and isinstance(problem.term, ODE | SDE) else None
    fixed = pytree.tree_map(_detached, problem.args)
    problem = replace(problem, args=fixed, parameters=noted)
    solution = _on_grid(problem, y, (term, y0), (tol, rtol, atol), *how, given=given, kept=kept)
    wanted = args if cond is None else cond
    if not torch.is_grad_enabled():
        return solution
    return recorded(solution, problem, integrator, y0, ts, wanted, _reach(term, args))


def posed(term: Term, y0: Any, ts: Any, integrator: Discretization, *given: Any) -> tuple[Problem, Tensor]:
    """The problem that an integrator is given, and its initial states as rows ``(B, D)``."""
    check_type("integrator", integrator, Discretization, "an instance such as picardsolve.Euler()")
    integrator.check_term(term)
    problem, y = validated(term, y0, ts, *given, of_each=integrator.adaptive)
    if isinstance(problem.term, SecondOrderODE) and not integrator.adaptive:
        problem = replace(problem, term=ODE(problem.term.drift, problem.term.vectorized))
    return problem, y


def _reach(term: Term, args: Sequence[Any]) -> tuple[Tensor, ...]:
    """What its functions may have gradients by, beside their arguments; of a model's own parameters nobody asks."""
    if isinstance(term, Denoiser):
        return ()
    return within_reach(term, [arg for arg in pytree.tree_leaves(tuple(args)) if not isinstance(arg, Tensor)])


def _detached(arg: Any) -> Any:
    return arg.detach() if isinstance(arg, Tensor) and arg.requires_grad else arg


def drive(machine: Machine, rounds: int | None = None, after: Callable[[int], None] | None = None) -> int:
    """Run rounds until a machine is done: the loop of every solve.

    Args:
        machine: what is solved.
        rounds: stop after so many; None: never.
        after: called after each round with the number of rounds so far.

    Returns:
        How many rounds there were.
    """
    count = 0
    while not machine.done and (rounds is None or count < rounds):
        machine.tell(machine.evaluate(machine.ask()))
        count += 1
        if after is not None:
            after(count)
    return count


@torch.no_grad()
def _on_grid(
    problem: Problem,
    y: Tensor,
    asked: tuple[Term, Any],
    tolerances: tuple[Any, Any, Any],
    iteration: Iteration | Parareal | None,
    guess: Any,
    window: Any,
    stop: Stop | MakesRule,
    max_rounds: int | None,
    progress: bool,
    throw: bool,
    *,
    given: dict[str, Any],
    kept: dict[str, Any],
) -> Solution:
    """Solve on the grid that was given; ``given`` and ``kept`` is what `sequential` is also passed."""
    (term, y0), integrator, max_batch, save = asked, given["integrator"], kept["max_batch"], kept["save"]
    if not callable(stop):
        check_choice("stop", stop, get_args(Stop))
    named: Stop = "error" if callable(stop) else stop
    tolerance, meant = (tolerance_of(term, problem.layout, *tolerances, rule) for rule in (named, "error"))
    _warn(half_precision(problem.layout.dtype, meant.smallest))
    chain, together = integrator.chain(problem), isinstance(term, SDE) and term.takes == "batch"
    method = iteration_for(iteration, chain)
    checked = stop == "error" and measurable(problem, chain, y.shape[-1]) and chain.length * y.numel() <= _KEPT
    path = _path(chain, y) if save == "all" or checked else None
    widest = min(chain.length, max((max_batch or _WIDEST) // len(y), 1)) if window == "auto" else window
    if isinstance(method, Parareal):
        allowed = tolerance_of(term, problem.layout, *tolerances, "increment")
        no_guess, rule = Copy(), Increment(allowed)
        loop = method.machine(chain, y, path, width=widest, guess=no_guess, stopping=rule, lockstep=together)
    else:
        denoises = isinstance(term, Denoiser)
        stopping, meter = stopping_of(stop, tolerance, chain, denoises), None
        if stop != "error" and not tolerance.nothing:
            meter = ErrorEstimate(meant, chain.length, denoises, implicit=chain.implicit)
        settings = Settings(
            widest, cast(Iteration, method), guess_for(guess, problem, chain), stopping, together, meter
        )
        loop = Window(chain, y, settings, path)
    with Progress(chain.length, progress) as bar:
        pace = Pace(widest) if window == "auto" and not chain.implicit else None
        rounds, growth = _run(chain, loop, pace, max_rounds, bar) + len(loop.history), None
        held = True
        if isinstance(loop, Window) and isinstance(term, Denoiser):
            rounds += _doubted(problem, chain, loop, y, max_rounds)
        elif isinstance(loop, Window):
            growth, more, held = _kept_in_check(problem, chain, loop, y, meant, max_rounds)
            rounds += more
        bar.update(int(loop.begin.min()), rounds * chain.rounds)
    if loop.path is not None and (loop.begin < chain.length).any():
        _forget_beyond(loop.path, loop.begin)
    calls, evaluations = chain.counts()
    width = max((int(record.width.max()) for record in loop.history), default=0)
    stats = Stats(chain.length, rounds * chain.rounds + chain.further_rounds, evaluations, calls, width)
    if together:
        _fail_where_not_finite(loop)
    result = Result.nonfinite if loop.failed.any() else Result.converged if loop.done else Result.max_rounds
    if result is Result.converged and isinstance(loop, Wavefront) and loop.stopped.any():
        result = Result.stopped
    if result is Result.converged and not held:
        result = Result.doubtful
    path = loop.path if save == "all" else None
    path = _ends(loop.x[0], loop.begin == chain.length) if path is None else path
    more_sharply_by = None if isinstance(method, Parareal) else cast(Iteration, method)
    start = pytree.tree_map(Tensor.detach, y0)
    evidence = Evidence(
        loop.history,
        path,
        chain.length,
        meant,
        Carried(_Asked(term, start, problem.ts, meant, given | kept, more_sharply_by, throw), _ROOM + 2 * y.nbytes),
        batched=problem.layout.batched,
        denoises=isinstance(term, Denoiser),
        implicit=chain.implicit,
        growth=growth,
    )
    notes = loop.notes
    solution = _finish(problem, path, result, stats, loop.history, loop.begin, loop.failed, throw, evidence, notes)
    _warn(*solution.certificate.warnings)
    return solution


def _refuse_of_grids(window: object, brownian: object) -> None:
    if window is not None:
        raise ValueError(
            f"window: got {window!r}, but Collocation has no steps that a window could be of; pass "
            "Collocation(in_flight=...), the most segments at once, or leave it out."
        )
    if brownian is not None:
        raise ValueError("brownian: an ODE has no noise, and Collocation solves nothing else; leave it out.")


def _collocated(
    problem: Problem,
    y: Tensor,
    method: Collocation,
    iteration: object,
    guess: object,
    stop: object,
    tolerances: tuple[Any, Any, Any],
    events: Any,
    save: Save,
) -> AdaptiveSolve:
    """The solve by collocation, which has windows, guesses and a rule to stop of its own."""
    if guess is not None or stop != "error":
        raise ValueError("guess, stop: Collocation has its own; leave them out.")
    choice = None if iteration is None else getattr(iteration, "on_segments", None)
    if iteration is not None and choice is None:
        raise TypeError(
            f"iteration: Collocation takes Picard(), Secant() or Newton(), got {iteration!r}; or leave it out."
        )
    tolerance = tolerance_of(problem.term, problem.layout, *tolerances, "error")
    return AdaptiveSolve.of(problem, y, method, choice, tolerance, Event.of(events), save == "last")


def _doubted(problem: Problem, chain: DriftChain, loop: Window, y: Tensor, max_rounds: int | None) -> int:
    """Solve again, from their own path and more sharply, the samples of errors beyond `_DOUBTED` tolerances.

    Errors grow where a sample is about to choose between modes, and estimates are low there: so the tolerance is
    divided by the square of what it was exceeded by. In all there are no more rounds than steps: otherwise the samples
    stay as they are. How many rounds it took.
    """
    rule, done = loop.settings.stopping, len(loop.history)
    if not isinstance(rule, ErrorEstimate) or rule.worst is None or not loop.done or loop.failed.any():
        return 0
    excess = np.where(rule.worst > _DOUBTED, rule.worst, 1)
    most = min(_rounds_left(chain, loop, max_rounds), chain.length - done)
    if not (excess > 1).any() or most < done:
        return 0
    return _sharpened(problem, chain, loop, y, excess**-2.0, most)


def _kept_in_check(
    problem: Problem, chain: DriftChain, loop: Window, y: Tensor, allowed: Tolerance, max_rounds: int | None
) -> tuple[Growth | None, int, bool]:
    """Measure how errors grow along the solution, and solve again, more sharply, samples that they take too far.

    Nothing is measured of samples whose errors, grown as fast as steps change states, would still be within tolerance.

    Returns:
        The growth, None where it is not known; how many rounds all that took; and False where errors are still
        estimated beyond the tolerance.
    """
    path, length, samples = loop.path, chain.length, len(y)
    if (
        path is None
        or not isinstance(loop.settings.stopping, ErrorEstimate)
        or not measurable(problem, chain, y.shape[-1])
    ):
        return None, 0, True
    if not loop.done or _rounds_left(chain, loop, max_rounds) < 1:
        return None, 0, True
    known = Accepted.of(loop.history, length, samples)
    size = allowed.size(path).double().cpu()
    reached = torch.where(known.errors[1:] > 0, known.errors[1:] * known.rates.cumsum(0).exp(), 0)
    doubted = ~(reached <= size[1:]).all(0).numpy() & ~loop.failed
    if not doubted.any():
        return None, 0, True
    growth, rounds = measured(chain, path, _scale(path, allowed), known.rates, doubted)
    factor, tries = torch.ones(samples, dtype=torch.float64), 0
    while True:
        errors = growth.carried(known.expected)
        beyond = ((errors / size).amax(0) > 1) & growth.since_start.isfinite()
        spent = growth.carried(factor * size[1:] / length) / size
        factor = torch.where(beyond, factor / (2 * spent.amax(0)), 1).clamp(min=_ROUNDING * _rounding_of(path, size))
        left = _rounds_left(chain, loop, max_rounds)
        if tries == _TRIES or left < 1 or not bool((beyond & (factor < 1)).any()):
            return growth, rounds, not bool(beyond.any())
        rounds += _sharpened(problem, chain, loop, y, factor.where(beyond, 1).numpy(), left)
        known, tries = Accepted.of(loop.history, length, samples), tries + 1


def _sharpened(problem: Problem, chain: DriftChain, loop: Window, y: Tensor, factor: np.ndarray, most: int) -> int:
    """Solve samples of a tolerance's ``factor`` (B,) below 1 again to it, from their own path; in how many rounds."""
    rule, again = loop.settings.stopping, factor < 1
    assert isinstance(rule, ErrorEstimate)
    tolerance = rule.tolerance.scaled(torch.from_numpy(factor).to(y))
    finer = ErrorEstimate(tolerance, chain.length, rule.trusts_slopes, reserves=False)
    guess = loop.settings.guess
    if loop.path is not None:
        guess = guess_for(FromTrajectory(problem.layout.unpack_path(loop.path)), problem, chain)
    settings = replace(loop.settings, width=loop.width, guess=guess, stopping=finer)
    window = Window(chain, y, settings, None if loop.path is None else loop.path.clone())
    window.begin = np.where(again, 0, chain.length)
    with Progress(chain.length, False) as silent:
        _run(chain, window, None, most * chain.rounds, silent)
    if window.done and not window.failed.any():
        chosen = torch.from_numpy(again).to(y.device)[:, None]
        loop.x = torch.where(chosen, window.x[:1], loop.x[:1])
        if loop.path is not None and window.path is not None:
            loop.path = torch.where(chosen, window.path, loop.path)
        loop.history.extend(window.history)
    return len(window.history)


def _rounds_left(chain: DriftChain, loop: Window, max_rounds: int | None) -> int:
    """How many more there may be: no more than steps, which the sequential solver takes."""
    return chain.length if max_rounds is None else min(chain.length, max_rounds // chain.rounds - len(loop.history))


def _scale(path: Tensor, tolerance: Tolerance) -> Tensor:
    """By which changes of each number are measured, ``(B, D)``: its usual size, and that below which it is as none."""
    usual = path.square().mean(0).sqrt()
    atol, rtol = (torch.as_tensor(value).to(usual) for value in (tolerance.atol, tolerance.rtol))
    atol, rtol = (value[:, None] if value.dim() == 1 else value for value in (atol, rtol))
    floor = (atol / rtol.clamp(min=torch.finfo(usual.dtype).tiny)).nan_to_num(0, 0)
    scale = usual + floor
    return torch.where(scale > 0, scale, 1)


def _rounding_of(path: Tensor, allowed: Tensor) -> Tensor:
    """Rounding of the states in tolerances, the largest of each sample, ``(B,)``."""
    return (torch.finfo(path.dtype).eps * rms(path).double().cpu() / allowed).amax(0)


@dataclass(frozen=True)
class _Asked:
    """A solve on a grid, as it was asked, to be repeated.

    Attributes:
        term, y0, ts: as they were given; y0 without gradients.
        tolerance: of errors.
        given: what `sequential` takes, too, by name.
        iteration: for a sharper solve.
        throw: as it was given.
    """

    term: Term
    y0: Any
    ts: Tensor
    tolerance: Tolerance
    given: Mapping[str, Any]
    iteration: Iteration | None
    throw: bool

    def _validated(self) -> tuple[Problem, Tensor]:
        names = "integrator", "brownian", "args", "cond", "batch_dims", "max_batch"
        return posed(self.term, self.y0, self.ts, *(self.given[name] for name in names))

    def chain(self) -> DriftChain:
        """The chain, made anew."""
        problem, _ = self._validated()
        return self.given["integrator"].chain(replace(problem, args=pytree.tree_map(_detached, problem.args)))

    def rows(self, solution: Solution) -> Tensor:
        """``(T, B, D)``, the states of a solution."""
        return self._validated()[0].layout.pack_path("ys", solution.ys, len(solution.ts))

    def finer(self, solution: Solution, factor: float) -> Solution:
        """Solve again, from a solution, to a fraction of its tolerance."""
        guess = FromTrajectory(solution) if self.given["save"] == "all" else None
        if isinstance(self.term, Denoiser):
            tols: dict[str, Any] = {"tol": factor * self.tolerance.state}
        else:
            tols = {"rtol": factor * self.tolerance.rtol, "atol": factor * self.tolerance.atol}
        width = max(solution.stats.max_width, 1)
        how = {"guess": guess, "iteration": self.iteration, "window": width}
        return solve(self.term, self.y0, self.ts, **how, **self.given, **tols)

    def sequential(self) -> Solution:
        """Solve step by step."""
        return sequential(self.term, self.y0, self.ts, throw=self.throw, **self.given)


def _warn(*sentences: str | None) -> None:
    for sentence in filter(None, sentences):
        warnings.warn(
            sentence, ConvergenceWarning, stacklevel=5
        )  # of the caller of solve, beneath _on_grid and torch.no_grad


@torch.no_grad()
def sequential(
    term: Term,
    y0: Any,
    ts: Tensor | Sequence[float],
    *,
    integrator: Integrator,
    brownian: Path | None = None,
    args: Sequence[Any] = (),
    cond: Mapping[str, Any] | None = None,
    batch_dims: int | None = None,
    max_batch: int | None = None,
    save: Save = "all",
    progress: bool = False,
    throw: bool = True,
) -> Solution:
    """Solve a term step by step with the same integrator: the reference of every parallel solve.

    Arguments, result and errors are those of `solve`.
    """
    problem, y = posed(term, y0, ts, integrator, brownian, args, cond, batch_dims, max_batch)
    check_choice("save", save, ("all", "last"))
    chain = integrator.chain(problem)
    path = _path(chain, y) if save == "all" else None
    with Progress(chain.length, progress) as bar:
        last, done = reference.run(chain, y, path, bar)
    failed = done < chain.length
    calls, evaluations = chain.counts()
    rounds = max(int(done.max()), 1) * chain.rounds + chain.further_rounds
    stats = Stats(chain.length, rounds, evaluations, calls, 1)
    if path is None:
        path = _ends(last, ~failed)
    else:
        _forget_beyond(path, done)
    result = Result.nonfinite if failed.any() else Result.converged
    return _finish(problem, path, result, stats, [], done, failed, throw)


def _run(chain: DriftChain, loop: Window | Wavefront, pace: Pace | None, max_rounds: int | None, bar: Progress) -> int:
    """Run rounds, of the widths that a pace asks for; how many steps were taken one at a time behind them."""
    window = loop if pace is not None and isinstance(loop, Window) else None
    if pace is not None and window is not None:
        window.width = pace.width
    while not loop.done and (max_rounds is None or (len(loop.history) + 1) * chain.rounds <= max_rounds):
        began = perf_counter()
        loop.tell(chain.evaluate(loop.ask()))
        if pace is not None and window is not None:
            _keep_pace(pace, window, perf_counter() - began)
            if pace.settled and pace.width == 1 and (window.begin == window.begin[0]).all():
                return _one_at_a_time(chain, window, bar, max_rounds)
        expected = partial(_expected, chain, loop)
        bar.update(int(loop.begin.min()), len(loop.history) * chain.rounds, expected)
    return 0


def _expected(chain: DriftChain, loop: Window | Wavefront) -> float:
    return expected_after(loop.history, len(loop.history), chain.length) * chain.rounds


def _keep_pace(pace: Pace, window: Window, seconds: float) -> None:
    """Let the last round decide how wide the next one is."""
    last = window.history[-1]
    held = last.width > 0
    pace.limit(window.settings.stopping.widest(window.settings.width))
    pace.note(int(last.width.max()), float(last.stride[held].double().mean()), seconds)
    window.width = pace.width


def _one_at_a_time(chain: DriftChain, window: Window, bar: Progress, max_rounds: int | None) -> int:
    """Step on to the end, or as far as ``max_rounds`` allows; how many steps that took."""
    begin, left = int(window.begin[0]), chain.length
    if max_rounds is not None:
        left = max_rounds // chain.rounds - len(window.history)
    end = min(begin + left, chain.length)
    y, done = reference.run(chain, window.x[0], window.path, bar, begin, end, window.past)
    if window.path is not None:
        _forget_beyond(window.path, done)
    window.stand(y, done, done < end)
    return min(int(done.max()) + 1, end) - begin


def _forget_beyond(path: Tensor, done: np.ndarray) -> None:
    beyond = torch.from_numpy(np.arange(len(path))[:, None] > done).to(path.device)
    path.masked_fill_(beyond[..., None], torch.nan)


def _fail_where_not_finite(loop: Window | Wavefront) -> None:
    """Samples that keep to common steps go on when one of them is not finite: say so in the end."""
    broken = ~torch.isfinite(loop.x[0]).all(-1).cpu().numpy()
    if loop.path is not None and broken.any():
        finite = torch.isfinite(loop.path).all(-1).cpu().numpy()
        loop.begin = np.where(broken, np.logical_and.accumulate(finite, 0).sum(0) - 1, loop.begin)
    loop.failed = loop.failed | broken


def _path(chain: Chain, y: Tensor) -> Tensor:
    return y.new_full((chain.length + 1, *y.shape), torch.nan)


def _ends(last: Tensor, reached: np.ndarray) -> Tensor:
    return last.masked_fill(torch.from_numpy(~reached[:, None]).to(last.device), torch.nan)[None]


def _finish(
    problem: Problem,
    path: Tensor,
    result: Result,
    stats: Stats,
    history: Sequence[Round],
    done: np.ndarray,
    failed: np.ndarray,
    throw: bool,
    evidence: Evidence | None = None,
    notes: tuple[str, ...] = (),
) -> Solution:
    certified = None if evidence is None else partial(Certificate.of, evidence)
    solution = Solution(
        problem.ts[-len(path) :], problem.layout.unpack_path(path), result, stats, history, notes, _certified=certified
    )
    if result in (Result.converged, Result.doubtful, Result.stopped) or not throw:
        return solution
    if result is Result.max_rounds:
        raise SolveError(f"{int(done.min())} of {stats.steps} steps converged. {result.value}", solution)
    sample = int(failed.argmax())
    step = int(done[sample])
    time = float(problem.ts[step])
    which = f" of sample {sample}" if problem.layout.batched else ""
    raise SolveError(f"Step {step}{which} at t = {time:g} is not finite. {result.value}", solution, step, time)
