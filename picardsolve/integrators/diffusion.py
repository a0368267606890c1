"""Diffusion samplers: each step is ``x' = p x + q_0 D_n + q_1 D_{n-1} + ... + s z``, with D the predicted sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.brownian.path import placed
from picardsolve.integrators.base import DriftChain, Evaluated, Hold, Index, Integrator, Rows, accepted_term
from picardsolve.integrators.flow_stages import FlowStages, StageCalls
from picardsolve.integrators.linear_multistep import linear_multistep
from picardsolve.integrators.step_maps import AffineSteps, Steps
from picardsolve.integrators.step_table import StepTable, Times
from picardsolve.problem.denoiser import Denoiser
from picardsolve.problem.problem import Problem
from picardsolve.problem.recurrence import recurrence


@dataclass(frozen=True)
class NoiseLevels:
    """Signal and noise levels at the start and the end of every step, each ``(N,)`` float64."""

    alpha: Tensor
    sigma: Tensor
    alpha_next: Tensor
    sigma_next: Tensor

    @staticmethod
    def of(term: Denoiser, ts: Tensor) -> "NoiseLevels":
        """The levels of a term's schedule on a grid, which must lead from much noise to little.

        Raises:
            ValueError: a level is negative, the noise does not fall, or the model cannot start without a signal.
        """
        alpha, sigma = term.schedule.alpha(ts), term.schedule.sigma(ts)
        if not bool((alpha >= 0).all() and (sigma >= 0).all()):
            raise ValueError(
                "ts: expected levels of signal and noise >= 0, got negative ones; end the grid at no noise."
            )
        if term.prediction == "epsilon" and not bool(alpha[0] > 0):
            raise ValueError(
                "ts: starts where there is no signal, where a predicted noise does not determine the sample; start a "
                "little later, or use a model with prediction 'v_prediction', 'flow' or 'sample'."
            )
        if not bool(((sigma / alpha).diff() < 0).all() and (sigma[:-1] > 0).all()):
            raise ValueError(
                "ts: expected sigma / alpha of the schedule to fall along the grid, from noise to sample; reverse ts "
                "or check the schedule."
            )
        return NoiseLevels(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])

    def posterior_std(self) -> Tensor:
        """Deviation of ``q(x' | x, x_0)``, the noise of an ancestral step (Kingma et al. 2021, eq. 24)."""
        added = (self.sigma**2 - (self.alpha / self.alpha_next * self.sigma_next) ** 2).clamp(min=0)
        return self.sigma_next * added.sqrt() / self.sigma


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of every step, float64: ``p`` and ``s`` of shape ``(N,)``, ``q`` of shape ``(order, N)``."""

    p: Tensor
    q: Tensor
    s: Tensor


@dataclass(frozen=True)
class DDIM(Integrator):
    """The sampler DDIM for a `Denoiser` with any schedule (Song et al. 2021, eq. 12); order 1.

        sol = ps.solve(model, noise, ts, integrator=ps.DDIM(), window=40, tol=1e-3)

    Args:
        eta: 0 for the deterministic sampler, 1 for the ancestral one, `DDPM`, and a mixture between them.

    Raises:
        TypeError: ``eta`` is no number.
        ValueError: ``eta`` is negative.
    """

    eta: float = 0.0
    order = 1

    def __post_init__(self):
        if not isinstance(self.eta, int | float):
            raise TypeError(f"eta: expected a number >= 0, got {self.eta!r}.")
        if not self.eta >= 0:
            raise ValueError(f"eta: expected a number >= 0, got {self.eta!r}.")

    def chain(self, problem: Problem) -> DriftChain:
        """The chain of a `Denoiser`."""
        term = accepted_term(self, problem, Denoiser)
        levels = NoiseLevels.of(term, problem.ts)
        s = self.eta * levels.posterior_std()
        p = (levels.sigma_next**2 - s**2).clamp(min=0).sqrt() / levels.sigma
        coefficients = Coefficients(p, (levels.alpha_next - p * levels.alpha)[None], s)
        return DiffusionChain(problem, term, levels, coefficients)


@dataclass(frozen=True)
class DDPM(Integrator):
    """Ancestral sampling of a `Denoiser` with the variance of the posterior (Ho et al. 2020, eq. 7); order 1.

    It is `DDIM` with ``eta=1``, whose noise comes from the ``brownian`` of the solve.

        sol = ps.solve(model, noise, ts, integrator=ps.DDPM(), brownian=ps.BrownianPath(seed=0))
    """

    order = 1

    def chain(self, problem: Problem) -> DriftChain:
        """The chain of a `Denoiser`."""
        accepted_term(self, problem, Denoiser)
        return DDIM(eta=1.0).chain(problem)


class DiffusionChain(DriftChain):
    """The chain of a linear multistep sampler; the output of a step is the predicted sample ``D``.

    With stages it is the sample that makes of the step what the stages make of it.
    """

    iteration, trusts_slopes = "multi-secant", True

    def __init__(
        self,
        problem: Problem,
        term: Denoiser,
        levels: NoiseLevels,
        coefficients: Coefficients,
        stages: FlowStages | None = None,
    ):
        self.length = len(problem.ts) - 1
        self.memory = len(coefficients.q) - 1
        self.function = problem.row_function("model", term.model)
        self._ts, self._coefficients, self._stages = problem.ts, coefficients, None
        self._brownian = placed(problem.brownian, problem.layout.compute_dtype, problem.layout.device)
        added = coefficients.s if stages is None else stages.churn
        self.noise_size = problem.layout.size if bool((added > 0).any()) else 0
        if self.noise_size:
            self.guess = "sample"
            self._brownian.check(problem.ts[:-1], problem.ts[1:], problem.layout.batch)
        from_state, from_output = term.sample_map(levels.alpha, levels.sigma)
        self._times = Times(problem.ts, self.function)
        self._of_sample = StepTable(torch.stack([from_state, from_output]), problem.layout)
        linear = coefficients.p + coefficients.q[0] * from_state
        if stages is not None:
            self.rounds, self.reads_noise = stages.count, self.noise_size > 0
            self._stages = StageCalls(problem, self.function, stages, coefficients.p, coefficients.q[0])
            linear = stages.slopes(stages.own)
        self._tabulate(problem, term, levels, linear, stages)

    def _tabulate(
        self, problem: Problem, term: Denoiser, levels: NoiseLevels, linear: Tensor, stages: FlowStages | None
    ) -> None:
        """The coefficients that `steps`, `extend` and `predict` multiply with, for all steps."""
        alpha, sigma, variance = levels.alpha, levels.sigma, term.sigma_data**2
        p, q = self._coefficients.p, self._coefficients.q
        roots = problem.ts.diff().abs().sqrt()
        s = self._coefficients.s / roots  # of the increments
        gain = alpha * variance / (alpha**2 * variance + sigma**2)  # D / x for data from N(0, sigma_data^2)
        expected, added = p + q.sum(0) * gain, s
        if stages is not None:  # which add noise to the state that they start from
            expected = stages.slopes(stages.expected)
            added = expected * stages.churn / roots
        self._blind = bool((alpha == 0).any())
        blind = alpha == 0  # a first step from pure noise, where only the predicted sample is known
        share = torch.where(blind, 0, q.sum(0) / torch.where(blind, 1, alpha))  # of (x - sigma epsilon) in the step

        def table(*columns: Tensor) -> StepTable:
            return StepTable(torch.stack(columns), problem.layout)

        self._of_steps = table(p, s, linear, expected, _scale(levels), *q)
        self._of_levels = table(1 / sigma, -alpha / sigma)  # the predicted noise is (x - alpha D) / sigma
        self._of_noise = table(p + share, -share * sigma, torch.where(blind, q.sum(0), 0), s)
        self._towards_sample = table(p, q.sum(0), s)
        self._of_prediction = table(expected, added)

    def evaluate(self, rows: Rows) -> Tensor:
        """The predicted samples, ``(R, D)``, and their derivatives."""
        if self._stages is not None:
            return self._stages.samples(self.with_noise(rows))
        states = rows.dual
        output = self.function(self._times.numbers(rows.step), states, rows.sample)
        from_state, from_output = self._of_sample.at(rows.step)
        return torch.addcmul(from_state * states, from_output, output)

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The step maps of a window."""
        p, s, linear, expected, scale, *q = self._of_steps.at(n)
        values = linear_multistep([p], x, q, outputs, (s, noise))
        return AffineSteps(values, linear, expected_slope=expected, noise_scale=scale[..., 0])

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """Steps with the predicted noise ("output") or the predicted sample ("sample") held fixed."""
        if hold == "sample":
            a, c, s = self._towards_sample.at(n)
            c = c * source.output
        else:
            of_state, of_output = self._of_levels.at(source.step)
            epsilon = torch.addcmul(of_state[0] * source.state, of_output[0], source.output)
            a, c, blind, s = self._of_noise.at(n)
            c = c * epsilon
            if self._blind:
                c.addcmul_(blind, source.output)
        return recurrence(a, c if noise is None else c.addcmul(s, noise), start)

    def predict(self, n: Index, start: Tensor, noise: Tensor | None) -> Tensor | None:
        """Steps for data from ``N(0, sigma_data^2)``."""
        expected, s = self._of_prediction.at(n)
        c = start.new_zeros(len(n), *start.shape) if noise is None else s * noise
        return recurrence(expected, c, start)

    def increments(self, n: Index, sample: Index) -> Tensor:
        """The increments of the steps, which `_tabulate` divides by the square roots of the steps."""
        return self._brownian.increments(self._ts[n], self._ts[n + 1], torch.from_numpy(sample), self.noise_size)

    @property
    def deviation(self) -> Tensor | None:
        """The deviation of the noise that each step adds."""
        return self._coefficients.s if self.noise_size and not self.reads_noise else None

    def step_constants(self, lipschitz: Tensor, one_sided: Tensor | None) -> Tensor:
        """``|p| + |q_0| L`` for the state before the step, ``|q_i| L`` for the earlier ones."""
        if one_sided is not None:
            raise TypeError("one_sided: only of use to Euler() on an ODE; leave it out for a Denoiser.")
        if self._stages is not None:
            return super().step_constants(lipschitz, one_sided)
        earlier = torch.stack([lipschitz.roll(age) for age in range(self.memory + 1)])
        constants = self._coefficients.q.abs() * earlier
        constants[0] += self._coefficients.p.abs()
        return constants.T


def _scale(levels: NoiseLevels) -> Tensor:
    """The scale of noise in each new state, ``(N,)``: the deviation of the ancestral step that leaves it.

    The last step removes all noise; its new state gets the scale of the one before.
    """
    leaving = levels.posterior_std().roll(-1)
    leaving[-1] = 0
    last = leaving.nonzero()[-1:, 0]
    return torch.where(leaving > 0, leaving, leaving[last]) if len(last) else levels.sigma
