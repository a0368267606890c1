"""Guesses: what a state that enters the window starts from, one file for each kind."""

from typing import Any

from picardsolve.checks import check_type
from picardsolve.guesses.base import Entering, Guess, Trail
from picardsolve.guesses.coarse import Coarse
from picardsolve.guesses.frozen import Copy, FrozenOutput, FrozenSample, usual_hold
from picardsolve.guesses.polynomial import Polynomial
from picardsolve.guesses.trajectory import FromTrajectory
from picardsolve.guesses.user import UserGuess
from picardsolve.integrators.base import Chain, Problem

__all__ = [
    "Coarse",
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


def guess_for(given: Any, problem: Problem, chain: Chain) -> Guess:
    """The guess that a user gave, ready for a problem.

    Without one, `FrozenSample` for a denoiser's SDE chain, `Copy` for an implicit one, whose problems may turn within
    a step, `FrozenOutput` for everything else.
    """
    if given is None and chain.implicit:
        return Copy()
    if given is None:
        return FrozenSample() if usual_hold(problem.term, chain) == "sample" else FrozenOutput()
    if callable(given) and not isinstance(given, type | Guess):
        return UserGuess(given, problem.layout, problem.ts)
    check_type("guess", given, Guess, "picardsolve.Copy() or FrozenOutput()")
    return given.prepared(problem, chain)
