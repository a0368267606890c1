"""The steps of a diffusers scheduler, as sums over predicted samples."""

from dataclasses import dataclass, replace
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

_ROUNDING = 1e-4  # of coefficients, relative to what cancels in them


@dataclass(frozen=True)
class PlanSteps:
    """``x' = p x + q_0 D_n + q_1 D_{n-1} + ... + r clip(D_n) + s z``, with ``D_n = c x + d output``.

    Attributes:
        timesteps: ``(N,)`` what the model is given, as the scheduler has them.
        noisy: ``(N,)`` whether a step draws noise.
        noise_dtype: dtype that the noise is drawn in; None for that of the output.
        limit: largest absolute value that the clip leaves; infinite where nothing is clipped.
        order: number of predicted samples that a step reads.
        levels: ``(N, 2)`` float64: c and d.
        table: ``(N, 6 + order)`` float64: p, r, s, the slope that steps are expected to have, their slope where the
            sample is clipped and where it is not, and the q.
    """

    timesteps: Tensor
    noisy: np.ndarray
    noise_dtype: torch.dtype | None
    limit: float
    order: int
    levels: Tensor
    table: Tensor

    @staticmethod
    def of(scheduler: Any, spread: float) -> "PlanSteps":
        """Read a scheduler whose timesteps are set.

        Args:
            scheduler: a scheduler of diffusers.
            spread: standard deviation that predicted samples are expected to have, given the observation. The expected
                slopes follow from it: it changes the number of rounds, never the answer.

        Raises:
            TypeError: the scheduler is none of those that policies use.
            ValueError: its timesteps are not set, or its steps are not of this form.
        """
        kinds = DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler
        if type(scheduler) not in kinds:
            raise TypeError(
                "scheduler: expected a DDPMScheduler, DDIMScheduler or DPMSolverMultistepScheduler of diffusers, got "
                f"{type(scheduler).__name__}; pass one of these, or use picardsolve.integrations.diffusers.denoise."
            )
        if scheduler.num_inference_steps is None:
            raise ValueError("scheduler: expected one whose timesteps are set; call its set_timesteps(...) before.")
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
        return PlanSteps(timesteps, steps.noisy, steps.noise_dtype, limit, len(q), torch.stack([c, d], 1), table)

    def to(self, like: Tensor) -> "PlanSteps":
        """The same steps in the dtype and on the device of some states."""
        device, levels, table = like.device, self.levels.to(like), self.table.to(like)
        return replace(self, timesteps=self.timesteps.to(device), levels=levels, table=table)

    def to_predict(self, n: Index) -> tuple[Tensor, Tensor, Tensor]:
        """For rows at steps ``n``, ``(R,)``: c and d, of shape ``(R, 1)``, and the timesteps."""
        steps = torch.from_numpy(n).to(self.levels.device)
        c, d = self.levels.index_select(0, steps).split(1, 1)
        return c, d, self.timesteps.index_select(0, steps)

    def at(self, n: Index) -> tuple[Tensor, ...]:
        """Columns of the table at steps ``n``, each of shape ``(*n.shape, 1)``."""
        rows = self.table.index_select(0, torch.from_numpy(n.ravel()).to(self.table.device))
        return rows.reshape(*n.shape, 1, -1).unbind(-1)


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
