"""A solve on a grid that can be repeated, for what a certificate asks of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.fixed_point.guesses import FromTrajectory
from picardsolve.integrators.base import DriftChain
from picardsolve.integrators.posed import posed
from picardsolve.problem.parameters import detached
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import Term
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.solution import Solution


@dataclass(frozen=True)
class Again:
    """A solve as it was asked for.

    Attributes:
        term: as it was given.
        y0: as it was given, without gradients.
        ts: as it was given.
        tolerance: the tolerance of errors.
        given: the arguments that `picardsolve.sequential` takes, too, by name.
        more: arguments of `picardsolve.solve` for a sharper solve, by name.
        solve: `picardsolve.solve`, which lies above this module.
        stepped: `picardsolve.sequential`.
        throw: as it was given.
    """

    term: Term
    y0: Any
    ts: Tensor
    tolerance: Tolerance
    given: Mapping[str, Any]
    more: Mapping[str, Any]
    solve: Callable[..., Solution]
    stepped: Callable[..., Solution]
    throw: bool

    def chain(self) -> DriftChain:
        """The chain of steps, made anew."""
        problem = self._problem()
        return self.given["integrator"].chain(replace(problem, args=pytree.tree_map(detached, problem.args)))

    def rows(self, solution: Solution) -> Tensor:
        """The states of a solution, ``(T, B, D)``."""
        return self._problem().layout.pack_path("ys", solution.ys, len(solution.ts))

    def finer(self, solution: Solution, factor: float) -> Solution:
        """Solve again, from a solution, to a fraction of the tolerance."""
        guess = FromTrajectory(solution) if self.given["save"] == "all" else None
        tolerance: dict[str, Any] = {"rtol": factor * self.tolerance.rtol, "atol": factor * self.tolerance.atol}
        if self.term.by_name:
            tolerance = {"tol": factor * self.tolerance.state}
        how = {"guess": guess, "window": max(solution.stats.max_width, 1), **self.more}
        return self.solve(self.term, self.y0, self.ts, **how, **self.given, **tolerance)

    def sequential(self) -> Solution:
        """Solve step by step."""
        return self.stepped(self.term, self.y0, self.ts, throw=self.throw, **self.given)

    def _problem(self) -> Problem:
        names = "integrator", "brownian", "args", "cond", "batch_dims", "max_batch"
        return posed(self.term, self.y0, self.ts, *(self.given[name] for name in names))[0]
