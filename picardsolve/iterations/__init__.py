"""Iterations: one file for each choice of ``delta``."""

from typing import Any

from picardsolve.checks import check_type
from picardsolve.integrators.base import Chain
from picardsolve.integrators.etd import ETDChain
from picardsolve.iterations.anderson import Anderson
from picardsolve.iterations.base import Iteration
from picardsolve.iterations.exponential import Exponential
from picardsolve.iterations.jacobi import Jacobi
from picardsolve.iterations.multi_secant import MultiSecant
from picardsolve.iterations.newton import Newton
from picardsolve.iterations.parareal import Parareal
from picardsolve.iterations.picard import Picard
from picardsolve.iterations.secant import Secant
from picardsolve.terms import SDE, Denoiser, Term

__all__ = [
    "Anderson",
    "Exponential",
    "Iteration",
    "Jacobi",
    "MultiSecant",
    "Newton",
    "Parareal",
    "Picard",
    "Secant",
    "iteration_for",
]


def iteration_for(given: Any, term: Term, chain: Chain) -> Iteration | Parareal:
    """The iteration that a user gave, or the usual one for the problem.

    Raises:
        TypeError: it is none, or does not serve the chain.
    """
    if given is None:
        if chain.implicit:
            return Newton()
        if isinstance(chain, ETDChain):
            return Exponential()
        if isinstance(term, Denoiser):
            return MultiSecant()
        return Secant() if isinstance(term, SDE) else Picard()  # measured: docs/sde_iterations.md
    if not isinstance(given, Parareal):
        check_type("iteration", given, Iteration, "picardsolve.Picard()")
    if chain.implicit and not (isinstance(given, Newton) and given.jacobian == "dense"):
        raise TypeError(
            f"iteration: an implicit integrator is iterated by Newton() with the whole Jacobian, got {given!r}; pass "
            "iteration=picardsolve.Newton(), or leave it out."
        )
    return given
