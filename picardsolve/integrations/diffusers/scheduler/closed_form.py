"""Closed-form tables of DDPM and DDIM, which clip their predicted sample by default."""

from typing import Any, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from picardsolve.extend import sample_map
from picardsolve.integrations.diffusers.scheduler.table import Clip, SchedulerTable

PREDICTIONS = "epsilon", "sample", "v_prediction"


def closed_form(scheduler: Any, timesteps: Tensor, extra: dict[str, Any]) -> SchedulerTable | None:
    """The table of a scheduler's steps, with further arguments ``extra`` of ``step``; None without a closed form."""
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


def _ddpm(scheduler: DDPMScheduler, timesteps: Tensor) -> SchedulerTable | None:
    kind = scheduler.config["variance_type"]
    if kind not in ("fixed_small", "fixed_large"):
        return None
    alpha_bar, t = scheduler.alphas_cumprod.double().cpu(), timesteps.long().cpu()
    before = torch.tensor(_earlier(scheduler, t.tolist()))
    now, then = alpha_bar[t], torch.where(before >= 0, alpha_bar[before.clamp(min=0)], 1.0)
    beta = 1 - now / then
    variance = beta if kind == "fixed_large" else ((1 - then) / (1 - now) * beta).clamp(min=1e-20)
    return _table(
        scheduler.config,
        now,
        x=(now / then).sqrt() * (1 - then) / (1 - now),
        o=torch.zeros_like(now),
        q=then.sqrt() * beta / (1 - now),
        s=torch.where(t > 0, variance.sqrt(), 0.0),
        noisy=t > 0,
    )


def _earlier(scheduler: DDPMScheduler, timesteps: list[int]) -> list[int]:
    """The timestep after each of these, -1 after the last: as the scheduler looks it up, but in one go."""
    own = scheduler.timesteps.long().tolist()
    after = dict(zip(reversed(own), [-1, *reversed(own[1:])], strict=True))
    earlier = [after.get(step, step) for step in timesteps]
    looked_up = [int(scheduler.previous_timestep(cast(Any, timesteps[k]))) for k in (0, -1)]
    if looked_up == [earlier[0], earlier[-1]]:
        return earlier
    return [int(scheduler.previous_timestep(cast(Any, step))) for step in timesteps]  # another version's rule


def _ddim(scheduler: DDIMScheduler, timesteps: Tensor, eta: float) -> SchedulerTable | None:
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
    return _table(
        scheduler.config,
        now,
        x=direction * (1 - now.sqrt() * c) / (1 - now).sqrt(),
        o=-direction * now.sqrt() * d / (1 - now).sqrt(),
        q=then.sqrt(),
        s=s,
        noisy=torch.full_like(t, eta > 0, dtype=torch.bool),
    )


def _table(
    config: Any, now: Tensor, x: Tensor, o: Tensor, q: Tensor, s: Tensor, noisy: Tensor
) -> SchedulerTable | None:
    maps = _sample_map(config["prediction_type"], now)
    if maps is None:
        return None
    c, d = maps
    if config["clip_sample"]:
        clip = Clip(q.numpy(), c.numpy(), d.numpy(), config["clip_sample_range"])
        return SchedulerTable(x.numpy()[:, None], o.numpy()[:, None], s.numpy(), noisy.numpy(), clip)
    return SchedulerTable((x + q * c).numpy()[:, None], (o + q * d).numpy()[:, None], s.numpy(), noisy.numpy())


def _sample_map(prediction: str, alpha_bar: Tensor) -> tuple[Tensor, Tensor] | None:
    if prediction not in PREDICTIONS:
        return None
    return sample_map(prediction, alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
