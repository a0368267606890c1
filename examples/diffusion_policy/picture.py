"""One episode twice, planned step by step and in parallel with the same noise, as the simulator's camera sees it.

MUJOCO_GL=egl python examples/diffusion_policy/picture.py --task pick-place-v3 --out docs/images/robot.png
"""

import argparse
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from network import ACTION, EXECUTED, HORIZON, OBSERVATIONS, checkpoint, load
from samplers import SAMPLERS, LeanLoop, scheduler_of
from tasks import begin, environment
from torch import Tensor

from picardsolve.integrations.policies import ParallelPolicy

_PLANS = 8  # at most
_SHOWN = (0, 3, 4, 6)  # frames, by how many plans came before


def episode(task: str, seed: int, act: Callable[[Tensor], Tensor]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The frames before each plan, and at the end; and the plans, ``(16, 4)`` each."""
    env = environment(task, render_mode="rgb_array", camera_name="corner2", width=240, height=240)
    seen, plans, frames = [begin(env, task, seed, 0)] * OBSERVATIONS, [], []
    success = False
    while len(plans) < _PLANS and not success:
        if len(plans) in _SHOWN:
            frames.append(np.rot90(env.render(), 2))  # the camera hangs upside down
        plans.append(act(torch.tensor(np.array(seen), dtype=torch.float32)[None])[0].numpy())
        for action in plans[-1][OBSERVATIONS - 1 :][:EXECUTED]:
            observation, _, _, _, info = env.step(np.clip(action, -1, 1))
            seen = [*seen[1:], observation]
            success = success or info["success"] > 0
    return frames, plans


def main() -> None:
    """Draw it."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--task", default="pick-place-v3")
    arguments.add_argument("--sampler", default="ddpm-100", choices=SAMPLERS)
    arguments.add_argument("--seed", type=int, default=7)
    arguments.add_argument("--out", default="robot.png")
    asked = arguments.parse_args()
    net, scheduler, rounds = load(checkpoint(asked.task)), scheduler_of(asked.sampler), []
    policy = ParallelPolicy(net, scheduler, (HORIZON, ACTION), executed=EXECUTED, seed=asked.seed)

    def parallel(observation: Tensor) -> Tensor:
        plan = policy.plan(observation)
        rounds.append(plan.rounds)
        return plan.actions

    loop = LeanLoop(net, scheduler, [torch.Generator().manual_seed(asked.seed)])
    ways = [episode(asked.task, asked.seed, act) for act in (loop.plan, parallel)]
    titles = (
        f"{len(scheduler.timesteps)} model calls a plan",
        f"the same plans in {min(rounds)} to {max(rounds)} rounds",
    )
    figure = plt.figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 1))
    cells = left.subplots(2, len(_SHOWN))
    for row, (frames, _), title in zip(cells, ways, titles, strict=True):
        for axes, frame in zip(row, frames, strict=False):
            axes.imshow(frame)
        for axes in row:
            axes.axis("off")
        row[0].set_title(title, loc="left")
    axes = right.subplots()
    for number, (one, other) in enumerate(zip(ways[0][1], ways[1][1], strict=False)):
        times = EXECUTED * number + np.arange(HORIZON)
        axes.plot(times, one[:, 2], color="k", linewidth=4, alpha=0.25)
        axes.plot(times, other[:, 2], color="tab:blue", linewidth=1)
    axes.set(title="upward move in every plan\ngrey: sequential, blue: parallel", xlabel="step of the robot")
    figure.savefig(asked.out, dpi=72)


if __name__ == "__main__":
    main()
