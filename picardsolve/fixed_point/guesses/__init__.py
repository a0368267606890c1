"""Guesses of the states that enter a window; each file defines one kind."""

from typing import Any

from picardsolve.fixed_point.guesses.base import Entering, Guess, Trail
from picardsolve.fixed_point.guesses.frozen import Copy, FrozenOutput, FrozenSample
from picardsolve.fixed_point.guesses.polynomial import Polynomial
from picardsolve.fixed_point.guesses.trajectory import FromTrajectory
from picardsolve.fixed_point.guesses.user import UserGuess
from picardsolve.integrators.base import Chain
from picardsolve.problem.checks import check_type
from picardsolve.problem.problem import Problem

__all__ = [
    "Copy",
    "Entering",
    "FromTrajectory",
    "FrozenOutput",
    "FrozenSample",
    "Guess",
    "Polynomial",
    "Trail",
    "UserGuess",
    "guess_for",
]


_USUAL: dict[str, Guess] = {"output": FrozenOutput(), "sample": FrozenSample(), "copy": Copy()}


def guess_for(given: Any, problem: Problem, chain: Chain) -> Guess:
    """The user's guess, prepared for a problem; without one, the default of the chain."""
    if given is None:
        return _USUAL[chain.guess]
    if callable(given) and not isinstance(given, type | Guess):
        return UserGuess(given, problem.layout, problem.ts)
    check_type("guess", given, Guess, "picardsolve.Copy() or FrozenOutput()")
    return given.prepared(problem, chain)
