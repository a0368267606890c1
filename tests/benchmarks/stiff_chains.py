"""``make bench``: stiff problems on fixed grids, in windows and step by step; every drift call counted, one thread."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import picardsolve as ps

TOLERANCE = 1e-8


@dataclass(frozen=True)
class Problem:
    name: str
    term: ps.ODE | ps.SemilinearODE
    y0: Tensor
    ts: Tensor
    integrator: ps.Integrator
    windows: tuple[int, ...]


def van_der_pol(mu: float) -> Callable:
    return lambda t, y: torch.stack([y[..., 1], mu * (1 - y[..., 0] ** 2) * y[..., 1] - y[..., 0]], -1)


def robertson(t, y):
    a, b, c = y.unbind(-1)
    slow, mixed, fast = 0.04 * a, 1e4 * b * c, 3e7 * b**2
    return torch.stack([mixed - slow, slow - mixed - fast, fast], -1)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def implicit() -> list[Problem]:
    spans = ((1, 20, 2000), (10, 20, 4000), (100, 80, 2000), (1000, 800, 2000))
    found = [
        Problem(
            f"Van der Pol mu={mu} T={end}",
            ps.ODE(van_der_pol(mu)),
            double(2, 0),
            ps.grids.uniform(0, end, steps),
            ps.BackwardEuler(),
            (steps, 500, 100, 20),
        )
        for mu, end, steps in spans
    ]
    ts = torch.cat([torch.zeros(1, dtype=torch.float64), torch.logspace(-6, 5, 1000, dtype=torch.float64)])
    found.append(
        Problem("Robertson T=1e5", ps.ODE(robertson), double(1, 0, 0), ts, ps.BackwardEuler(), (1000, 500, 100, 20))
    )
    return found


def exponential() -> list[Problem]:
    k, x = 64 * torch.fft.fftfreq(64, dtype=torch.float64), 2 * torch.pi * torch.arange(64, dtype=torch.float64) / 64
    noise = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u0 = 0.5 * torch.sin(x) + 0.3 * torch.cos(3 * x) + 0.1 * noise
    term = ps.SemilinearODE(ps.Fourier(-(k**2)), lambda t, u: u - u**3)
    return [
        Problem(f"Allen-Cahn M=64 T={end}", term, u0, ps.grids.uniform(0, end, steps), integrator, (steps, 100))
        for integrator in (ps.ETD1(), ps.ETDRK2(), ps.ETDRK4())
        for end, steps in ((1, 200), (4, 800))
    ]


def timed(solver: Callable, problem: Problem, **how) -> tuple[ps.Solution, float]:
    began = time.perf_counter()
    solution = solver(problem.term, problem.y0, problem.ts, integrator=problem.integrator, throw=False, **how)
    return solution, time.perf_counter() - began


def compare(problem: Problem, iteration: ps.Iteration | None = None) -> None:
    reference, alone = timed(ps.sequential, problem)
    for window in problem.windows:
        found, together = timed(
            ps.solve, problem, window=window, tol=TOLERANCE, iteration=iteration, max_rounds=2 * len(problem.ts)
        )
        converged = found.result is ps.Result.converged
        error = f"{float((found.ys - reference.ys).abs().max()):.1e}" if converged else found.result.name
        names = type(problem.integrator).__name__, type(iteration).__name__ if iteration else ""
        print(
            f"{problem.name:26s} {names[0]:13s} {names[1]:8s}"
            f" {len(problem.ts) - 1:5d} {window:6d} {found.stats.rounds:7d} {found.stats.evaluations:11d}  "
            f"{error:>10s} {reference.stats.rounds:10d} {together:8.2f} s {alone:8.2f} s {alone / together:7.1f}",
            flush=True,
        )


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ps.ConvergenceWarning)
    small = Problem(
        "warm up", ps.ODE(van_der_pol(1)), double(2, 0), ps.grids.uniform(0, 1, 10), ps.BackwardEuler(), (10,)
    )
    timed(ps.solve, small, window=10)  # the first torch.func.jvp takes seconds
    print(
        f"\nStiff problems on fixed grids, tol={TOLERANCE:g}, one thread; error: largest distance to the sequential one"
    )
    print(
        "problem                    integrator    iteration    N window  rounds evaluations       error sequential"
        "   window      alone   ratio"
    )
    for problem in (*implicit(), *exponential()):
        compare(problem)
    for problem in exponential()[:2]:
        for iteration in (ps.Picard(), ps.Secant()):
            compare(problem, iteration)


if __name__ == "__main__":
    main()
