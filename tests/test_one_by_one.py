"""Plans of few steps, which are made one step after the other where that is faster."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from test_policies import COSINE, SHAPE, Expert, pytestmark, seen, sequential

from picardsolve import SolveError
from picardsolve.integrations.policies import FlowMatching, ParallelPolicy
from picardsolve.integrations.policies.one_by_one import Faster

pytestmark = pytestmark[1:]  # all but the fixture that stops the clock
KINDS = {
    "DDPM": lambda: DDPMScheduler(**COSINE),
    "DDIM": lambda: DDIMScheduler(**COSINE, clip_sample_range=0.4),
    "DPM-Solver++": lambda: DPMSolverMultistepScheduler(**COSINE, solver_order=2),
}


def policy_of(scheduler: Any, way: str, model: Any = None, **given: Any) -> ParallelPolicy:
    """A policy that has found one way to be the faster one."""
    policy = ParallelPolicy(model or Expert(scheduler), scheduler, SHAPE, dtype=torch.float64, **given)
    found = Faster(alone=[1.0] * 3, together=[2.0] * 3) if way == "alone" else Faster([2.0] * 3, [1.0] * 3)
    policy._faster = dict.fromkeys(((b, torch.device("cpu")) for b in (1, 2)), found)
    return policy


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_after_the_other_is_the_schedulers_loop(kind):
    scheduler = KINDS[kind]()
    scheduler.set_timesteps(12)
    policy, g = policy_of(scheduler, "alone"), torch.Generator().manual_seed(0)
    for number in range(2):
        plan = policy.plan(seen(number, 2))
        expected = sequential(Expert(scheduler), scheduler, seen(number, 2), g)
        torch.testing.assert_close(plan.actions, expected, rtol=0, atol=1e-6)
        assert (plan.rounds, plan.evaluations, plan.converged) == (12, 24, True)
        assert not plan.certificate.error.any()
        assert plan.certificate.verify().error.max() < 1e-6
        assert plan.solution.notes[0].startswith("one step after the other")


def test_both_ways_hold_what_is_held_and_flow_alike():
    mask, values = torch.rand(2, *SHAPE) < 0.3, torch.full((2, *SHAPE), 0.2, dtype=torch.float64)
    scheduler = KINDS["DDPM"]()
    scheduler.set_timesteps(10)
    for steps, model in (
        (scheduler, None),
        (FlowMatching([0.0, 0.3, 0.6, 1.0]), lambda x, t, seen: t[:, None, None] - x),
    ):
        made = [policy_of(steps, way, model, tol=1e-9).plan(seen(0, 2), held=(mask, values)) for way in ("alone", "")]
        torch.testing.assert_close(made[0].actions, made[1].actions, rtol=0, atol=1e-6)
        assert (made[0].actions[mask] == 0.2).all()
        assert torch.equal(torch.where(mask, 0.2, made[0].solution.ys[3]), made[0].solution.ys[3])


def test_a_broken_robot_is_told_apart():
    scheduler = KINDS["DDPM"]()
    scheduler.set_timesteps(10)
    observation = seen(0, 2)
    observation[1] = torch.nan
    policy = policy_of(scheduler, "alone")
    with pytest.raises(SolveError, match="of plan 1"):
        policy.plan(observation)
    plan = policy.plan(observation, throw=False)
    assert plan.failed.tolist() == [False, True]
    assert plan.actions[0].isfinite().all()


def test_each_way_is_tried_and_the_faster_one_kept(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("picardsolve.integrations.policies.one_by_one.perf_counter", lambda: clock.now)
    for costs in ({"alone": 1.0, "together": 2.0}, {"alone": 2.0, "together": 1.0}):
        made, faster = [], Faster()

        def way(name, costs=costs, made=made):
            def make():
                clock.now += costs[name]
                made.append(name)
                return SimpleNamespace(failed=torch.zeros(1, dtype=torch.bool))

            return make

        for _ in range(9):
            faster.plan(way("alone"), way("together"))
        better, other = sorted(costs, key=costs.get)
        assert made == ["alone", "together"] * 3 + [better] * 3
        costs[better] = 3.0  # from now on; five plans later the fast ones are forgotten
        for _ in range(6):
            faster.plan(way("alone"), way("together"))
        assert made[9:] == [better] * 5 + [other]


def test_the_clock_decides_nothing_with_many_steps_a_budget_or_deterministic_algorithms(request):
    scheduler = KINDS["DDIM"]()
    scheduler.set_timesteps(21)
    assert policy_of(scheduler, "alone").plan(seen(0)).rounds < 21
    scheduler.set_timesteps(12)
    assert policy_of(scheduler, "alone").plan(seen(0), max_rounds=3).rounds == 3
    assert policy_of(scheduler, "alone", devices=["cpu", "cpu"]).plan(seen(0)).rounds < 12
    assert policy_of(scheduler, "alone").plan(seen(0)).rounds == 12
    request.getfixturevalue("nothing_is_decided_by_the_clock")
    assert policy_of(scheduler, "alone").plan(seen(0)).rounds < 12
