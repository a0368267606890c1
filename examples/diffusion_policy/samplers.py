"""What a policy is held against: the scheduler's own loop, and one that is as lean as it can be by hand."""

from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from network import ACTION, DIFFUSION_STEPS, HORIZON, PlanDenoiser
from torch import Tensor

from picardsolve.integrations.policies.steps import PlanSteps

SAMPLERS = "ddpm-100", "ddim-15", "dpm-solver++-15"


def scheduler_of(name: str) -> Any:
    """A scheduler of diffusers as Diffusion Policy configures it, its timesteps set."""
    kind, _, steps = name.rpartition("-")
    common: dict[str, Any] = {"num_train_timesteps": DIFFUSION_STEPS, "beta_schedule": "squaredcos_cap_v2"}
    kinds = {
        "ddpm": lambda: DDPMScheduler(**common, clip_sample=True),
        "ddim": lambda: DDIMScheduler(**common, clip_sample=True),
        # has no clip; the bound of the log-SNR is what diffusers asks for with cosine noise
        "dpm-solver++": lambda: DPMSolverMultistepScheduler(**common, lambda_min_clipped=-5.1),
    }
    scheduler = kinds[kind]()
    scheduler.set_timesteps(int(steps))
    return scheduler


@torch.no_grad()
def diffusers_loop(net: PlanDenoiser, scheduler: Any, observation: Tensor, generator: torch.Generator) -> Tensor:
    """The loop of every example of diffusers; ``observation`` is ``(1, 2, 39)``, the plan ``(1, 16, 4)``."""
    scheduler.set_timesteps(len(scheduler.timesteps))
    random = {} if isinstance(scheduler, DDIMScheduler) else {"generator": generator}
    x = torch.randn(1, HORIZON, ACTION, generator=generator)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t[None], observation), t, x, **random).prev_sample
    return x


class LeanLoop:
    """The same steps without a scheduler: numbers that are known before, memory that is kept, no gradients at all.

    Args:
        net: the denoiser.
        scheduler: of which the steps are read, once.
        generators: one for each plan of a batch, drawn from as `diffusers_loop` draws from its own.
    """

    def __init__(self, net: PlanDenoiser, scheduler: Any, generators: list[torch.Generator]):
        steps = PlanSteps.of(scheduler, spread=0.0)
        self._net, self._generators, self._limit = net, generators, steps.limit
        shape = len(generators), HORIZON, ACTION
        self._noise = torch.zeros(len(steps.timesteps), *shape)
        self._noisy = steps.noisy.nonzero()[0].tolist()
        self._times = [t.expand(len(generators)) for t in steps.timesteps]
        self._rows = [(*a, *b[:3], *b[6:]) for a, b in zip(steps.levels.tolist(), steps.table.tolist(), strict=True)]
        self._x, self._sample, self._earlier = torch.empty(shape), torch.zeros(shape), torch.zeros(shape)

    @torch.inference_mode()
    def plan(self, observations: Tensor) -> Tensor:
        """Plans ``(B, 16, 4)`` for observations ``(B, 2, 39)``."""
        x, sample, earlier, noise = self._x, self._sample, self._earlier, self._noise
        self._draw()
        for n, (c, d, p, r, s, q, *lagged) in enumerate(self._rows):
            torch.mul(x, c, out=sample).add_(self._net(x, self._times[n], observations), alpha=d)
            x.mul_(p)
            if q:
                x.add_(sample, alpha=q)
            if lagged:
                x.add_(earlier, alpha=lagged[0])
                earlier.copy_(sample)
            if r:
                x.add_(sample.clamp_(-self._limit, self._limit), alpha=r)
            if s:
                x.add_(noise[n], alpha=s)
        return x.clone()

    def _draw(self) -> None:
        for b, generator in enumerate(self._generators):
            torch.randn(1, HORIZON, ACTION, generator=generator, out=self._x[b : b + 1])
            for n in self._noisy:
                torch.randn(1, HORIZON, ACTION, generator=generator, out=self._noise[n, b : b + 1])
