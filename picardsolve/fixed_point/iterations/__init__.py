"""Iterations, one file for each choice of ``delta``."""

from typing import Any

from picardsolve.fixed_point.iterations.base import Iteration, Method
from picardsolve.fixed_point.iterations.exponential import Exponential
from picardsolve.fixed_point.iterations.multi_secant import MultiSecant
from picardsolve.fixed_point.iterations.newton import Newton
from picardsolve.fixed_point.iterations.picard import Picard
from picardsolve.fixed_point.iterations.secant import Secant
from picardsolve.integrators.base import Chain
from picardsolve.problem.checks import check_type

__all__ = [
    "Exponential",
    "Iteration",
    "Method",
    "MultiSecant",
    "Newton",
    "Picard",
    "Secant",
    "iteration_for",
]

_USUAL: dict[str, Iteration] = {
    "picard": Picard(),
    "secant": Secant(),
    "multi-secant": MultiSecant(),
    "newton": Newton(),
    "exponential": Exponential(),
}


def iteration_for(given: Any, chain: Chain) -> Method:
    """The iteration that a user gave, or the usual one of the chain.

    Raises:
        TypeError: it is none, or does not serve the chain.
    """
    if given is None:
        return _USUAL[chain.iteration]
    check_type("iteration", given, Method, "picardsolve.Picard()")
    if chain.implicit and not given.solves_equations:
        raise TypeError(
            f"iteration: an implicit integrator is iterated by Newton() with the whole Jacobian, got {given!r}; pass "
            "iteration=picardsolve.Newton(), or leave it out."
        )
    return given
