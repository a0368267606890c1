"""The network calls of a step along the probability flow of a denoiser, ``dx/dt = alpha' D + sigma' epsilon``."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from picardsolve.integrators.base import Rows
from picardsolve.integrators.step_table import StepTable, Times
from picardsolve.integrators.tableau import Tableau, nodes
from picardsolve.problem.denoiser import Denoiser, noise_map
from picardsolve.problem.problem import Problem
from picardsolve.problem.row_function import RowFunction


@dataclass(frozen=True)
class FlowStages:
    """Numbers of all steps, float64: stage i has the slope ``v_i = own_i y_i + given_i output_i``.

    A step adds noise first, ``x + churn z``, and then ``h sum_i weights_i v_i``, with ``y_i = x + sum_j inner_ij v_j``.

    Attributes:
        times: ``(S, N)`` what the network is called at.
        own: ``(S, N)``.
        given: ``(S, N)``.
        expected: ``(S, N)``, slopes as a multiple of the state for data from ``N(0, sigma_data^2)``.
        inner: ``(S, S, N)``.
        weights: ``(S, N)``.
        h: ``(N,)``.
        churn: ``(N,)``.
    """

    times: Tensor
    own: Tensor
    given: Tensor
    expected: Tensor
    inner: Tensor
    weights: Tensor
    h: Tensor
    churn: Tensor

    @staticmethod
    def of(
        term: Denoiser, start: Tensor, end: Tensor, tableau: Tableau, churn: Tensor | None, scale: float
    ) -> "FlowStages":
        """Those of a Runge-Kutta method.

        Where no noise is left at the end, only a velocity is evaluated there. Other predictions take Euler's step, as
        does every step with churn (Karras et al. 2022, algorithms 1 and 2).

        Args:
            term: the denoiser.
            start: ``(N,)`` times at which steps start.
            end: ``(N,)`` times at which they end.
            tableau: of the method.
            churn: ``(N,)``; None for none.
            scale: factor of every step.
        """
        a, b = tableau
        into, h = torch.tensor(nodes(tableau)).double()[:, None], scale * (end - start)
        inner, weights = h.new_zeros(len(b), len(b), len(h)), h.new_tensor(b)[:, None].repeat(1, len(h))
        for row, row_weights in zip(inner[1:], a, strict=True):
            row[: len(row_weights)] = h.new_tensor(row_weights)[:, None] * h
        times = start + into * (end - start)
        alone = (term.schedule.sigma(times) == 0).any(0)
        if term.prediction == "flow" and churn is None:
            alone &= ~torch.stack(term.schedule.rates(times)).isfinite().all(0).all(0)
        if bool(alone.any()):
            times = torch.where(alone, start, times)
            inner = torch.where(alone, 0.0, inner)
            weights = torch.where(alone, torch.eye(len(b), 1).double(), weights)
        alpha, sigma = term.schedule.alpha(times), term.schedule.sigma(times)
        of_sample, of_noise = term.schedule.rates(times)
        (c, d), (e, f) = term.sample_map(alpha, sigma), noise_map(term.prediction, alpha, sigma)
        variance = term.sigma_data**2
        expected = (of_sample * alpha * variance + of_noise * sigma) / (alpha**2 * variance + sigma**2)
        own, given = of_sample * c + of_noise * e, of_sample * d + of_noise * f
        return FlowStages(
            times, own, given, expected, inner, weights, h, torch.zeros_like(h) if churn is None else churn
        )

    @property
    def count(self) -> int:
        """Network calls that follow each other."""
        return len(self.times)

    def slopes(self, own: Tensor) -> Tensor:
        """How a step scales its state where the slopes are ``own_i y_i``, ``(N,)``."""
        found = torch.zeros_like(own)
        for i in range(self.count):
            found[i] = own[i] * (1 + (self.inner[i] * found).sum(0))
        return 1 + self.h * (self.weights * found).sum(0)


class StageCalls:
    """Calls the network in the stages of steps.

    Args:
        problem: what is solved.
        function: its network.
        stages: of its steps.
        p: ``(N,)``, how a step scales its state with the predicted sample held fixed.
        q: ``(N,)``, the weight of the predicted sample.
    """

    def __init__(self, problem: Problem, function: RowFunction, stages: FlowStages, p: Tensor, q: Tensor):
        self._function, self._count = function, stages.count
        self._used = (stages.inner != 0).any(-1).tolist()
        self._times = Times(stages.times, function)
        to_sample = [stages.h / q, (1 - p) / q]  # D of x' = x + h v = p x + q D
        columns = [stages.own, stages.given, stages.weights, stages.inner.flatten(0, 1), torch.stack(to_sample)]
        self._table = StepTable(torch.cat(columns), problem.layout)
        increments = stages.churn / problem.ts.diff().abs().sqrt()
        self._churn = StepTable(increments, problem.layout) if bool((increments > 0).any()) else None

    def samples(self, rows: Rows) -> Tensor:
        """The samples with which Euler's step would lead where the stages lead, ``(R, D)``, and their derivatives."""
        if self._churn is not None:
            assert rows.noise is not None
            noise = rows.noise.to(rows.state)
            rows = replace(rows, state=torch.addcmul(rows.state, self._churn.at(rows.step), noise))
        x, times, count = rows.dual, self._times.numbers(rows.step), self._count
        own, given, weights, inner, ends = self._table.at(rows.step).split([count, count, count, count**2, 2])
        slopes: list[Tensor] = []
        total = torch.zeros_like(x)
        for i in range(count):
            y = x
            for j, slope in enumerate(slopes):
                if self._used[i][j]:
                    y = torch.addcmul(y, inner[count * i + j], slope)
            output = self._function(times[i], y, rows.sample)
            slopes.append(torch.addcmul(own[i] * y, given[i], output))
            total.addcmul_(weights[i], slopes[i])
        return torch.addcmul(ends[0] * total, ends[1], x)
