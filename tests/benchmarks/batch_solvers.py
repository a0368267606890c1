"""Our solvers and their peers as one thing: a batch and a tolerance in, the last states, gradients and counts out."""

import importlib
import importlib.util
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from batch_cases import Case, Posed, loss
from scipy.integrate import solve_ivp
from torch import Tensor

import picardsolve as ps

MOST_ONE_BY_ONE = 16  # samples
clock = time.perf_counter


class TooLong(BaseException):
    """A solve is given up; no solver takes this for an error of the drift."""


@dataclass
class Call:
    """A drift that counts, waits and gives up. In a backward pass a call waits as long again.

    Attributes:
        function: the drift.
        wait: seconds more a call.
        until: when to give up.
        calls: of the drift; with gradients, as often again where a backward pass goes through one.
        rows: states of these calls, forward.
    """

    function: Callable[..., Tensor]
    wait: float = 0.0
    until: float = math.inf
    calls: int = 0
    rows: int = 0

    def __call__(self, t: Tensor, y: Tensor, *own: Tensor) -> Tensor:
        self.rows += y.shape[:-1].numel()
        self._spend()
        out = self.function(t, y, *own)
        if out.requires_grad:
            out.register_hook(self._spend)
        return out

    def _spend(self, gradient: Tensor | None = None) -> None:
        self.calls += 1
        began = clock()
        if began > self.until:
            raise TooLong
        while clock() < began + self.wait:  # sleeping is not exact
            pass


@dataclass(frozen=True)
class Run:
    """What a solve took.

    Attributes:
        tolerance: rtol and atol.
        seconds: wall clock, the best so far; of a solve that was given up, until then.
        error: of the last states, relative to ``1 + |y|``, of the sample and component that is furthest off.
        rms: the same, root of the mean square.
        gradient_error: relative to a sample's, or a parameter's, largest; 0 where there are none.
        calls: of the drift, see `Call`.
        rows: states of these calls.
        note: what the solver says that it did.
        failure: why there is no result.
    """

    tolerance: float
    seconds: float = math.inf
    error: float = math.inf
    rms: float = math.inf
    gradient_error: float = 0.0
    calls: int = 0
    rows: int = 0
    note: str = ""
    failure: str = ""

    @property
    def too_long(self) -> bool:
        return self.failure.startswith(">")

    @property
    def given_up(self) -> bool:
        """Whether more samples, or sharper tolerances, are not worth a try."""
        return self.too_long or "memory" in self.failure.lower()

    @property
    def off(self) -> float:
        """What solvers are compared at: the larger error."""
        return max(self.error, self.gradient_error)

    def again(self, other: "Run") -> "Run":
        """Timed again; of a solve that went another way (some things are decided by the clock), nothing."""
        same = not other.failure and other.off == self.off
        return replace(self, seconds=min(self.seconds, other.seconds)) if same else self

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Solve = Callable[[Posed, float, Call], tuple[Tensor, dict[str, Any]]]  # the last states, and fields of `Run`


@dataclass(frozen=True)
class Solver:
    """A solver.

    Attributes:
        name: for the tables.
        solve: how.
        largest: most samples that it is tried on.
    """

    name: str
    solve: Solve = field(repr=False)
    largest: int = 10**9

    def run(self, case: Case, tolerance: float, gradients: bool, wait: float, limit: float) -> Run:
        """Solve it once."""
        posed = case.posed(gradients)
        more: dict[str, Any] = {}
        began = clock()
        call = Call(posed.function, wait, began + limit)
        try:
            with torch.set_grad_enabled(gradients), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                end, told = self.solve(posed, tolerance, call)
                more = {"rows": call.rows} | told
                found = torch.autograd.grad(loss(end), posed.leaves) if gradients else ()
        except TooLong:
            return Run(tolerance, limit, calls=call.calls, failure=f"> {limit:g} s")
        except (ps.SolveError, ValueError, TypeError, RuntimeError, AssertionError, MemoryError) as failure:
            said = f"{type(failure).__name__}: {failure}".splitlines()[0]
            return Run(tolerance, clock() - began, calls=call.calls, failure=said[:150])
        seconds = clock() - began
        truth = case.truth
        error, rms = truth.error(end)
        off = truth.gradient_error(found) if gradients else 0.0
        if not math.isfinite(max(error, off)):
            return Run(tolerance, seconds, calls=call.calls, failure="not finite")
        return Run(tolerance, seconds, error, rms, off, call.calls, **more)


# ---- ours


def by_sample(name: str, integrator: Any, iteration: Any = None) -> Solver:
    """Ours, every sample with its own steps and span."""

    def solve(posed: Posed, tolerance: float, call: Call) -> tuple[Tensor, dict[str, Any]]:
        ends = posed.spans[:1] if posed.together else posed.spans[None]
        sol = ps.solve(
            ps.ODE(call),
            posed.y0,
            torch.cat([torch.zeros_like(ends), ends]),
            integrator=integrator,
            iteration=iteration,
            rtol=tolerance,
            atol=tolerance,
            args=posed.own,
            batch_dims=1,
        )
        return sol.ys[-1], {"note": said(sol)}

    return Solver(name, solve)


def one_system(name: str, method: str | None) -> Solver:
    """Ours, called as torchdiffeq is."""

    def solve(posed: Posed, tolerance: float, call: Call) -> tuple[Tensor, dict[str, Any]]:
        f, ts = posed.rescaled(call)
        given = {"rtol": tolerance, "atol": tolerance, "method": method, "options": {"full_output": True}}
        ys, sol = ps.odeint(f, posed.y0, ts, **given)
        rows = sol.stats.evaluations * len(posed.y0)  # vmap hides them from the drift
        return ys[-1], {"note": said(sol), "rows": rows}

    return Solver(name, solve)


def said(solution: ps.Solution) -> str:
    """The first words of its notes, the most frequent first."""
    words = Counter(note.split()[0].strip(",:;") for note in solution.notes if note)
    return "+".join(word for word, _ in words.most_common(3))


def ours() -> tuple[list[Solver], list[str]]:
    """All ways of ours that this version has, the first the default; and the names of those that are missing."""
    there = [by_sample("ours", ps.Adaptive()), one_system("ours as one system", None)]
    there.append(by_sample("ours collocation", ps.Collocation()))
    missing = []
    for method in ("Dopri5", "Tsit5", "Dopri8"):
        if hasattr(ps, method):
            there.append(by_sample(f"ours {method.lower()}", getattr(ps, method)()))
        else:
            missing.append(f"ours {method.lower()}")
    for iteration in (ps.Picard(), ps.Secant(), ps.Newton()):
        there.append(by_sample(f"ours {type(iteration).__name__.lower()}", ps.Collocation(), iteration))
    return there, missing


# ---- peers


def torchdiffeq(method: str, adjoint: bool = False) -> Solver:
    """The batch as one system. Steps end at the last time: what dopri8 interpolates there is good to 1e-9 only."""
    module = importlib.import_module("torchdiffeq")

    def solve(posed: Posed, tolerance: float, call: Call) -> tuple[Tensor, dict[str, Any]]:
        f, ts = posed.rescaled(call)
        given = {"rtol": tolerance, "atol": tolerance, "method": method, "options": {"step_t": ts[1:]}}
        if adjoint:
            given |= {"adjoint_params": posed.leaves[1:], "adjoint_options": {}}
        integrate = module.odeint_adjoint if adjoint else module.odeint
        return integrate(_Module(f) if adjoint else f, posed.y0, ts, **given)[-1], {}

    return Solver(f"torchdiffeq {method}{' adjoint' if adjoint else ''}", solve)


class _Module(torch.nn.Module):
    """What the adjoint takes."""

    def __init__(self, f: Callable[..., Tensor]):
        super().__init__()
        self.f = f

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f(t, y)


def torchode(method: str) -> Solver:
    """Every sample with its own steps and span; not compiled; no gradients through the control of steps."""
    to = importlib.import_module("torchode")

    def solve(posed: Posed, tolerance: float, call: Call) -> tuple[Tensor, dict[str, Any]]:
        term = to.ODETerm(lambda t, y: call(t, y, *posed.own))
        control = to.IntegralController(atol=tolerance, rtol=tolerance, term=term)
        adjoint = to.AutoDiffAdjoint(getattr(to, method)(term=term), control, backprop_through_step_size_control=False)
        problem = to.InitialValueProblem(posed.y0, torch.zeros_like(posed.spans), posed.spans, posed.spans[:, None])
        sol = adjoint.solve(problem)
        if bool((sol.status != 0).any()):
            raise RuntimeError(f"status {int(sol.status.max())}")
        return sol.ys[:, -1], {}

    return Solver(f"torchode {method.lower()}", solve)


def scipy_one_by_one() -> Solver:
    """Drifts in torch, as everyone's, wrapped; calls are those of the samples added up."""

    def solve(posed: Posed, tolerance: float, call: Call) -> tuple[Tensor, dict[str, Any]]:
        ends = []
        for y0, span, *own in zip(posed.y0, posed.spans.tolist(), *posed.own, strict=True):

            def f(t: float, y: Any, own: Any = own) -> Any:
                return call(torch.tensor(t), torch.from_numpy(y).to(posed.y0), *own).numpy()

            sol = solve_ivp(f, (0.0, span), y0.numpy(), method="DOP853", rtol=tolerance, atol=tolerance)
            if not sol.success:
                raise RuntimeError(sol.message)
            ends.append(torch.from_numpy(sol.y[:, -1]))
        return torch.stack(ends), {}

    return Solver("scipy DOP853", solve, largest=MOST_ONE_BY_ONE)


def peers(gradients: bool) -> tuple[list[Solver], list[str]]:
    """Those that there are, and the names of those that are missing."""
    known = importlib.import_module("torchdiffeq._impl.odeint").SOLVERS
    there, missing = [], []
    for method in ("dopri5", "dopri8", "tsit5"):
        if method in known:
            there.append(torchdiffeq(method))
        else:
            missing.append(f"torchdiffeq {method} (not in this version)")
    if gradients:
        there.append(torchdiffeq("dopri5", adjoint=True))
    if importlib.util.find_spec("torchode") is None:
        missing.append('torchode (pip install -e ".[bench]")')
    else:
        there += [torchode("Tsit5"), torchode("Dopri5")]
    return there if gradients else [*there, scipy_one_by_one()], missing
