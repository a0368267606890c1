"""What an integrator is given: the arguments of a solve, checked, and the initial states as rows."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from picardsolve.integrators.discretization import Discretization
from picardsolve.problem.checks import check_type
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import Term
from picardsolve.problem.validation import validated


def posed(term: Term, y0: Any, ts: Any, integrator: Discretization, *given: Any) -> tuple[Problem, Tensor]:
    """The problem, and its initial states as rows ``(B, D)``.

    Args:
        term: what is solved.
        y0: initial state.
        ts: times.
        integrator: a user's argument, not checked yet.
        *given: ``brownian``, ``args``, ``cond``, ``batch_dims`` and ``max_batch`` of `picardsolve.solve`.

    Raises:
        TypeError: an argument has the wrong type, or the integrator does not take the term.
        ValueError: an argument has a wrong value or shape.
    """
    check_type("integrator", integrator, Discretization, "an instance such as picardsolve.Euler()")
    integrator.check_term(term)
    problem, y = validated(term, y0, ts, *given, of_each=integrator.adaptive)
    return problem if integrator.adaptive else replace(problem, term=problem.term.on_grid()), y
