"""The diffusion steps of plans as a chain for the window."""

from collections.abc import Callable

import torch
from torch import Tensor

from picardsolve.integrations.policies.steps import PlanSteps
from picardsolve.integrators.base import DriftChain, Evaluated, Hold, Index, Rows, Steps
from picardsolve.integrators.step_maps import AffineSteps
from picardsolve.problem.recurrence import recurrence


class PlanChain(DriftChain):
    """The steps of a batch of plans; the output of a step is the predicted sample, not clipped.

    Args:
        steps: of the scheduler, for the states at hand.
        model: ``model(x, t, sample)`` of states ``(R, D)``, times ``(R,)`` and the number of each row's plan.
        noise: ``(N, B, D)`` of all steps; None where none is drawn.
    """

    def __init__(self, steps: PlanSteps, model: Callable[[Tensor, Tensor, Index], Tensor], noise: Tensor | None):
        self.length, self.memory = len(steps.timesteps), steps.order - 1
        self.noise_size = 0 if noise is None else noise.shape[-1]
        self._steps, self._model, self._noise = steps, model, noise
        self._calls = self._evaluations = 0

    def evaluate(self, rows: Rows) -> Tensor:
        """The predicted samples, ``(R, D)``."""
        self._calls += 1
        self._evaluations += len(rows.step)
        c, d, *_ = self._steps.at(rows.step)
        t = self._steps.timesteps[torch.from_numpy(rows.step)]
        return torch.addcmul(c * rows.state, d, self._model(rows.state, t, rows.sample))

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The steps of a window."""
        c, _, p, r, s, expected, *q = self._steps.at(n)
        sample = outputs[self.memory :]
        images = torch.addcmul(p * x, q[0], sample)
        for age in range(1, len(q)):
            images.addcmul_(q[age], outputs[self.memory - age : len(outputs) - age])
        slope = p + c * q[0]
        if self._steps.limit < torch.inf:
            clipped = sample.clamp(-self._steps.limit, self._steps.limit)
            images.addcmul_(r, clipped)
            slope = slope + c * r * (clipped == sample)
        if noise is not None:
            images.addcmul_(s, noise)
        return AffineSteps(images, slope, expected_slope=expected)

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """Go on towards the predicted sample, clipped: plans differ from their predictions by little."""
        _, _, p, r, s, _, *q = self._steps.at(n)
        limit = self._steps.limit
        towards = sum(q[1:], q[0]) * source.output + r * source.output.clamp(-limit, limit)
        return recurrence(p, towards if noise is None else towards.addcmul_(s, noise), start)

    def predict(self, n: Index, start: Tensor, noise: Tensor | None) -> Tensor | None:
        """Steps for plans around zero."""
        _, _, _, _, s, expected, *_ = self._steps.at(n)
        pushed = start.new_zeros(len(n), *start.shape) if noise is None else s * noise
        return recurrence(expected, pushed, start)

    def increments(self, n: Index, sample: Index) -> Tensor:
        """The noise that was drawn for them."""
        assert self._noise is not None
        return self._noise[torch.from_numpy(n), torch.from_numpy(sample)]

    def clipped(self, sample: Tensor) -> Tensor:
        """A predicted sample as the scheduler takes it."""
        return sample.clamp(-self._steps.limit, self._steps.limit)

    def counts(self) -> tuple[int, int]:
        """Model calls and evaluations so far."""
        return self._calls, self._evaluations
