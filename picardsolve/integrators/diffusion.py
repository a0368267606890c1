"""Samplers as chains: every step is ``x' = p x + q_0 D_n + q_1 D_{n-1} + ... + s z`` with D the predicted sample."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Evaluated, Hold, Index, Integrator, Rows, Steps, per_step, refuse
from picardsolve.integrators.step_maps import AffineSteps
from picardsolve.problem.clock import Clock
from picardsolve.problem.problem import Problem
from picardsolve.problem.recurrence import recurrence
from picardsolve.problem.row_function import RowFunction
from picardsolve.problem.terms import Denoiser


@dataclass(frozen=True)
class Levels:
    """Signal and noise at the start and the end of every step, each ``(N,)`` float64."""

    alpha: Tensor
    sigma: Tensor
    alpha_next: Tensor
    sigma_next: Tensor

    def posterior_std(self) -> Tensor:
        """Noise of ``q(x' | x, x_0)`` (Kingma et al. 2021, eq. 24): what an ancestral step adds."""
        added = (self.sigma**2 - (self.alpha / self.alpha_next * self.sigma_next) ** 2).clamp(min=0)
        return self.sigma_next * added.sqrt() / self.sigma


@dataclass(frozen=True)
class Coefficients:
    """``p`` and ``s`` of shape ``(N,)``, ``q`` of shape ``(order, N)``, float64."""

    p: Tensor
    q: Tensor
    s: Tensor


@dataclass(frozen=True)
class DDIM(Integrator):
    """Denoising diffusion implicit models (Song et al. 2021, eq. 12), for any schedule.

    Args:
        eta: 0 for the ODE, 1 for the ancestral sampler, between them a mixture.
    """

    eta: float = 0.0
    order = 1

    def __post_init__(self):
        if not isinstance(self.eta, int | float):
            raise TypeError(f"eta: expected a number >= 0, got {self.eta!r}.")
        if not self.eta >= 0:
            raise ValueError(f"eta: expected a number >= 0, got {self.eta!r}.")

    def chain(self, problem: Problem) -> DriftChain:
        """Build the chain of a `Denoiser`."""
        levels = noise_levels(self, problem)
        s = self.eta * levels.posterior_std()
        p = (levels.sigma_next**2 - s**2).clamp(min=0).sqrt() / levels.sigma
        return DiffusionChain(problem, levels, Coefficients(p, (levels.alpha_next - p * levels.alpha)[None], s))


@dataclass(frozen=True)
class DDPM(Integrator):
    """Ancestral sampling (Ho et al. 2020, eq. 7) with the posterior's variance: `DDIM` with ``eta=1``."""

    order = 1

    def chain(self, problem: Problem) -> DriftChain:
        """Build the chain of a `Denoiser`."""
        return DDIM(eta=1.0).chain(problem)


def noise_levels(integrator: Integrator, problem: Problem) -> Levels:
    """Evaluate the schedule on the grid, which must run from much noise to little."""
    if not isinstance(problem.term, Denoiser):
        raise refuse(integrator, problem.term, "a Denoiser", "Euler() or RK4() for an ODE, Euler() for an SDE")
    alpha, sigma = problem.term.schedule.alpha(problem.ts), problem.term.schedule.sigma(problem.ts)
    if not bool((alpha >= 0).all() and (sigma >= 0).all()):
        raise ValueError("ts: expected levels of signal and noise >= 0, got negative ones; end the grid at no noise.")
    if problem.term.prediction == "epsilon" and not bool(alpha[0] > 0):
        raise ValueError(
            "ts: starts where there is no signal, of which a predicted noise says nothing; start a little later, or "
            "use a model with prediction 'v_prediction', 'flow' or 'sample'."
        )
    ratio = sigma / alpha
    if not bool((ratio.diff() < 0).all() and (sigma[:-1] > 0).all()):
        raise ValueError(
            "ts: expected sigma / alpha of the schedule to fall along the grid, from noise to sample; reverse ts or "
            "check the schedule."
        )
    return Levels(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])


class DiffusionChain(DriftChain):
    """The chain of a linear multistep sampler; the output of a step is the predicted sample ``D``."""

    iteration = "multi-secant"

    def __init__(self, problem: Problem, levels: Levels, coefficients: Coefficients):
        term = cast(Denoiser, problem.term)
        self.length = len(problem.ts) - 1
        self.memory = len(coefficients.q) - 1
        self._levels, self._table = levels, coefficients
        self._from_state, self._from_output = term.sample_map(levels.alpha, levels.sigma)
        variance = term.sigma_data**2  # of data N(0, sigma_data^2), whose predicted samples are a multiple of x
        gain = levels.alpha * variance / (levels.alpha**2 * variance + levels.sigma**2)
        self._expected = coefficients.p + coefficients.q.sum(0) * gain
        self._ts, self._brownian = problem.ts, problem.brownian
        self.noise_size = problem.layout.size if bool((coefficients.s > 0).any()) else 0
        if self.noise_size:
            self.guess = "sample"
            self._brownian.check(problem.ts[:-1], problem.ts[1:], problem.layout.batch)
        leaving = levels.posterior_std().roll(-1)
        leaving[-1] = 0
        last = leaving.nonzero()[-1:, 0]  # the last step removes all noise: measure by the one before
        self._leaving = torch.where(leaving > 0, leaving, leaving[last]) if len(last) else levels.sigma
        clock = Clock.of(problem.ts, problem.layout, resolved=torch.inf)  # a schedule's times mean levels of noise
        self._model = RowFunction(
            *("model", term.model, problem.layout, clock, problem.args or {}),
            time_last=True,
            max_batch=problem.max_batch,
        )

    def evaluate(self, rows: Rows) -> Tensor:
        """The predicted samples, ``(R, D)``, and their derivatives."""
        states = rows.dual
        output = self._model(self._ts[rows.step], states, torch.from_numpy(rows.sample))
        from_state, from_output = (
            per_step(table, rows.step, rows.state) for table in (self._from_state, self._from_output)
        )
        return torch.addcmul(from_state * states, from_output, output)

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The steps of a window."""
        images = per_step(self._table.p, n, x) * x
        for age, q in enumerate(self._table.q):
            start = self.memory - age
            images.addcmul_(per_step(q, n, x), outputs[start : start + len(n)])
        if noise is not None:
            images.addcmul_(per_step(self._table.s, n, x), noise)
        linear = per_step(self._table.p + self._table.q[0] * self._from_state, n, x)
        scale = per_step(self._leaving, n, x)[..., 0]
        return AffineSteps(images, linear, expected_slope=per_step(self._expected, n, x), noise_scale=scale)

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """Steps along a fixed predicted noise ("output") or towards a fixed predicted sample ("sample")."""
        p, q = self._table.p, self._table.q.sum(0)
        if hold == "sample":
            a, c = per_step(p, n, start), per_step(q, n, start) * source.output
        else:
            alpha, sigma = self._levels.alpha, self._levels.sigma
            signal = per_step(alpha, source.step, start)[0] * source.output
            epsilon = (source.state - signal) / per_step(sigma, source.step, start)[0]
            blind = alpha == 0  # a first step out of pure noise, of which only the predicted sample says where it leads
            share = torch.where(blind, 0, q / torch.where(blind, 1, alpha))
            a, c = per_step(p + share, n, start), per_step(-share * sigma, n, start) * epsilon
            c.addcmul_(per_step(torch.where(blind, q, 0), n, start), source.output)
        if noise is not None:
            c = c.addcmul(per_step(self._table.s, n, start), noise)
        return recurrence(a, c, start)

    def predict(self, n: Index, start: Tensor, noise: Tensor | None) -> Tensor | None:
        """Steps for data from ``N(0, sigma_data^2)``."""
        scale = per_step(self._table.s, n, start)
        c = start.new_zeros(len(n), *start.shape) if noise is None else scale * noise
        return recurrence(per_step(self._expected, n, start), c, start)

    def increments(self, n: Index, sample: Index) -> Tensor:
        """The step's noise z: its Brownian increment over the square root of the step."""
        t0, t1 = self._ts[n], self._ts[n + 1]
        drawn = self._brownian.increments(t0, t1, torch.from_numpy(sample), self.noise_size)
        return drawn / (t1 - t0).abs().sqrt()[:, None]

    @property
    def deviation(self) -> Tensor | None:
        """Of the noise that each step adds."""
        return self._table.s if self.noise_size else None

    def step_constants(self, lipschitz: Tensor, one_sided: Tensor | None) -> Tensor:
        """``|p| + |q_0| L`` for the state, ``|q_i| L`` for those before."""
        if one_sided is not None:
            raise TypeError("one_sided: only of use to Euler() on an ODE; leave it out for a Denoiser.")
        earlier = torch.stack([lipschitz.roll(age) for age in range(self.memory + 1)])
        constants = self._table.q.abs() * earlier
        constants[0] += self._table.p.abs()
        return constants.T

    def counts(self) -> tuple[int, int]:
        """Model calls and evaluations so far."""
        return self._model.calls, self._model.evaluations
