"""The steps of a diffusers scheduler or of a velocity field, as sums over predicted samples."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from picardsolve.extend import Index, sample_map
from picardsolve.integrations.diffusers.scheduler.closed_form import PREDICTIONS, closed_form
from picardsolve.integrations.diffusers.scheduler.copied_steps import copy_of
from picardsolve.integrations.diffusers.scheduler.probe import Probe
from picardsolve.integrations.diffusers.scheduler.table import SchedulerTable
from picardsolve.integrations.policies.flow import FLOW_SCHEDULERS, Flow, FlowMatching, Stages

_LINEAR = DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler
_ROUNDING = 1e-4  # of coefficients, relative to what cancels in them


@dataclass(frozen=True)
class PlanSteps:
    """``x' = p x + q_0 D_n + q_1 D_{n-1} + ... + r clip(D_n) + s z``, with ``D_n = c x + d output``.

    Attributes:
        timesteps: ``(N,)`` what the model is given, as the scheduler has them.
        end: what stands behind the last of these.
        noisy: ``(N,)`` whether a step draws noise.
        noise_dtype: dtype that the noise is drawn in; None for that of the output.
        limit: largest absolute value that the clip leaves; infinite where nothing is clipped.
        order: number of predicted samples that a step reads.
        levels: ``(N, 2)`` float64: c and d.
        table: ``(N, 6 + order)`` float64: p, r, s, the slope that steps are expected to have, their slope where the
            sample is clipped and where it is not, and the q.
        stages: the further model calls of a step, whose output is then their slope; None for one call a step.
    """

    timesteps: Tensor
    end: float
    noisy: np.ndarray
    noise_dtype: torch.dtype | None
    limit: float
    order: int
    levels: Tensor
    table: Tensor
    stages: Stages | None = None

    @staticmethod
    def of(scheduler: Any, spread: float) -> "PlanSteps":
        """Read a scheduler whose timesteps are set.

        Args:
            scheduler: a scheduler of diffusers, or a `FlowMatching`.
            spread: standard deviation that predicted samples are expected to have, given the observation. The expected
                slopes follow from it: it changes the number of rounds, never the answer.

        Raises:
            TypeError: the scheduler is none of those that policies use.
            ValueError: its timesteps are not set, or its steps are not of this form.
        """
        if type(scheduler) not in (*_LINEAR, *FLOW_SCHEDULERS, FlowMatching):
            raise TypeError(
                "scheduler: expected a DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler or a flow matching "
                f"scheduler of diffusers, or FlowMatching(ts), got {type(scheduler).__name__}; pass one of these, or "
                "use picardsolve.integrations.diffusers.denoise."
            )
        if type(scheduler) is not FlowMatching and scheduler.num_inference_steps is None:
            raise ValueError("scheduler: expected one whose timesteps are set; call its set_timesteps(...) before.")
        flow = Flow.of(scheduler)
        return _of_scheduler(scheduler, spread) if flow is None else _of_flow(flow, spread)

    @property
    def calls(self) -> int:
        """Model calls that follow each other in a step."""
        return 1 if self.stages is None else len(self.stages.weights)

    @cached_property
    def numbers(self) -> list[list[float]]:
        """For each step c, d, p, r, s and the q."""
        return torch.cat([self.levels, self.table[:, :3], self.table[:, 6:]], 1).tolist()

    def to(self, like: Tensor) -> "PlanSteps":
        """The same steps in the dtype and on the device of some states."""
        device, levels, table = like.device, self.levels.to(like), self.table.to(like)
        timesteps, stages = self.timesteps.to(device), None if self.stages is None else self.stages.to(like)
        if timesteps.is_floating_point():
            timesteps = timesteps.to(torch.promote_types(like.dtype, torch.float32))
        return replace(self, timesteps=timesteps, levels=levels, table=table, stages=stages)

    def predicted(self, n: Index, x: Tensor, model: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The samples that ``model(x, t)`` predicts from states ``(R, D)`` at steps ``(R,)``."""
        steps = torch.from_numpy(n).to(self.levels.device)
        c, d = self.levels.index_select(0, steps).split(1, 1)
        output = model(x, self.timesteps.index_select(0, steps))
        if self.stages is not None:
            output = self.stages.slopes(model, steps, x, output)
        return torch.addcmul(c * x, d, output)

    def at(self, n: Index) -> tuple[Tensor, ...]:
        """Columns of the table at steps ``n``, each of shape ``(*n.shape, 1)``."""
        rows = self.table.index_select(0, torch.from_numpy(n.ravel()).to(self.table.device))
        return rows.reshape(*n.shape, 1, -1).unbind(-1)


def _of_scheduler(scheduler: Any, spread: float) -> PlanSteps:
    timesteps = scheduler.timesteps.cpu()
    steps, alpha, sigma = _linear_steps(scheduler, timesteps), *_levels(scheduler, timesteps)
    kind = scheduler.config["prediction_type"]
    if steps is None or kind not in PREDICTIONS:
        raise ValueError(
            "scheduler: expected steps that are linear but for a clipped sample, got the configuration "
            f"{dict(scheduler.config)}; leave out thresholding, learned variances and the like."
        )
    c, d = sample_map(kind, alpha, sigma)
    x, o, clip = torch.from_numpy(steps.x), torch.from_numpy(steps.o), steps.clip
    q = [o[:, k] / _earlier(d, k) for k in range(steps.lags + 1)]
    for k in range(1, len(q)):
        if not torch.allclose(x[:, k], q[k] * _earlier(c, k), _ROUNDING, _ROUNDING):
            raise ValueError(
                "scheduler: expected steps that remember predicted samples, got the algorithm "
                f"{scheduler.config['algorithm_type']!r}; pass algorithm_type='dpmsolver++' or 'sde-dpmsolver++'."
            )
    r = torch.zeros_like(c) if clip is None else torch.from_numpy(clip.q)
    p, gain = x[:, 0] - q[0] * c, alpha / (alpha**2 + (sigma / spread) ** 2) if spread else torch.zeros_like(alpha)
    expected = p + (r + sum(q)) * gain
    slope = p + c * q[0]
    table = torch.stack([p, r, torch.from_numpy(steps.s), expected, slope, slope + c * r, *q], 1)
    limit = torch.inf if clip is None else clip.limit
    return PlanSteps(timesteps, -1.0, steps.noisy, steps.noise_dtype, limit, len(q), torch.stack([c, d], 1), table)


def _of_flow(flow: Flow, spread: float) -> PlanSteps:
    start, end = (1 - flow.ts if flow.rises else flow.ts).unfold(0, 2, 1).unbind(1)  # noise levels
    zero, one = torch.zeros_like(start), torch.ones_like(start)
    p, q, s = (zero, 1 - end, end) if flow.renewed else (end / start, 1 - end / start, zero)
    gain = (1 - start) / ((1 - start) ** 2 + (start / spread) ** 2) if spread else zero
    levels = torch.stack([one, start if flow.rises else -start], 1)  # the plan is x + (1 - t) v or x - t v
    table = torch.stack([p, zero, s, p + q * gain, p + q, p + q, q], 1)
    noisy, drawn_in = np.full(len(start), flow.renewed), torch.float32 if flow.renewed else None
    return PlanSteps(flow.timesteps, flow.end, noisy, drawn_in, torch.inf, 1, levels, table, flow.stages)


def _linear_steps(scheduler: Any, timesteps: Tensor) -> SchedulerTable | None:
    """The steps as sums over states and outputs; None where they are not linear."""
    extra: dict[str, Any] = {"generator": None}
    if type(scheduler) is not DPMSolverMultistepScheduler:
        return closed_form(scheduler, timesteps, extra)
    fresh = copy_of(scheduler, scheduler.timesteps)  # the scheduler may have been stepped before
    fresh._step_index, fresh.lower_order_nums = None, 0
    fresh.model_outputs = [None] * scheduler.config["solver_order"]
    probe = Probe(fresh, timesteps, scheduler.timesteps, extra)
    return probe.table if probe.reach(len(timesteps)) else None


def _levels(scheduler: Any, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise level of the state that each step starts from, ``(N,)`` float64 both."""
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        ratio = scheduler.sigmas[: len(timesteps)].double().cpu()
        alpha = (1 + ratio**2).rsqrt()
        return alpha, ratio * alpha
    alpha_bar = scheduler.alphas_cumprod.double().cpu()[timesteps]
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def _earlier(values: Tensor, steps: int) -> Tensor:
    """For each step the value that many steps before it, 1 where there is none."""
    return torch.cat([values.new_ones(steps), values])[: len(values)]
