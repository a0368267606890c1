"""Runge-Kutta methods along the probability flow of a denoiser."""

import torch
from torch import Tensor

from picardsolve.integrators.diffusion import Coefficients, DiffusionChain, NoiseLevels
from picardsolve.integrators.flow_stages import FlowStages
from picardsolve.integrators.tableau import Tableau
from picardsolve.problem.denoiser import Denoiser
from picardsolve.problem.problem import Problem


def probability_flow(
    problem: Problem, term: Denoiser, tableau: Tableau, gamma: Tensor | None = None, noise: float = 1, scale: float = 1
) -> DiffusionChain:
    """The chain of a Runge-Kutta method for ``dx/dt = alpha' D + sigma' epsilon`` (Song et al. 2021, eq. 13).

    Args:
        problem: of the term.
        term: the denoiser.
        tableau: of the method.
        gamma: ``(N,)``, by what share noise is raised before a step, where the time is the noise level; None for none.
        noise: deviation of the noise that is added for it.
        scale: factor of every step.
    """
    levels, ts = NoiseLevels.of(term, problem.ts), problem.ts
    start, churn = ts[:-1], None
    if gamma is not None:
        start, churn = start * (1 + gamma), noise * start * (gamma * (2 + gamma)).sqrt()
        levels = NoiseLevels(levels.alpha, start, levels.alpha_next, levels.sigma_next)
    of_sample, of_noise = term.schedule.rates(start)
    h, per_noise = scale * (ts[1:] - start), of_noise / levels.sigma  # epsilon is (x - alpha D) / sigma
    p, q = 1 + h * per_noise, h * (of_sample - levels.alpha * per_noise)
    plain = len(tableau[1]) == 1 and gamma is None
    stages = None if plain else FlowStages.of(term, start, ts[1:], tableau, churn, scale)
    s = torch.zeros_like(p) if churn is None else p * churn
    return DiffusionChain(problem, term, levels, Coefficients(p, q[None], s), stages)
