"""Which SDEs an integrator takes."""

from collections.abc import Collection

from picardsolve.integrators.base import Integrator, refuse
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import SDE

_ALL = ("ito", "stratonovich")


def check_takes(
    integrator: Integrator, problem: Problem, noises: Collection[str], interpretations: tuple[str, ...] = _ALL
) -> Problem:
    """The problem, of an `SDE` with one of the noises in one of the interpretations.

    Raises:
        TypeError: it is another.
    """
    term, name = problem.term, type(integrator).__name__
    if not isinstance(term, SDE):
        raise refuse(integrator, term, "an SDE", "Euler() for an ODE, DDIM(), DDPM() or DPMSolver() for a Denoiser")
    if term.noise not in noises:
        instead = "Milstein() or EulerMaruyama()" if set(noises) == {"additive"} else "EulerMaruyama()"
        if term.noise == "general" and "commutative" in noises:
            instead = "noise='commutative' if the columns of the diffusion commute, or EulerMaruyama()"
        raise TypeError(f"integrator: {name} takes {', '.join(noises)} noise, got {term.noise} noise; pass {instead}.")
    if term.noise != "additive" and term.interpretation not in interpretations:
        raise TypeError(
            f"integrator: {name} converges to the Ito solution, got a stratonovich SDE; pass term.to_ito(), or add "
            "the correction to the drift and pass interpretation='ito'."
        )
    return problem
