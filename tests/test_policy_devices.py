"""Plans over several devices, and over the ranks of a mesh."""

import pytest
import ranks
import torch
import torch.distributed as dist
from diffusers import DDIMScheduler, DDPMScheduler

from picardsolve import Result, SolveError
from picardsolve.integrations.policies import ParallelPolicy

pytestmark = pytest.mark.usefixtures("no_clock")

COSINE = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "clip_sample": True}
SEEN = torch.linspace(-1, 1, 12).reshape(3, 4)


def model(x, t, observation):
    return 0.3 * x + 0.1 * observation[:, None, :2] * x * x  # bit for bit the same in every batch


def plans(scheduler, **given):
    scheduler.set_timesteps(10)
    policy = ParallelPolicy(model, scheduler, (8, 2), seed=3, **given)
    found = [policy.plan(SEEN), policy.plan(SEEN + 0.1)]
    policy.reset()
    return [*found, policy.plan(SEEN[:1])]


def everyone(mesh):
    made = plans(DDPMScheduler(**COSINE), mesh=mesh)
    found = [(plan.actions, plan.rounds, plan.evaluations, plan.certificate.error[-1]) for plan in made]
    calls = []

    def failing(x, t, observation):
        calls.append(len(x))
        if len(calls) == 3 and dist.get_rank() == 1:
            raise RuntimeError("no room")
        return model(x, t, observation)

    scheduler = DDPMScheduler(**COSINE)
    scheduler.set_timesteps(10)
    policy = ParallelPolicy(failing, scheduler, (8, 2), seed=3, tol=1e-6, mesh=mesh)
    try:
        policy.plan(SEEN)
    except (RuntimeError, SolveError) as error:
        left = getattr(error, "solution", None)
        return found, f"{type(error).__name__}: {error}", left, policy.plan(SEEN).actions
    return None


def test_plans_of_two_devices_are_those_of_one():
    for kind in (DDPMScheduler, DDIMScheduler):
        alone, shared = plans(kind(**COSINE)), plans(kind(**COSINE), devices=["cpu", "cpu"])
        for one, other in zip(alone, shared, strict=True):
            assert torch.equal(one.actions, other.actions)
            assert (one.rounds, one.evaluations) == (other.rounds, other.evaluations)
            assert other.certificate.verify().error.max() < 5e-3


def test_every_rank_makes_the_plans_of_one_process(tmp_path):
    alone = plans(DDPMScheduler(**COSINE))
    outcomes = ranks.run(everyone, tmp_path)
    for (made, *_), error, _ in outcomes:
        assert error is None
        for one, (actions, rounds, evaluations, bound) in zip(alone, made, strict=True):
            assert torch.equal(one.actions, actions)
            assert (one.rounds, one.evaluations) == (rounds, evaluations)
            assert torch.equal(one.certificate.error[-1], bound)
    (_, here, left, after), (_, there, _, also) = (value for value, _, _ in outcomes)
    assert there == "RuntimeError: no room"
    assert here.startswith("SolveError: Rank 1 raised RuntimeError: no room.")
    assert left.result is Result.interrupted
    assert torch.isfinite(left.ys[0]).all()
    assert not torch.isfinite(left.ys[-1]).any()
    assert torch.equal(after, also)
    assert torch.allclose(after, alone[0].actions, rtol=0, atol=5e-3)
