"""All steps of a window at once, for the two schedulers with so many steps that one at a time costs too much.

A step of DDPM or DDIM is ``p x + o output + q clip(c x + d output) + s noise`` with numbers that depend on the step
only. Guesses and sweeps may use that; the pipeline's real steps are always the scheduler's own.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor


@dataclass(frozen=True)
class StepTable:
    """The coefficients of every step, each ``(N,)`` float64; ``clip`` is None where the sample is not clipped.

    Attributes:
        noisy: ``(N,)`` whether the step draws noise.
    """

    p: Tensor
    o: Tensor
    q: Tensor
    c: Tensor
    d: Tensor
    s: Tensor
    noisy: Tensor
    clip: float | None

    def step(self, n: slice, output: Tensor, x: Tensor, noise: Tensor | None) -> Tensor:
        """Steps ``n`` of the states ``x``, shape ``(W, B, D)``."""
        p, o, q, c, d, s = (v[n, None, None].to(x) for v in (self.p, self.o, self.q, self.c, self.d, self.s))
        sample = torch.addcmul(c * x, d, output)
        if self.clip is not None:
            sample = sample.clamp(-self.clip, self.clip)
        image = (p * x).addcmul_(o, output).addcmul_(q, sample)
        return image if noise is None else image.addcmul_(s, noise)


def step_table(scheduler: Any, timesteps: Tensor, extra: dict[str, Any]) -> StepTable | None:
    """The table of a scheduler's steps, or None where there is none.

    Args:
        scheduler: with its timesteps set.
        timesteps: ``(N,)`` those to step through.
        extra: arguments of ``step`` beyond the usual three.
    """
    config, given = scheduler.config, {key for key, value in extra.items() if value is not None}
    if getattr(config, "thresholding", True):
        return None
    if type(scheduler) is DDPMScheduler and given <= {"generator"}:
        return _ddpm(scheduler, timesteps)
    if type(scheduler) is DDIMScheduler and given <= {"generator", "eta", "use_clipped_model_output"}:
        if extra.get("use_clipped_model_output"):
            return None
        return _ddim(scheduler, timesteps, float(extra.get("eta") or 0))
    return None


def _ddpm(scheduler: DDPMScheduler, timesteps: Tensor) -> StepTable | None:
    kind = scheduler.config["variance_type"]
    if kind not in ("fixed_small", "fixed_large"):
        return None
    alpha_bar, t = scheduler.alphas_cumprod.double().cpu(), timesteps.long().cpu()
    earlier = [torch.as_tensor(scheduler.previous_timestep(cast(Any, step))) for step in timesteps]
    before = torch.stack(earlier).long().cpu()
    now, then = alpha_bar[t], torch.where(before >= 0, alpha_bar[before.clamp(min=0)], 1.0)
    beta = 1 - now / then
    maps = _sample_map(scheduler.config["prediction_type"], now)
    if maps is None:
        return None
    variance = beta if kind == "fixed_large" else ((1 - then) / (1 - now) * beta).clamp(min=1e-20)
    return StepTable(
        p=(now / then).sqrt() * (1 - then) / (1 - now),
        o=torch.zeros_like(now),
        q=then.sqrt() * beta / (1 - now),
        c=maps[0],
        d=maps[1],
        s=torch.where(t > 0, variance.sqrt(), 0.0),
        noisy=t > 0,
        clip=scheduler.config["clip_sample_range"] if scheduler.config["clip_sample"] else None,
    )


def _ddim(scheduler: DDIMScheduler, timesteps: Tensor, eta: float) -> StepTable | None:
    alpha_bar, t = scheduler.alphas_cumprod.double().cpu(), timesteps.long().cpu()
    before = t - scheduler.config["num_train_timesteps"] // scheduler.num_inference_steps
    now = alpha_bar[t]
    then = torch.where(before >= 0, alpha_bar[before.clamp(min=0)], float(scheduler.final_alpha_cumprod))
    maps = _sample_map(scheduler.config["prediction_type"], now)
    if maps is None:
        return None
    s = eta * ((1 - then) / (1 - now) * (1 - now / then)).clamp(min=0).sqrt()
    direction = (1 - then - s**2).clamp(min=0).sqrt()
    c, d = maps
    # the predicted noise is (x - sqrt(now) sample) / sqrt(1 - now), before clipping
    return StepTable(
        p=direction * (1 - now.sqrt() * c) / (1 - now).sqrt(),
        o=-direction * now.sqrt() * d / (1 - now).sqrt(),
        q=then.sqrt(),
        c=c,
        d=d,
        s=s,
        noisy=torch.full_like(t, eta > 0, dtype=torch.bool),
        clip=scheduler.config["clip_sample_range"] if scheduler.config["clip_sample"] else None,
    )


def _sample_map(prediction: str, alpha_bar: Tensor) -> tuple[Tensor, Tensor] | None:
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    maps = {
        "epsilon": (1 / alpha, -sigma / alpha),
        "sample": (torch.zeros_like(alpha), torch.ones_like(alpha)),
        "v_prediction": (alpha, -sigma),
    }
    return maps.get(prediction)
