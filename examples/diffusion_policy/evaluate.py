"""Episodes in the simulator with sequential and with parallel plans: success, rounds, milliseconds, differences.

pip install "picardsolve[robot]"
python examples/diffusion_policy/evaluate.py --task pick-place-v3 --episodes 20 --seed 7 --json
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean, median
from time import perf_counter

import numpy as np
import torch
from network import ACTION, EXECUTED, HORIZON, OBSERVATIONS, PlanDenoiser, checkpoint, load
from samplers import SAMPLERS, LeanLoop, diffusers_loop, scheduler_of
from tasks import begin, environment
from torch import Tensor

from picardsolve.integrations.policies import ParallelPolicy, Plan

TASKS = "pick-place-v3", "peg-insert-side-v3", "assembly-v3"
RANGE = 2.0  # of actions, which are in [-1, 1]
_LONGEST = 250  # steps of an episode
_GROUP = 25  # episodes that are simulated side by side
_TIMED_EVERY = 10  # plans, of which one is also made by both sequential loops, alone, for the clock


@dataclass
class Outcome:
    """One episode: whether it succeeded, and the sum of its rewards."""

    success: bool = False
    total: float = 0.0


@dataclass
class Costs:
    """What plans took, and how far they were from the sequential ones."""

    cold: list[int] = field(default_factory=list)  # rounds
    warm: list[int] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    rms: list[float] = field(default_factory=list)  # differences, in units of the range of actions
    largest: list[float] = field(default_factory=list)
    timed: list[tuple[float, ...]] = field(default_factory=list)  # one plan: as it was made, cold, lean, diffusers


def episodes(task: str, seed: int, first: int, count: int, act: Callable[[Tensor], Tensor]) -> list[Outcome]:
    """Run some side by side; ``act`` makes plans ``(count, 16, 4)`` of observations ``(count, 2, 39)``."""
    envs = [environment(task) for _ in range(count)]
    seen = [[begin(env, task, seed, first + k)] * OBSERVATIONS for k, env in enumerate(envs)]
    outcomes = [Outcome() for _ in envs]
    for _ in range(0, _LONGEST, EXECUTED):
        plans = act(torch.tensor(np.array(seen), dtype=torch.float32)).clamp(-1, 1).numpy()
        for k, env in enumerate(envs):
            for action in plans[k, OBSERVATIONS - 1 : OBSERVATIONS - 1 + EXECUTED]:
                if outcomes[k].success:
                    break
                observation, reward, _, _, info = env.step(action)
                seen[k] = [*seen[k][1:], observation]
                outcomes[k].total += float(reward)
                outcomes[k].success = info["success"] > 0
        if all(outcome.success for outcome in outcomes):
            break
    for env in envs:
        env.close()
    return outcomes


class Compared:
    """Plans in parallel, one episode after the other as on a robot, and holds them against sequential ones."""

    def __init__(self, net: PlanDenoiser, sampler: str, seeds: list[int], tol: float, costs: Costs):
        self._net, self._scheduler, self._costs, self._tol, self._seen = net, scheduler_of(sampler), costs, tol, 0
        self._policies = [self._policy(seed) for seed in seeds]
        self._beside = LeanLoop(net, self._scheduler, generators(seeds))
        self._generator = torch.Generator()
        self._lean = LeanLoop(net, self._scheduler, [self._generator])
        self._done: list[Tensor | None] = [None] * len(seeds)
        self._begun = False

    def __call__(self, observations: Tensor) -> Tensor:
        """Plans ``(B, 16, 4)``."""
        reference, plans = self._beside.plan(observations), []
        for k, (policy, observation) in enumerate(zip(self._policies, observations, strict=True)):
            if self._done[k] is not None and torch.equal(self._done[k], observation):
                plans.append(reference[k])  # an episode that has ended stands still
                continue
            self._done[k] = observation
            plan, seconds = timed(lambda policy=policy, one=observation[None]: policy.plan(one))
            self._note(plan, 1e3 * seconds, reference[k])
            if self._seen % _TIMED_EVERY == 0:
                self._costs.timed.append((1e3 * seconds, *self._times(observation[None])))
            self._seen += 1
            plans.append(plan.actions[0])
        self._begun = True
        return torch.stack(plans)

    def _policy(self, seed: int) -> ParallelPolicy:
        shape = HORIZON, ACTION
        return ParallelPolicy(self._net, self._scheduler, shape, executed=EXECUTED, tol=self._tol, seed=seed)

    def _note(self, plan: Plan, milliseconds: float, reference: Tensor) -> None:
        costs, apart = self._costs, (plan.actions[0] - reference) / RANGE
        (costs.warm if self._begun else costs.cold).append(plan.rounds)
        costs.evaluations.append(plan.evaluations)
        costs.milliseconds.append(milliseconds)
        costs.rms.append(float(apart.square().mean().sqrt()))
        costs.largest.append(float(apart.abs().max()))

    def _times(self, observation: Tensor) -> tuple[float, ...]:
        """Milliseconds of the same plan made cold, and by both loops, right after each other."""
        policy = self._policy(self._seen)
        plan, cold = timed(lambda: policy.plan(observation))
        self._costs.cold.append(plan.rounds)
        self._generator.manual_seed(self._seen)
        _, lean = timed(lambda: self._lean.plan(observation))
        _, loop = timed(lambda: diffusers_loop(self._net, self._scheduler, observation, self._generator))
        return 1e3 * cold, 1e3 * lean, 1e3 * loop


def generators(seeds: list[int]) -> list[torch.Generator]:
    """One each."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def timed(function: Callable[[], object]) -> tuple:
    """What it returns, and the seconds it took."""
    began = perf_counter()
    result = function()
    return result, perf_counter() - began


def evaluated(task: str, sampler: str, count: int, seed: int, tol: float = 5e-3) -> dict[str, object]:
    """The figures of one task and sampler, over episodes that neither training nor the other seeds have seen."""
    net, costs = load(checkpoint(task)), Costs()
    sequential: list[Outcome] = []
    parallel: list[Outcome] = []
    for first in range(0, count, _GROUP):
        size = min(_GROUP, count - first)
        seeds = [100_000 * seed + first + k for k in range(size)]
        loop = LeanLoop(net, scheduler_of(sampler), generators(seeds))
        sequential += episodes(task, seed, first, size, loop.plan)
        parallel += episodes(task, seed, first, size, Compared(net, sampler, seeds, tol, costs))
    made, cold, lean, loop = np.median(costs.timed, 0)
    return {
        "task": task,
        "sampler": sampler,
        "episodes": count,
        "plans": len(costs.milliseconds),
        "success_sequential": mean(one.success for one in sequential),
        "success_parallel": mean(one.success for one in parallel),
        "return_sequential": mean(one.total for one in sequential),
        "return_parallel": mean(one.total for one in parallel),
        "rounds_median": median(costs.cold),
        "rounds_worst": max(costs.cold + costs.warm),
        "rounds_warm_median": median(costs.warm) if costs.warm else None,
        "evaluations_median": median(costs.evaluations),
        "plan_rmse_median": median(costs.rms),
        "plan_rmse_max": max(costs.rms),
        "plan_difference_max": max(costs.largest),
        "ms_p50": float(np.percentile(costs.milliseconds, 50)),
        "ms_p99": float(np.percentile(costs.milliseconds, 99)),
        "ms_cold": cold,
        "ms_lean": lean,
        "ms_diffusers": loop,
        "speedup_diffusers": loop / made,
        "speedup_lean": lean / made,
    }


def main() -> None:
    """Print the figures, as JSON in one line if so asked."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--task", default="pick-place-v3", help="one that train.py has made a checkpoint of")
    arguments.add_argument("--sampler", default="ddpm-100", choices=SAMPLERS)
    arguments.add_argument("--episodes", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=7)
    arguments.add_argument("--tol", type=float, default=5e-3)
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--json", action="store_true")
    asked = arguments.parse_args()
    torch.set_num_threads(asked.threads)
    found = evaluated(asked.task, asked.sampler, asked.episodes, asked.seed, asked.tol)
    if asked.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:20s} {value:.4g}" if isinstance(value, float) else f"{name:20s} {value}")


if __name__ == "__main__":
    main()
