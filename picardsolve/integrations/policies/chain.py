"""The diffusion steps of plans as a chain for the window, and the guess that starts from an expected plan."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picardsolve import FrozenSample, Guess
from picardsolve.extend import (
    AffineSteps,
    DriftChain,
    Entering,
    Evaluated,
    Hold,
    Index,
    Rows,
    Steps,
    linear_multistep,
    recurrence,
)
from picardsolve.integrations.policies.steps import PlanSteps


class PlanChain(DriftChain):
    """The steps of a batch of plans. The output of a step is the predicted sample, not clipped.

    Args:
        steps: the scheduler's steps, in the dtype and on the device of the states.
        model: ``model(x, t, sample)`` with states ``(R, D)``, times ``(R,)`` and the number of each row's plan; None:
            one row for each plan.
        noise: ``(N, B, D)`` noise of all steps; None where none is drawn.
        held: ``(B, D)`` booleans and values: numbers of plans that are put in place before every step and after the
            last one. None: none.
    """

    def __init__(
        self,
        steps: PlanSteps,
        model: Callable[[Tensor, Tensor, Index | None], Tensor],
        x: Tensor,
        noise: Tensor | None,
        held: tuple[Tensor, Tensor] | None = None,
    ):
        self.length, self.memory, self.rounds = len(steps.timesteps), steps.order - 1, steps.calls
        self.noise_size = 0 if noise is None else noise.shape[-1]
        self._steps, self._model, self._noise, self._held = steps, model, noise, held
        self._plans, self._calls, self._evaluations = len(x), 0, 0
        self._latest: tuple[Index, Tensor] = np.arange(len(x)), x

    def evaluate(self, rows: Rows) -> Tensor:
        """The predicted samples, ``(R, D)``."""

        def model(x: Tensor, t: Tensor) -> Tensor:
            self._calls += 1
            self._evaluations += len(x)
            return self._model(x, t, rows.sample)

        samples = self._steps.predicted(rows.step, rows.state, model)
        self._latest = rows.sample, samples
        return samples

    def predicted(self) -> Tensor:
        """The sample that each plan's furthest row predicted in the last round, ``(B, D)``, clipped as in a step.

        A plan that had ended before has any value.
        """
        sample, samples = self._latest
        rows = np.zeros(self._plans, dtype=np.int64)
        np.maximum.at(rows, sample, np.arange(len(sample)))
        return self.with_held(self._clipped(samples[torch.from_numpy(rows)]))

    def one_by_one(self, x: Tensor, numbers: list[list[float]]) -> Tensor:
        """All states ``(N + 1, B, D)``, one step after the other: the sequential plans.

        Args:
            x: ``(B, D)`` the first states.
            numbers: see `PlanSteps.numbers`.
        """
        path, earlier = x.new_empty(self.length + 1, *x.shape), []
        path[0] = x
        times = self._steps.timesteps[:, None].expand(-1, len(x))
        for n, (c, d, p, r, s, *q) in enumerate(numbers):
            x = path[n]
            earlier = [torch.add(c * x, self._model(x, times[n], None), alpha=d), *earlier[: self.memory]]
            y = torch.mul(x, p, out=path[n + 1])
            for weight, sample in zip(q, earlier, strict=False):
                if weight:
                    y.add_(sample, alpha=weight)
            if r:
                y.add_(self._clipped(earlier[0]), alpha=r)
            if s and self._noise is not None:
                y.add_(self._noise[n], alpha=s)
            if self._held is not None:
                y.copy_(self.with_held(y))
        self._calls += self.length
        self._evaluations += path[1:, :, 0].numel()
        return path

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The step maps of a window."""
        p, r, s, expected, slope, inside, *q = self._steps.at(n)
        sample, clipped = outputs[self.memory :], None
        if self._steps.limit < torch.inf:
            clipped = self._clipped(sample)
            slope = torch.where(clipped == sample, inside, slope)
        values = self.with_held(linear_multistep([p], x, q, outputs, (r, clipped), (s, noise)))
        return AffineSteps(values=values, factor=slope, expected_slope=expected)

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """Go on towards the predicted sample, whatever ``hold`` says: a plan differs little from its prediction."""
        p, r, s, _, _, _, *q = self._steps.at(n)
        towards = sum(q[1:], q[0]) * source.output + r * self._clipped(source.output)
        return self.with_held(recurrence(p, towards if noise is None else towards.addcmul_(s, noise), start))

    def predict(self, n: Index, start: Tensor, noise: Tensor | None) -> Tensor | None:
        """Go on as if plans were normally distributed around zero."""
        _, _, s, expected, *_ = self._steps.at(n)
        pushed = start.new_zeros(len(n), *start.shape) if noise is None else s * noise
        return self.with_held(recurrence(expected, pushed, start))

    def increments(self, n: Index, sample: Index) -> Tensor:
        """The noise of steps ``n`` of plans ``sample``."""
        assert self._noise is not None
        return self._noise[torch.from_numpy(n), torch.from_numpy(sample)]

    def counts(self) -> tuple[int, int]:
        """Model calls and evaluations so far."""
        return self._calls, self._evaluations

    def with_held(self, states: Tensor) -> Tensor:
        """States ``(..., B, D)`` with the numbers that are held in their places."""
        return states if self._held is None else torch.where(self._held[0], self._held[1], states)

    def _clipped(self, sample: Tensor) -> Tensor:
        return sample.clamp(-self._steps.limit, self._steps.limit)


@dataclass(frozen=True)
class TowardsPlan(Guess):
    """States start on the way from the first one to an expected plan, with the noise that is known.

    Attributes:
        plan: ``(B, D)`` the expected plans.
        expected: ``(B,)`` booleans: whether there is an expected plan; without one, states start as `FrozenSample` has
            them. None: there is one for all.
    """

    plan: Tensor
    expected: Tensor | None = None

    def first(self, entering: Entering) -> Tensor | None:
        """The way to the expected plan."""
        way, without = self._way(entering, self.plan), FrozenSample().first(entering)
        if self.expected is None or without is None:
            return way
        return torch.where(self.expected[:, None], way, without)

    def ahead(self, entering: Entering) -> Tensor:
        """The way to the last predicted sample."""
        assert entering.source is not None
        return self._way(entering, entering.source.output)

    @staticmethod
    def _way(entering: Entering, plan: Tensor) -> Tensor:
        source = Evaluated(entering.n[:1], entering.start, plan)
        return entering.chain.extend(entering.n, "sample", entering.start, source, entering.noise)
