"""The public calls: check what was given, choose the parts, drive the rounds, return a `Solution`."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.adjoint.along_grid import recorded
from picardsolve.adjoint.by_collocation import differentiable, refused
from picardsolve.brownian import Path
from picardsolve.certificate.again import Again
from picardsolve.certificate.grid_solve import GridSolve, finished
from picardsolve.certificate.running import last_states
from picardsolve.distributed.led import crew_of, led
from picardsolve.fixed_point.grid_machine import forget_beyond
from picardsolve.fixed_point.guesses import Guess
from picardsolve.fixed_point.iterations import Method
from picardsolve.fixed_point.sequential import Stepper
from picardsolve.fixed_point.stopping import MakesRule
from picardsolve.integrators.adaptive import AdaptiveMethod, Given
from picardsolve.integrators.base import Integrator
from picardsolve.integrators.discretization import Discretization
from picardsolve.integrators.posed import posed
from picardsolve.problem.checks import check_choice, check_flag, check_optional_positive_integer, check_width
from picardsolve.problem.machine import drive
from picardsolve.problem.parameters import detached, within_reach
from picardsolve.problem.terms import Term
from picardsolve.problem.tolerances import Stop
from picardsolve.problem.validation import tolerance_of
from picardsolve.results.diagnostics import ConvergenceWarning, half_precision
from picardsolve.results.progress import Progress
from picardsolve.results.solution import Result, Solution
from picardsolve.serving.one_solve import as_one_request, pace_of, refuse_several_devices

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_OWN = {"term", "progress", "mesh", "devices"}  # arguments of `solve` that ranks may have each for itself
_KEPT = 2**22  # numbers of a solution that is kept while it is solved, to measure growth along it
_ROOM = 2**20  # bytes of functions that go along into a pickle
_WIDEST = 256  # rows of a window that is tried by itself, where max_batch does not say

Save = Literal["all", "last"]


@as_one_request
def solve(
    term: Term,
    y0: Any,
    ts: Tensor | Sequence[float],
    *,
    integrator: Discretization,
    iteration: Method | None = None,
    guess: Guess | Callable[[Tensor, Any], Any] | None = None,
    window: int | Literal["auto"] | None = None,
    tol: float | Tensor | None = None,
    rtol: Any = None,
    atol: Any = None,
    stop: Stop | MakesRule = "error",
    certify: bool | None = None,
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
    mesh: "DeviceMesh | None" = None,
    devices: Sequence[Any] | None = None,
) -> Solution:
    """Solve a term on a grid, a window of steps at a time, to the answer of the sequential integrator.

        term = ps.ODE(lambda t, y: -y)
        sol = ps.solve(term, torch.ones(3), ps.grids.uniform(0, 1, 100), integrator=ps.RK4(), window=50)

    Gradients are recorded with respect to y0, args and the parameters that the functions of the term close over. With
    `Collocation` they are also recorded with respect to ts, and are accurate to its tolerance. On a grid they are
    recorded for an `ODE` or `SDE` with an explicit integrator, along its steps and for the given noise. In other cases
    a backward pass raises an error that says so; a `Denoiser`'s parameters have no gradients. The parameters are those
    that the first call uses, and the modules and tensors in the closure of the function, in its object, or in the
    globals that it names. Any other parameter that a later call uses is an error of ``backward``.

    Args:
        term: an `ODE`, `SecondOrderODE`, `SemilinearODE`, `SDE` or `Denoiser`.
        y0: initial state: a floating-point tensor, or a tuple, list or dict of them.
        ts: ``(N + 1,)`` times, strictly increasing or decreasing; see `picardsolve.grids`.
        integrator: how time is discretised. For an `ODE` or `SecondOrderODE`: `Collocation`, which is adaptive, and
            `Dopri5`, `Dopri8`, `Tsit5`, which are too, one step after the other, or `Adaptive`, which takes what is
            faster of these; `Euler`, `Midpoint`, `Heun`, `RK4`, `BackwardEuler`. For a `SemilinearODE`: these, or
            `ETD1`, `ETDRK2`, `ETDRK4`. For an `SDE`: `EulerMaruyama`, `Milstein`, `SRA1`, `SRID2`, `StochasticHeun`,
            `StochasticMidpoint`. For a `Denoiser`: `DDIM`, `DDPM`, `DPMSolver`; `Euler`, `Midpoint`, `Heun`, `RK4`
            along its probability flow; `StochasticEDM`.
        iteration: how new states follow from a round. The default is `MultiSecant` for a `Denoiser`, `Newton` for
            `BackwardEuler`, `Exponential` for `ETD1`, `ETDRK2` and `ETDRK4`, `Secant` for an `SDE`, `Picard` otherwise.
            `Parareal` has cores along the grid instead of a window, and needs a one-step integrator.
        guess: what states that enter the window start from. By default they are extrapolated with the last drift held
            fixed. A function ``guess(ts, y)`` of times ``(L,)`` and the last known state returns ``(L, *y0.shape)``.
            `Parareal` does not use it.
        window: number of steps solved at once, by default 32; 1 is the sequential solver. For `Parareal`: the largest
            number of cores; ``solution.notes`` says how many there were. "auto" finds the width that pays from the
            time that rounds take, within ``max_batch`` and the precision of the arithmetic, and takes one step at a
            time where that is fastest. `Collocation` refuses it: it has segments in flight instead.
        tol: tolerance of the distance to the sequential solution. For a `Denoiser` it is relative to the root mean
            square of the state (default 0.001, more in half precision), otherwise to ``1 + |y|`` elementwise. 0 gives
            the sequential answer to the last bits. A tensor ``(B,)``: one tolerance per sample.
        rtol: instead of ``tol``: relative to ``|y|``, elementwise. Default 1e-5. The same shapes as ``atol``.
        atol: with ``rtol``: absolute, in the units of y. Default 1e-7. A number; or one for each component, in the
            shape or structure of y0 (a number may stand in the place of each tensor). With ``batch_dims=1``: ``(B,)``
            one for each sample, ``(1, *shape)`` one for each component, ``(B, *shape)`` one for each of both;
            ``shape`` alone is refused, because it could mean either.
        stop: what the tolerance applies to. "error": states are accepted when their estimated distance to the
            sequential solution is within it. "residual": when their change in a round, and the sum of the residuals up
            to them, are within it. "increment": when a round changes them by no more (ParaDiGMS, Shih et al. 2023);
            ``tol`` is then relative to the noise of the step for a `Denoiser` (default 0.05) or an `SDE`. A function of
            the tolerance that returns a `picardsolve.extend.Stopping`, such as a class of your own, makes the rule of
            this solve; see docs/extending.md.
        certify: look at every state twice. A state leaves the window when it has been within the tolerance in two
            rounds, and errors are taken for twice as large. It takes about as many rounds, of rows for up to two
            windows, and about a third more evaluations; see docs/certificates.md. For ``stop="error"`` on a grid, where
            it is the default for a `Denoiser`.
        brownian: the Brownian path, by default ``BrownianPath(seed=0)``. `Collocation` refuses it.
        args: passed to the drift after ``t, y``; with ``batch_dims=1`` tensors hold an entry per sample.
        cond: passed to a `Denoiser`'s model by name; tensors hold an entry per sample.
        batch_dims: 1: ``y0[i]`` are independent samples, each with its own window, tolerance and end. 0: ``y0`` is one
            system. A `Denoiser` always has 1; the default is otherwise 0.
        max_batch: most rows of one drift call; larger rounds are cut into chunks.
        max_rounds: stop after so many rounds.
        events: for `Collocation`: a function ``event(t, y, *args)`` of one state and a 0-d time, or several. Times
            where its value changes sign are found to the precision of the solution, if the signs differ between two of
            ``2 * order + 1`` places of a segment. As in scipy, an attribute ``terminal`` (True or a count) ends the
            solve there, so that ``ys`` is NaN at later times; ``direction`` 1 or -1 selects rising or falling values. A
            zero at the start is an event if the value leaves it in that direction. Samples are independent.
        save: "all" keeps the state at every time. "last" keeps the last state only, in the memory of one window;
            `Collocation` then holds only the last time to the tolerance, and keeps its polynomials.
        progress: show a bar of accepted steps and rounds.
        throw: False returns the partial solution of a failed solve instead of raising an error.
        mesh: a `torch.distributed` ``DeviceMesh`` whose ranks all make this call. Each evaluates a share of the rows of
            a round; rank 0 of the mesh takes all decisions, and every rank gets the same solution. See
            docs/devices.md.
        devices: devices of this process, such as ``["cuda:0", "cuda:1"]``, which share the rows; each gets a copy of
            the term's functions and of what they hold.

    Returns:
        A `Solution`.

    Raises:
        TypeError: an argument has the wrong type, or the integrator does not take the term.
        ValueError: an argument has a wrong value or shape, or the drift breaks its contract.
        SolveError: a sequential step is not finite, or ``max_rounds`` was reached, or a rank of the mesh was lost. It
            carries the partial solution.
        picardsolve.distributed.RankError: on the other ranks, where one was lost or failed; on all, where one was
            called with other arguments, or runs other code or weights.
    """
    asked = {name: value for name, value in locals().items() if name not in _OWN}
    problem, y = posed(term, y0, ts, integrator, brownian, args, cond, batch_dims, max_batch)
    check_choice("save", save, get_args(Save))
    if not callable(stop):
        check_choice("stop", stop, get_args(Stop))
    if certify is not None:
        check_flag("certify", certify)
    if window is not None:
        check_width(window)
    check_optional_positive_integer("max_rounds", max_rounds)
    recording = torch.is_grad_enabled()
    noted = [] if recording and (integrator.adaptive or problem.term.recorded_on_grids) else None
    live, crew = problem.args, crew_of(mesh, devices, problem.layout.device)
    if crew is not None:
        refuse_several_devices(term)
    problem = replace(problem, args=pytree.tree_map(detached, live), parameters=noted, crew=crew)
    alike = {**asked, "term": term.settings, "gradients": recording}, term, args, guess, events
    inputs: Any = y0, ts, args if cond is None else cond, _reach(term, args) if recording else ()
    if integrator.adaptive:
        method = cast(AdaptiveMethod, integrator)
        _check_alone(method, guess, window, stop, certify, brownian)
        tolerance = tolerance_of(problem.term, problem.layout, tol, rtol, atol, "error")
        given = Given(problem.layout.pack(y0), ts, live, inputs[-1]) if recording and mesh is None else None
        machine = method.begin(problem, y, iteration, tolerance, events, save == "last", given)

        def march() -> Solution:
            with Progress(100, progress, "%") as bar:
                after = (lambda rounds: bar.update(machine.percent, rounds)) if progress else None
                return machine.solution(drive(machine, max_rounds or machine.most_rounds, after), throw)

        solution = led(crew, march, lambda: machine.solution(0, False), *alike)
        _warn(solution.result.value if solution.result is Result.beyond else None)
        if recording and mesh is not None:
            return refused(solution, *inputs)
        solver = machine.solver
        return differentiable(solution, cast(Any, solver), *inputs) if recording and not solver.records else solution
    if events is not None:
        raise ValueError("events: found between steps, which only picardsolve.Collocation() knows; leave them out.")
    given = {"integrator": integrator, "brownian": brownian, "args": args, "cond": cond, "batch_dims": batch_dims}
    given |= {"max_batch": max_batch, "save": save}
    again = partial(
        Again,
        term,
        pytree.tree_map(detached, y0),
        problem.ts,
        given=given,
        solve=solve,
        stepped=sequential,
        throw=throw,
    )
    chain = cast(Integrator, integrator).chain(problem)
    grid = GridSolve.of(
        problem, y, chain, iteration, guess, window or chain.width, stop, (tol, rtol, atol), save == "all", certify
    )
    _warn(half_precision(problem.layout.dtype, grid.tolerance.smallest))

    def slide() -> Solution:
        with Progress(chain.length, progress) as bar:
            grid.run(max_rounds, bar, pace_of(term, len(y), chain.length))
        return grid.solution(throw, again)

    solution = led(crew, slide, lambda: grid.solution(False, again), *alike)
    _warn(*grid.warnings)
    problem = replace(problem, crew=None)  # gradients are computed by each process for itself
    if chain.implicit:
        problem = replace(problem, parameters=None)  # their steps are not recorded
    return recorded(solution, problem, cast(Integrator, integrator), *inputs) if recording else solution


def _check_alone(
    method: AdaptiveMethod, guess: object, window: object, stop: object, certify: bool | None, brownian: object
) -> None:
    """Refuse what only grids have."""
    name = type(method).__name__
    if guess is not None or stop != "error":
        raise ValueError(f"guess, stop: {name} has its own; leave them out.")
    if certify:
        raise ValueError(f"certify: {name} estimates the error of every step itself; leave it out.")
    if window is not None:
        raise ValueError(
            f"window: got {window!r}, but {name} has no steps that a window could hold; {method.instead_of_window}, "
            "or leave it out."
        )
    if brownian is not None:
        raise ValueError(f"brownian: an ODE has no noise, and {name} solves nothing else; leave it out.")


def _reach(term: Term, args: Sequence[Any]) -> tuple[Tensor, ...]:
    """Parameters that the functions may depend on, beside their arguments; a model's own are not recorded."""
    if term.by_name:
        return ()
    return within_reach(term, [arg for arg in pytree.tree_leaves(tuple(args)) if not isinstance(arg, Tensor)])


def _warn(*sentences: str | None) -> None:
    for sentence in filter(None, sentences):
        warnings.warn(sentence, ConvergenceWarning, stacklevel=3)  # at the line that called solve


@as_one_request
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

        ref = ps.sequential(term, y0, ts, integrator=ps.RK4())

    Arguments, result and errors are those of `solve`.
    """
    problem, y = posed(term, y0, ts, integrator, brownian, args, cond, batch_dims, max_batch)
    check_choice("save", save, get_args(Save))
    chain = integrator.chain(problem)
    path = y.new_full((chain.length + 1, *y.shape), torch.nan) if save == "all" else None
    stepper = Stepper(chain, y, path)
    with Progress(chain.length, progress) as bar:
        show = (lambda count: bar.update(count, count * chain.rounds)) if progress else None
        rounds = drive(stepper, after=show)
    failed = stepper.reached < chain.length
    if path is None:
        path = last_states(stepper.y, ~failed)
    else:
        forget_beyond(path, stepper.reached)
    result = Result.nonfinite if failed.any() else Result.converged
    return finished(problem, chain, path, result, (rounds, 1), stepper.reached, failed, throw)
