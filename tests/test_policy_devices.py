"""Plans over several devices, and over the ranks of a mesh."""

import ranks
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from picardsolve.integrations.policies import ParallelPolicy

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
    return [(plan.actions, plan.rounds, plan.evaluations, plan.certificate.error[-1]) for plan in made]


def test_plans_of_two_devices_are_those_of_one():
    for kind in (DDPMScheduler, DDIMScheduler):
        alone, shared = plans(kind(**COSINE)), plans(kind(**COSINE), devices=["cpu", "cpu"])
        for one, other in zip(alone, shared, strict=True):
            assert torch.equal(one.actions, other.actions)
            assert (one.rounds, one.evaluations) == (other.rounds, other.evaluations)
            assert other.certificate.verify().error.max() < 5e-3


def test_every_rank_makes_the_plans_of_one_process(tmp_path):
    alone = plans(DDPMScheduler(**COSINE))
    for made, error, _ in ranks.run(everyone, tmp_path):
        assert error is None
        for one, (actions, rounds, evaluations, bound) in zip(alone, made, strict=True):
            assert torch.equal(one.actions, actions)
            assert (one.rounds, one.evaluations) == (rounds, evaluations)
            assert torch.equal(one.certificate.error[-1], bound)
