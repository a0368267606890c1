"""DPM-Solver++, multistep: exponential integrators in the log-SNR, for ODE and SDE samplers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Integrator, accepted_term
from picardsolve.integrators.diffusion import Coefficients, DiffusionChain, NoiseLevels
from picardsolve.problem.denoiser import Denoiser
from picardsolve.problem.problem import Problem


@dataclass(frozen=True)
class DPMSolver(Integrator):
    """The multistep sampler DPM-Solver++ for a `Denoiser` (Lu et al. 2022b, algorithm 2 and appendix A).

        sol = ps.solve(model, noise, ts, integrator=ps.DPMSolver(order=2))

    It predicts samples. The first steps have the lower orders that their history allows. The last steps fall to order
    1, as with ``lower_order_final`` in the published code; a grid that ends in a clean sample would be unstable
    otherwise.

    Args:
        order: 1 to 3; 1 or 2 with ``sde=True``.
        sde: whether to take the stochastic variant, SDE-DPM-Solver++.

    Raises:
        ValueError: ``order`` is none of these.
    """

    order: int = 2  # pyright: ignore[reportIncompatibleVariableOverride]
    sde: bool = False

    def __post_init__(self):
        if type(self.order) is not int or self.order not in ((1, 2) if self.sde else (1, 2, 3)):
            allowed = "1 or 2 with sde=True" if self.sde else "1, 2 or 3"
            raise ValueError(f"order: expected {allowed}, got {self.order!r}.")

    def chain(self, problem: Problem) -> DriftChain:
        """The chain of a `Denoiser`."""
        term = accepted_term(self, problem, Denoiser)
        levels = NoiseLevels.of(term, problem.ts)
        coefficients = _sde(self.order, levels) if self.sde else _ode(self.order, levels)
        return DiffusionChain(problem, term, levels, coefficients)


def _ode(order: int, levels: NoiseLevels) -> Coefficients:
    decay, h, r0, r1 = _steps(levels)
    first = levels.alpha_next * (1 - decay)
    q = torch.stack([first, *[torch.zeros_like(first)] * (order - 1)])
    orders = _orders(order, len(h))
    second, third = orders == 2, orders == 3
    if order >= 2:
        half = torch.where(second, first * 0.5 / r0, 0.0)
        q[0] += half
        q[1] -= half
    if order == 3:
        slope = levels.alpha_next * (1 - (1 - decay) / h)  # weight of D1, appendix A
        # weight of D2, which tends to h^2 D'' / 2: twice that of the published code, which has order 2 for that reason
        curve = -2 * levels.alpha_next * ((h - 1 + decay) / h**2 - 0.5)
        near = slope * (1 + r0 / (r0 + r1)) + curve / (r0 + r1)  # weight of (D_n - D_{n-1}) / r0
        far = -slope * r0 / (r0 + r1) - curve / (r0 + r1)  # weight of (D_{n-1} - D_{n-2}) / r1
        near, far = (torch.where(third, value, 0.0) for value in (near / r0, far / r1))
        q[0] += near
        q[1] += far - near
        q[2] -= far
    return Coefficients(levels.sigma_next / levels.sigma, q, torch.zeros_like(first))


def _sde(order: int, levels: NoiseLevels) -> Coefficients:
    decay, h, r0, _ = _steps(levels)
    first = levels.alpha_next * (1 - decay**2)
    q = torch.stack([first, *[torch.zeros_like(first)] * (order - 1)])
    if order == 2:
        half = torch.where(_orders(2, len(h)) == 2, first * 0.5 / r0, 0.0)
        q[0] += half
        q[1] -= half
    return Coefficients(levels.sigma_next / levels.sigma * decay, q, levels.sigma_next * (1 - decay**2).sqrt())


def _steps(levels: NoiseLevels) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``exp(-h)``, h, and the ratios of the two steps before to h. h is infinite where noise starts or ends at 0."""
    decay = levels.alpha * levels.sigma_next / (levels.sigma * levels.alpha_next)
    h = -torch.log(decay)
    return decay, h, h.roll(1) / h, h.roll(2) / h


def _orders(order: int, steps: int) -> Tensor:
    n = torch.arange(steps)
    return torch.minimum(torch.minimum(n + 1, steps - n), torch.tensor(order))
