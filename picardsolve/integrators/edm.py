"""EDM's stochastic sampler: noise is added before each step (Karras et al. 2022)."""

import math
from dataclasses import dataclass

import torch

from picardsolve.integrators.base import DriftChain, Integrator, accepted_term
from picardsolve.integrators.probability_flow import probability_flow
from picardsolve.integrators.runge_kutta import Euler, Heun
from picardsolve.problem.checks import check_not_negative
from picardsolve.problem.denoiser import Denoiser
from picardsolve.problem.problem import Problem


@dataclass(frozen=True)
class StochasticEDM(Integrator):
    """EDM's stochastic sampler for a `Denoiser` whose time is the noise level (Karras et al. 2022, algorithm 2).

    Before a step the noise of the state is raised by a share, "churn". The step then leads from there to the next noise
    level by Heun's method, or by Euler's as in the sampler of AlphaFold 3 (Abramson et al. 2024, algorithm 18).

        model = ps.Denoiser(network, ps.schedules.EDM(), prediction="sample")
        ts = ps.grids.karras(80.0, 0.002, steps=200)
        sol = ps.solve(model, 80.0 * noise, ts, integrator=ps.StochasticEDM(s_churn=40.0))

    The noise comes from the ``brownian`` of the solve. The last step to no noise is Euler's.

    Args:
        s_churn: amount of noise, the sum over all steps of the shares by which the noise level is raised; 0 for none.
        s_tmin: noise is added at this noise level and above.
        s_tmax: noise is added at this noise level and below.
        s_noise: deviation of the noise that is added.
        order: 2 for Heun's method, with two network calls a step, or 1 for Euler's.
        gamma_max: largest share of a step. AlphaFold 3 takes 0.8 at every step, which is ``s_churn = 0.8 N`` with
            ``gamma_max=0.8``.
        step_scale: factor of every step; 1.5 in AlphaFold 3.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is negative or infinite, or ``order`` is neither 1 nor 2.
    """

    s_churn: float
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    order: int = 2  # pyright: ignore[reportIncompatibleVariableOverride]
    gamma_max: float = math.sqrt(2) - 1
    step_scale: float = 1.0

    def __post_init__(self):
        for name in ("s_churn", "s_tmin", "s_tmax", "s_noise", "gamma_max", "step_scale"):
            check_not_negative(name, getattr(self, name))
        for name in ("s_churn", "s_noise", "gamma_max", "step_scale"):
            if getattr(self, name) == math.inf:
                raise ValueError(f"{name}: expected a finite number, got inf.")
        if self.step_scale == 0:
            raise ValueError("step_scale: expected a number > 0, got 0; leave it out for whole steps.")
        if self.order not in (1, 2):
            raise ValueError(f"order: expected 1 or 2, got {self.order!r}.")

    def chain(self, problem: Problem) -> DriftChain:
        """The chain of a `Denoiser`.

        Raises:
            ValueError: the time of its schedule is not the noise level.
        """
        term, t = accepted_term(self, problem, Denoiser), problem.ts
        if not (torch.equal(term.schedule.sigma(t), t) and bool((term.schedule.alpha(t) == 1).all())):
            raise ValueError(
                "integrator: StochasticEDM takes a Denoiser whose time is the noise level, got the schedule "
                f"{term.schedule!r}; pass schedule=picardsolve.schedules.EDM()."
            )
        most = min(self.s_churn / (len(t) - 1), self.gamma_max)
        gamma = torch.where((t[:-1] >= self.s_tmin) & (t[:-1] <= self.s_tmax), t.new_tensor(most), 0.0)
        method = Euler() if self.order == 1 else Heun()
        return probability_flow(problem, term, method.tableau, gamma, self.s_noise, self.step_scale)
