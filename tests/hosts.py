"""Policies with the interface of lerobot's and of diffusion_policy's, small, and written for these tests.

Their sampling loops take the arguments, draw the numbers and call the schedulers as those of lerobot 0.4.4 and of
diffusion_policy do; their networks are small. `lerobot`'s own classes are tested where it is installed.
"""

from collections import deque
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

HORIZON, ACTION, SEEN, OBSERVED = 8, 2, 2, 3  # actions planned, their size, observations read, their size


def scheduler_of(kind: str, **given: Any) -> Any:
    """A scheduler as these policies configure it."""
    kinds = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler}
    return kinds[kind](60, beta_schedule="squaredcos_cap_v2", **{"clip_sample": True, **given})


class Network(nn.Module):
    """Noise, samples or velocities from a plan, a time, and whatever conditions a policy names."""

    def __init__(self, width: int = ACTION, conditions: int = SEEN * OBSERVED):
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.calls = 0
        self.inner = nn.Parameter(0.5 * torch.randn(HORIZON * width, HORIZON * width, generator=g) / HORIZON**0.5)
        self.outer = nn.Parameter(torch.randn(conditions, HORIZON * width, generator=g) / conditions**0.5)
        self.dropout = nn.Dropout(0.5)

    def forward(
        self, sample: Tensor, timestep: Any, local_cond=None, global_cond=None, conditioning_vec=None
    ) -> Tensor:
        """The shape of ``sample``."""
        self.calls += 1
        time = torch.as_tensor(timestep, device=sample.device).expand(len(sample))[:, None].to(sample)
        given = [part.flatten(1) for part in (local_cond, global_cond, conditioning_vec) if part is not None]
        seen = torch.cat(given, 1) @ self.outer if given else 0.0
        return self.dropout(torch.tanh(sample.flatten(1) @ self.inner + seen + torch.sin(time / 20))).view(sample.shape)


class _Queued(nn.Module):
    """The queues of lerobot's policies: observations that are stacked, actions that are handed out."""

    def __init__(self, executed: int):
        super().__init__()
        self.config = SimpleNamespace(
            horizon=HORIZON, n_obs_steps=SEEN, n_action_steps=executed, action_feature=SimpleNamespace(shape=(ACTION,))
        )
        self.reset()

    def reset(self) -> None:
        """Empty the queues."""
        self._seen, self._actions = deque(maxlen=SEEN), deque(maxlen=self.config.n_action_steps)

    @torch.no_grad()
    def select_action(self, observation: Tensor) -> Tensor:
        """The next actions ``(B, 2)`` for observations ``(B, 3)``."""
        self._seen.extend([observation] * (SEEN if not self._seen else 1))
        if not self._actions:
            self._actions.extend(self.predict_action_chunk().transpose(0, 1))
        return self._actions.popleft()

    @torch.no_grad()
    def predict_action_chunk(self) -> Tensor:
        """The actions of a plan that are executed."""
        seen = torch.stack(list(self._seen), 1).flatten(1)
        return self._planned(seen)[:, SEEN - 1 : SEEN - 1 + self.config.n_action_steps]

    def _planned(self, seen: Tensor) -> Tensor:
        raise NotImplementedError


class _DiffusionModel(nn.Module):
    """lerobot's `DiffusionModel`."""

    def __init__(self, config: Any, scheduler: Any, steps: int):
        super().__init__()
        self.config, self.unet = config, Network()
        self.noise_scheduler, self.num_inference_steps = scheduler, steps

    def conditional_sample(self, batch_size, global_cond=None, generator=None, noise=None):
        """Plans ``(B, 8, 2)``."""
        dtype = next(self.parameters()).dtype
        shape = batch_size, self.config.horizon, self.config.action_feature.shape[0]
        x = torch.randn(shape, dtype=dtype, generator=generator) if noise is None else noise
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            out = self.unet(x, torch.full((len(x),), int(t)), global_cond=global_cond)
            x = self.noise_scheduler.step(out, t, x, generator=generator).prev_sample
        return x


class DiffusionPolicy(_Queued):
    """lerobot's `DiffusionPolicy`."""

    def __init__(self, kind: str = "DDPM", steps: int = 30, executed: int = 4, **given: Any):
        super().__init__(executed)
        self.diffusion = _DiffusionModel(self.config, scheduler_of(kind, **given), steps)
        self.network = self.diffusion.unet

    def _planned(self, seen: Tensor) -> Tensor:
        return self.diffusion.conditional_sample(len(seen), global_cond=seen)


class _DiffusionObjective:
    """Of lerobot's `MultiTaskDiTPolicy`."""

    horizon, action_dim = HORIZON, ACTION

    def __init__(self, scheduler: Any, steps: int):
        self.noise_scheduler, self.num_inference_steps = scheduler, steps

    def conditional_sample(self, model, batch_size, conditioning_vec):
        """Plans ``(B, 8, 2)``."""
        x = torch.randn(batch_size, self.horizon, self.action_dim, dtype=next(model.parameters()).dtype)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            out = model(x, torch.full((len(x),), int(t)), conditioning_vec=conditioning_vec)
            x = self.noise_scheduler.step(out, t, x).prev_sample
        return x


class _FlowObjective:
    """Of lerobot's `MultiTaskDiTPolicy`: noise at t = 0."""

    horizon, action_dim = HORIZON, ACTION

    def __init__(self, steps: int, method: str):
        self.config = SimpleNamespace(num_integration_steps=steps, integration_method=method)

    def conditional_sample(self, model, batch_size, conditioning_vec):
        """Plans ``(B, 8, 2)``."""
        x = torch.randn(batch_size, self.horizon, self.action_dim, dtype=next(model.parameters()).dtype)
        times = torch.linspace(0, 1, self.config.num_integration_steps + 1)

        def v(y: Tensor, t: float) -> Tensor:
            return model(y, torch.full((len(y),), t, dtype=y.dtype), conditioning_vec=conditioning_vec)

        for t, h in zip(times[:-1].tolist(), times.diff().tolist(), strict=True):
            first = v(x, t)
            if self.config.integration_method == "euler":
                x = x + h * first
                continue
            second = v(x + h / 2 * first, t + h / 2)
            third = v(x + h / 2 * second, t + h / 2)
            x = x + h / 6 * (first + 2 * second + 2 * third + v(x + h * third, t + h))
        return x


class MultiTaskDiTPolicy(_Queued):
    """lerobot's, whose objective may be the scheduler of diffusion or the method of a flow."""

    def __init__(self, kind: str = "euler", steps: int = 30, executed: int = 4, **given: Any):
        super().__init__(executed)
        self.network = self.noise_predictor = Network()
        diffuses = kind in ("DDPM", "DDIM")
        self.config.num_integration_steps = steps  # there is one configuration for both objectives
        made = _DiffusionObjective(scheduler_of(kind, **given), steps) if diffuses else _FlowObjective(steps, kind)
        self.objective = made

    def _planned(self, seen: Tensor) -> Tensor:
        return self.objective.conditional_sample(self.noise_predictor, len(seen), seen)


class LowdimPolicy(nn.Module):
    """diffusion_policy's `DiffusionUnetLowdimPolicy`, with observations given to the network or held in the plan."""

    def __init__(self, kind: str = "DDPM", steps: int = 30, way: str = "global", executed: int = 4, **given: Any):
        super().__init__()
        held = way == "inpainting"
        conditions = {"global": SEEN * OBSERVED, "local": HORIZON * OBSERVED, "inpainting": 1}[way]
        self.network = self.model = Network(ACTION + OBSERVED * held, conditions)
        self.noise_scheduler, self.num_inference_steps = scheduler_of(kind, **given), steps
        self.n_action_steps, self.way, self.kwargs = executed, way, {}
        self._last = None

    def reset(self) -> None:
        """These policies remember nothing."""

    def conditional_sample(
        self, condition_data, condition_mask, local_cond=None, global_cond=None, generator=None, **kwargs
    ):
        """Plans of the shape of the data, which are put in place where the mask is true."""
        x = torch.randn(condition_data.shape, dtype=condition_data.dtype, generator=generator)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            x[condition_mask] = condition_data[condition_mask]
            out = self.model(x, t, local_cond=local_cond, global_cond=global_cond)
            x = self.noise_scheduler.step(out, t, x, generator=generator, **kwargs).prev_sample
        x[condition_mask] = condition_data[condition_mask]
        return x

    def predict_action(self, observation: dict[str, Tensor]) -> dict[str, Tensor]:
        """Plans for observations ``(B, 2, 3)``."""
        seen = observation["obs"]
        data = seen.new_zeros(len(seen), HORIZON, ACTION + OBSERVED * (self.way == "inpainting"))
        mask, conditions = torch.zeros_like(data, dtype=torch.bool), {}
        if self.way == "inpainting":
            data[:, :SEEN, ACTION:], mask[:, :SEEN, ACTION:] = seen, True
        elif self.way == "global":
            conditions = {"global_cond": seen.flatten(1)}
        else:
            local = seen.new_zeros(len(seen), HORIZON, OBSERVED)
            local[:, :SEEN] = seen
            conditions = {"local_cond": local}
        plan = self.conditional_sample(data, mask, **conditions, **self.kwargs)
        return {"action": plan[:, SEEN - 1 : SEEN - 1 + self.n_action_steps, :ACTION], "plan": plan}
