"""One solve of a problem of the bank by collocation, and how far it is off: for tests and for the table of trust."""

import warnings
from dataclasses import dataclass

import torch
from problems import Problem

import picardsolve as ps

ITERATIONS = {"auto": None, "newton": ps.Newton(), "secant": ps.Secant(), "picard": ps.Picard()}
MODES = ("auto", "newton", "newton+lobatto", "newton+chebyshev", "secant", "picard", "second-order")
LARGEST = 64  # numbers in a state that Newton's method takes


@dataclass(frozen=True)
class Trial:
    """How a solve ended.

    Attributes:
        result: None where the tolerance was refused before any work.
        rounds: it took.
        error: at the end, in tolerances ``tol (1 + |y|)``, of the component that is furthest off; NaN where it raised.
        estimate: the largest of the certificate's, in what it says is allowed; NaN where it raised.
    """

    result: ps.Result | None
    rounds: int = 0
    error: float = torch.nan
    estimate: float = torch.nan

    @property
    def solved(self) -> bool:
        return self.result is ps.Result.solved

    @property
    def wrong(self) -> bool:
        """Silently."""
        return self.solved and not self.error <= 100


def applies(problem: Problem, mode: str) -> bool:
    """Whether a mode is meant for it: Picard's and the secant's iterations are not for stiff equations."""
    if mode == "second-order":
        return problem.acceleration is not None
    if mode in ("secant", "picard"):
        return not problem.stiff
    return mode == "auto" or len(problem.y0) <= LARGEST


def attempt(problem: Problem, tol: float, mode: str, max_rounds: int) -> Trial:
    name, _, nodes = mode.partition("+")
    term, y0 = ps.ODE(problem.f), problem.y0
    if mode == "second-order":
        assert problem.acceleration is not None
        term, y0 = ps.SecondOrderODE(problem.acceleration), tuple(problem.y0.chunk(2))
    given = {"iteration": ITERATIONS.get(name), "rtol": tol, "atol": tol, "max_rounds": max_rounds}
    method = ps.Collocation(nodes=nodes or "radau")  # pyright: ignore[reportArgumentType]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ps.ConvergenceWarning)
            solution = ps.solve(term, y0, problem.span, integrator=method, **given)
    except ps.SolveError as error:
        return Trial(error.solution.result, error.solution.stats.rounds)
    except ValueError as error:
        if "tol" not in str(error):
            raise
        return Trial(None)
    end = torch.cat(solution.ys, 1)[-1] if mode == "second-order" else solution.ys[-1]
    error = ((end - problem.y1).abs() / (tol * (1 + problem.y1.abs()))).max()
    certificate = solution.certificate
    estimate = torch.as_tensor(certificate.error / certificate.allowed).max()
    return Trial(solution.result, solution.stats.rounds, float(error), float(estimate))
