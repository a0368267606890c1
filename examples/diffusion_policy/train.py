"""Train a Diffusion Policy on demonstrations of a Meta-World expert, in a few minutes on one core of a CPU.

pip install "picardsolve[robot]"
python examples/diffusion_policy/train.py --task pick-place-v3
"""

import argparse
import math
from copy import deepcopy
from time import perf_counter

import numpy as np
import torch
from diffusers import DDPMScheduler
from network import DIFFUSION_STEPS, HORIZON, OBSERVATIONS, PlanDenoiser, checkpoint, save
from tasks import Demonstration, demonstrations
from torch import Tensor

_BATCH, _RATE = 256, 1e-3


def examples(shown: list[Demonstration]) -> tuple[Tensor, Tensor]:
    """Observations ``(M, 2, 39)`` and the plans from the first of the two on, ``(M, 16, 4)``."""
    observations, plans = [], []
    for one in shown:
        times = np.arange(len(one.actions))[:, None]
        observations.append(one.observations[np.maximum(times - np.arange(OBSERVATIONS)[::-1], 0)])
        steps = times - OBSERVATIONS + 1 + np.arange(HORIZON)
        plans.append(one.actions[np.clip(steps, 0, len(one.actions) - 1)])
    return torch.from_numpy(np.concatenate(observations)), torch.from_numpy(np.concatenate(plans))


def noise_schedule() -> DDPMScheduler:
    """Diffusion Policy's own: 100 steps, ``squaredcos_cap_v2``, plans clipped to [-1, 1] in every step."""
    return DDPMScheduler(DIFFUSION_STEPS, beta_schedule="squaredcos_cap_v2", clip_sample=True)


def trained(observations: Tensor, plans: Tensor, iterations: int) -> PlanDenoiser:
    """The moving average of a network that learns to predict noise."""
    net, schedule = PlanDenoiser(), noise_schedule()
    low, high = observations.flatten(0, 1).aminmax(dim=0)
    net.low, net.scale = low, torch.where(high - low > 1e-4, 2 / (high - low), 0.0)
    average, loss_average = deepcopy(net).requires_grad_(False), 1.0
    optimizer = torch.optim.AdamW(net.parameters(), _RATE, weight_decay=1e-6)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    began = perf_counter()
    for iteration in range(iterations):
        chosen = torch.randint(len(plans), (_BATCH,))
        noise, t = torch.randn(_BATCH, *plans.shape[1:]), torch.randint(DIFFUSION_STEPS, (_BATCH,))
        noisy = schedule.add_noise(plans[chosen], noise, t)  # pyright: ignore[reportArgumentType]
        loss = torch.nn.functional.mse_loss(net(noisy, t, observations[chosen]), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 0.01 if iteration > 200 else 0.1)
        loss_average += 0.02 * (loss.item() - loss_average)
        if not math.isfinite(loss_average) or (iteration + 1) % 500 == 0:
            print(f"iteration {iteration + 1}  loss {loss_average:.4f}  {perf_counter() - began:.0f} s", flush=True)
    return average.eval()


def main() -> None:
    """Train one task and write its checkpoint beside this file."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--task", default="pick-place-v3")
    arguments.add_argument("--demonstrations", type=int, default=100)
    arguments.add_argument("--iterations", type=int, default=4000)
    arguments.add_argument("--seed", type=int, default=0)
    asked = arguments.parse_args()
    torch.manual_seed(asked.seed)
    began = perf_counter()
    observations, plans = examples(demonstrations(asked.task, asked.demonstrations, asked.seed))
    print(f"{asked.task}: {len(plans)} examples in {perf_counter() - began:.0f} s", flush=True)
    net = trained(observations, plans, asked.iterations)
    save(net, checkpoint(asked.task))


if __name__ == "__main__":
    main()
