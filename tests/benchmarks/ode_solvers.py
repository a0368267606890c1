"""Our solver and its peers as one thing: a problem of the bank and a tolerance in, the last state and the calls out."""

import importlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from problems import Problem
from scipy.integrate import solve_ivp

import picardsolve as ps

MOST_ROUNDS = 3000
clock = time.perf_counter  # or `time.process_time`, which other processes disturb less


@dataclass(frozen=True)
class Run:
    """What a solve took.

    Attributes:
        tolerance: rtol; atol is as much of the problem's smallest component.
        calls: of the drift, one after the other; ours: rounds.
        error: largest of a component at the end, in the component's largest value.
        seconds: wall clock, the best so far.
        within: error in `atol + rtol |y|`, with y at the end.
        failure: why there is no result.
        evaluations: ours only, as are the following.
        width: most rows in a round.
        iteration: in words.
        beyond: seconds a round that the drift did not take.
    """

    tolerance: float
    calls: int = 0
    error: float = np.inf
    seconds: float = np.inf
    within: float = np.inf
    failure: str = ""
    evaluations: int = 0
    width: int = 0
    iteration: str = ""
    beyond: float = np.inf

    def better(self, other: "Run") -> "Run":
        """The same solve, timed again; of one that went another way (iterations are chosen by the clock), nothing."""
        if other.calls != self.calls:
            return self
        return replace(self, seconds=min(self.seconds, other.seconds), beyond=min(self.beyond, other.beyond))


class TooManyCalls(Exception):
    """The peer is given up."""


@dataclass
class Count:
    """Calls of a drift, and the time that they took where that is asked for."""

    most: float = np.inf
    calls: int = 0
    seconds: float = 0.0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls > self.most:
            raise TooManyCalls(f"> {self.most:.0f} calls")

    def timed(self, f: Callable[..., Any]) -> Callable[..., Any]:
        def g(*args: Any) -> Any:
            began = clock()
            out = f(*args)
            self.seconds += clock() - began
            return out

        return g


Solve = Callable[[float, float, Count], tuple[Any, dict[str, Any]]]  # rtol, atol: the last state, and fields of `Run`


@dataclass(frozen=True)
class Solver:
    """A solver.

    Attributes:
        name: for the tables.
        prepare: from a problem to the function that solves it.
        order: by which calls grow as the tolerance shrinks; 0: not known.
        prepared: by problem.
        preparing: seconds that it took, by problem.
    """

    name: str
    prepare: Callable[[Problem], Solve]
    order: int = 0
    prepared: dict[str, Solve] = field(default_factory=dict, compare=False, repr=False)
    preparing: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    def run(self, problem: Problem, tolerance: float, most: float = np.inf) -> Run:
        """Solve it once."""
        if problem.name not in self.prepared:
            began = clock()
            self.prepared[problem.name] = self.prepare(problem)
            self.preparing[problem.name] = clock() - began
        solve, count, atol = self.prepared[problem.name], Count(most), tolerance * float(problem.scale.min())
        began = clock()
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state, more = solve(tolerance, atol, count)
        except (TooManyCalls, ps.SolveError, ValueError, RuntimeError, AssertionError) as failure:
            said = f"{type(failure).__name__}: {failure}".splitlines()[0]
            return Run(tolerance, count.calls, seconds=clock() - began, failure=said)
        seconds = clock() - began
        away = np.abs(np.asarray(state) - problem.y1.numpy())
        error = float((away / problem.scale.numpy()).max())
        within = float((away / (atol + tolerance * np.abs(problem.y1.numpy()))).max())
        error, within = (value if np.isfinite(value) else np.inf for value in (error, within))
        return replace(Run(tolerance, count.calls, error, seconds, within), **more)


# ---- ours


def ours(name: str = "picardsolve", iteration: Any = None, cascade: bool = False) -> Solver:
    """Ours, as it chooses by itself, or with an iteration; ``cascade``: as a second-order equation."""

    def prepare(problem: Problem) -> Solve:
        ts, half = torch.tensor(problem.span, dtype=torch.float64), len(problem.y0) // 2
        y0 = (problem.y0[:half], problem.y0[half:]) if cascade else problem.y0

        def solve(rtol: float, atol: float, count: Count) -> tuple[Any, dict[str, Any]]:
            f = count.timed(problem.acceleration if cascade else problem.f)
            term = ps.SecondOrderODE(f) if cascade else ps.ODE(f)
            began = clock()
            sol = ps.solve(
                term,
                y0,
                ts,
                integrator=ps.Collocation(),
                iteration=iteration,
                rtol=rtol,
                atol=atol,
                max_rounds=MOST_ROUNDS,
            )
            took, stats = clock() - began, sol.stats
            last = torch.cat([part[-1] for part in sol.ys]) if cascade else sol.ys[-1]
            return last, {
                "calls": stats.rounds,
                "evaluations": stats.evaluations,
                "width": stats.max_width,
                "iteration": sol.notes[0].split()[0] + (", 2nd order" if cascade else ""),
                "beyond": (took - count.seconds) / stats.rounds,
            }

        return solve

    return Solver(name, prepare)


# ---- peers


def scipy_solver(method: str) -> Solver:
    """Drifts in torch, as everyone's, wrapped."""

    def prepare(problem: Problem) -> Solve:
        y0 = problem.y0.numpy()

        def solve(rtol: float, atol: float, count: Count) -> tuple[Any, dict[str, Any]]:
            def f(t: float, y: np.ndarray) -> np.ndarray:
                count()
                return problem.f(torch.tensor([t], dtype=torch.float64), torch.from_numpy(y)).numpy()

            sol = solve_ivp(f, problem.span, y0, method=method, rtol=rtol, atol=atol)
            if not sol.success:
                raise RuntimeError(sol.message)
            return sol.y[:, -1], {"calls": sol.nfev}

        return solve

    return Solver(f"scipy {method}", prepare, 8 if method == "DOP853" else 5)


def torchdiffeq_solver(method: str, order: int) -> Solver:
    """Steps end at the last time: what dopri8 interpolates there is good to 1e-9 only."""
    odeint = importlib.import_module("torchdiffeq").odeint

    def prepare(problem: Problem) -> Solve:
        ts = torch.tensor(problem.span, dtype=torch.float64)

        def solve(rtol: float, atol: float, count: Count) -> tuple[Any, dict[str, Any]]:
            def f(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                count()
                return problem.f(t.view(1), y)

            ys = odeint(f, problem.y0, ts, rtol=rtol, atol=atol, method=method, options={"step_t": ts[1:]})
            return ys[-1], {}

        return solve

    return Solver(f"torchdiffeq {method}", prepare, order)


def torchode_solver(method: str) -> Solver:
    """A batch of one, not compiled."""
    to = importlib.import_module("torchode")

    def prepare(problem: Problem) -> Solve:
        ts = torch.tensor([problem.span], dtype=torch.float64)
        posed = to.InitialValueProblem(y0=problem.y0[None], t_eval=ts)

        def solve(rtol: float, atol: float, count: Count) -> tuple[Any, dict[str, Any]]:
            def f(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                count()
                return problem.f(t[:, None], y)

            term = to.ODETerm(f)
            step, control = getattr(to, method)(term=term), to.IntegralController(atol=atol, rtol=rtol, term=term)
            return to.AutoDiffAdjoint(step, control).solve(posed).ys[0, -1], {}

        return solve

    return Solver(f"torchode {method}", prepare, 5)


def diffrax_solver() -> Solver:
    """Dopri8, compiled once a problem; the drift is the torch function, traced."""
    jax, dfx = importlib.import_module("jax"), importlib.import_module("diffrax")
    jax.config.update("jax_enable_x64", True)
    in_jax = importlib.import_module("ode_jax").in_jax

    def prepare(problem: Problem) -> Solve:
        y0, (t0, t1) = jax.numpy.asarray(problem.y0.numpy()), problem.span
        term = dfx.ODETerm(in_jax(problem.f))

        def integrate(rtol: float, atol: float) -> Any:
            control = dfx.PIDController(rtol=rtol, atol=atol)
            sol = dfx.diffeqsolve(
                term, dfx.Dopri8(), t0, t1, None, y0, stepsize_controller=control, max_steps=100_000, throw=False
            )
            return sol.ys[-1], sol.stats["num_steps"], sol.result == dfx.RESULTS.successful

        compiled = jax.jit(integrate).lower(1e-3, 1e-3).compile()

        def solve(rtol: float, atol: float, count: Count) -> tuple[Any, dict[str, Any]]:
            y, steps, fine = compiled(rtol, atol)
            if not bool(fine):
                raise RuntimeError("no result")
            return y, {"calls": 13 * int(steps)}

        return solve

    return Solver("diffrax Dopri8", prepare, 8)


def installed() -> tuple[list[Solver], list[str]]:
    """The peers that there are, and the names of those that are missing."""
    makers = (
        ("torchdiffeq", lambda: torchdiffeq_solver("dopri8", 8)),
        ("torchdiffeq", lambda: torchdiffeq_solver("dopri5", 5)),
        ("torchode", lambda: torchode_solver("Tsit5")),
        ("diffrax", diffrax_solver),
    )
    there, missing = [scipy_solver("DOP853")], []
    for name, make in makers:
        if importlib.util.find_spec(name) is None:
            missing.append(name)
        else:
            there.append(make())
    return there, missing
