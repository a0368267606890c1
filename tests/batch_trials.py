"""Problems of the bank in random company: batches of them in one solve, each held to its own reference."""

import random
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from problems import Problem
from torch import Tensor
from trials import ITERATIONS, Trial, applies

import picardsolve as ps

HOPELESS = 10.0  # tolerances: estimates, or rounding, beyond which a sample is refused


@dataclass(frozen=True)
class Draw:
    """A sample of a batch.

    Attributes:
        problem: with its own drift and span.
        tol: rtol and atol.
    """

    problem: Problem
    tol: float


def batches(
    problems: Sequence[Problem], mode: str, tolerances: Sequence[float], size: int, seed: int
) -> Iterator[list[Draw]]:
    """Every problem at every tolerance once, in batches of one number of components, drawn at random."""
    groups = defaultdict(list)
    for problem in problems:
        if applies(problem, mode):
            groups[len(problem.y0)] += [Draw(problem, tol) for tol in tolerances]
    for components in sorted(groups):
        drawn = groups[components]
        random.Random(seed).shuffle(drawn)
        yield from (drawn[at : at + size] for at in range(0, len(drawn), size))


def by_index(functions: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """One function of all rows: each row is answered by the function whose index it brings along."""

    def f(t: Tensor, y: Tensor, index: Tensor) -> Tensor:
        out = torch.empty_like(y)
        for which in index.unique().tolist():
            rows = index == which
            out[rows] = functions[which](t[rows], y[rows])
        return out

    return f


def attempt_batch(draws: Sequence[Draw], mode: str, max_rounds: int) -> list[Trial]:
    """Solve a batch; ``rounds`` are those of the batch, and so is the result where a sample has no answer.

    A solution has one result, that of the first sample that failed. Of a batch with one, those samples have no answer
    whose last state is not finite, or whose own certificate says that it is far off.
    """
    name, _, nodes = mode.partition("+")
    problems = [draw.problem for draw in draws]
    own = {problem.name: problem for problem in problems}
    index = torch.tensor([list(own).index(problem.name) for problem in problems])
    tol = torch.tensor([draw.tol for draw in draws], dtype=torch.float64)
    y0, y1 = (torch.stack(states) for states in zip(*((each.y0, each.y1) for each in problems), strict=True))
    ts = torch.tensor([each.span for each in problems], dtype=torch.float64).T
    cascade = mode == "second-order"
    if cascade:
        accelerations = [each.acceleration for each in own.values() if each.acceleration]
        term, start = ps.SecondOrderODE(by_index(accelerations)), tuple(y0.chunk(2, 1))
    else:
        term, start = ps.ODE(by_index([each.f for each in own.values()])), y0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.ConvergenceWarning)
        sol = ps.solve(
            term,
            start,
            ts,
            integrator=ps.Collocation(nodes=nodes or "radau"),  # pyright: ignore[reportArgumentType]
            iteration=ITERATIONS.get(name),
            rtol=tol,
            atol=tol,
            args=(index,),
            batch_dims=1,
            max_rounds=max_rounds,
            throw=False,
        )
    end = torch.cat(sol.ys, -1)[-1] if cascade else sol.ys[-1]
    errors = ((end - y1).abs() / (tol[:, None] * (1 + y1.abs()))).amax(1)
    certificate: Any = sol.certificate
    estimates, floors = (
        (part / certificate.allowed).amax(0) for part in (certificate.error, certificate.precision_floor)
    )
    refused = ~end.isfinite().all(1) | (estimates > HOPELESS) | (floors > HOPELESS)
    refused &= sol.result is not ps.Result.solved
    return [
        Trial(sol.result, sol.stats.rounds)
        if raised
        else Trial(ps.Result.solved, sol.stats.rounds, float(error), float(estimate))
        for raised, error, estimate in zip(refused, errors, estimates, strict=True)
    ]
