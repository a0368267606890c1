"""Policies of lerobot and diffusion_policy, parallel and as they are, with the same seed.

`hosts` has small policies with their interfaces. lerobot's own class is tested below where it is installed.
"""

import copy
from types import SimpleNamespace
from typing import Any

import hosts
import pytest
import torch
from torch import nn

from picardsolve.integrations import diffusion_policy, lerobot

pytestmark = pytest.mark.usefixtures("no_clock")

TOL = 1e-4


def observations(count: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(count, batch, hosts.OBSERVED, generator=torch.Generator().manual_seed(1))


def actions(policy: Any, seed: int = 5, count: int = 8, batch: int = 2) -> torch.Tensor:
    """Actions of an episode, with torch's own random numbers, and one more number behind them."""
    torch.manual_seed(seed)
    policy.reset()
    if isinstance(policy, hosts.LowdimPolicy):
        seen = observations(2 * (count // 4), batch).unflatten(0, (-1, 2)).transpose(1, 2)
        with torch.no_grad():
            found = [policy.predict_action({"obs": each})["plan"].flatten(1) for each in seen]
    else:
        found = [policy.select_action(each) for each in observations(count, batch)]
    return torch.cat([*(each.flatten() for each in found), torch.rand(1)])


POLICIES = {
    "diffusion, DDPM": (lerobot, hosts.DiffusionPolicy, {}),
    "diffusion, DDIM of 20 steps": (lerobot, hosts.DiffusionPolicy, {"kind": "DDIM", "steps": 20}),
    "diffusion, samples without a clip": (
        lerobot,
        hosts.DiffusionPolicy,
        {"prediction_type": "sample", "clip_sample": False},
    ),
    "transformer, DDPM": (lerobot, hosts.MultiTaskDiTPolicy, {"kind": "DDPM"}),
    "transformer, Euler": (lerobot, hosts.MultiTaskDiTPolicy, {"kind": "euler"}),
    "transformer, Runge-Kutta": (lerobot, hosts.MultiTaskDiTPolicy, {"kind": "rk4", "steps": 12}),
    "U-Net, observations beside the plan": (diffusion_policy, hosts.LowdimPolicy, {"way": "global"}),
    "U-Net, local observations": (diffusion_policy, hosts.LowdimPolicy, {"way": "local"}),
    "U-Net, inpainting": (diffusion_policy, hosts.LowdimPolicy, {"way": "inpainting"}),
    "U-Net, inpainting, DDIM": (diffusion_policy, hosts.LowdimPolicy, {"way": "inpainting", "kind": "DDIM"}),
}


@pytest.mark.parametrize("name", POLICIES)
def test_actions_are_those_of_the_untouched_policy_with_the_same_seed(name):
    adapter, kind, given = POLICIES[name]
    policy = kind(**given).eval()
    expected, calls = actions(policy), policy.network.calls
    policy.network.calls = 0
    run = adapter.parallelize(policy, tol=TOL)
    found = actions(policy)
    assert float((found - expected).abs().max()) < 20 * TOL
    assert found[-1] == expected[-1]  # as many random numbers were drawn
    assert run.plan.converged
    assert policy.network.calls < calls * (0.95 if "DDIM" in name else 0.6)
    run.restore()
    assert torch.equal(actions(policy), expected)
    assert not {"conditional_sample", "reset"} & (vars(policy).keys() | vars(run._loop.host).keys())


def test_what_is_held_in_a_plan_stays_there_whatever_the_budget():
    policy = hosts.LowdimPolicy(way="inpainting").eval()
    seen = observations(4).transpose(0, 1)[:, :2]
    for most in (1, 2, None):
        with diffusion_policy.parallelize(policy, max_rounds=most) as run, torch.no_grad():
            plan = policy.predict_action({"obs": seen})["plan"]
        assert torch.equal(plan[:, : hosts.SEEN, hosts.ACTION :], seen)
        assert run.plan is None  # restored


def test_only_this_policy_changes_and_a_context_gives_its_loop_back():
    policy, other = hosts.DiffusionPolicy().eval(), hosts.DiffusionPolicy().eval()
    with lerobot.parallelize(policy) as run:
        with pytest.raises(
            TypeError, match=r"^policy: the conditional_sample of this _DiffusionModel is replaced already; call"
        ):
            lerobot.parallelize(policy)
        actions(policy, count=1)
        assert run.plan.rounds < 30
        actions(other, count=1)
        assert other.network.calls == 30
        twin = copy.deepcopy(policy)
        actions(twin, count=1)
        assert twin.network.calls < 30
    before = policy.network.calls
    actions(policy, count=1)
    assert policy.network.calls == before + 30
    run.restore()


def test_given_noise_and_generators_are_used():
    policy = hosts.DiffusionPolicy().eval()
    seen, noise = torch.ones(2, 6), torch.randn(2, hosts.HORIZON, hosts.ACTION)

    def sampled():
        torch.manual_seed(0)
        with torch.no_grad():
            drawn = policy.diffusion.conditional_sample(2, seen, generator=torch.Generator().manual_seed(7))
            given = policy.diffusion.conditional_sample(2, seen, noise=noise)
        return torch.cat([drawn.flatten(), given.flatten(), torch.rand(1)])

    expected = sampled()
    with lerobot.parallelize(policy, tol=TOL):
        torch.testing.assert_close(sampled(), expected, rtol=0, atol=20 * TOL)


def test_episodes_begin_without_the_last_plan_of_all_robots_or_of_some():
    policy = hosts.DiffusionPolicy().eval()
    run = lerobot.parallelize(policy, tol=1e-6)

    def warm():
        return run._policy._warm.tolist() if run._policy._previous is not None else None

    actions(policy, count=8)
    assert warm() == [True, True]
    run.reset(robots=[1])
    assert warm() == [True, False]
    policy.reset()
    assert warm() is None
    with pytest.raises(TypeError, match=r"^robots: "):
        run.reset(robots="first")
    one, other = actions(policy, seed=3), actions(policy, seed=4)
    assert not torch.allclose(one, other, atol=1e-2)


def test_a_budget_is_kept_and_a_broken_robot_breaks_no_other():
    policy = hosts.DiffusionPolicy().eval()
    with lerobot.parallelize(policy, max_rounds=2) as run:
        actions(policy, count=1)
        assert run.plan.rounds == 2
        assert not run.plan.converged
    seen = observations(1)[0]
    seen[1] = torch.nan
    policy.reset()
    torch.manual_seed(2)
    expected = policy.select_action(seen)
    policy.reset()
    with lerobot.parallelize(policy, tol=TOL):
        torch.manual_seed(2)
        torch.testing.assert_close(policy.select_action(seen), expected, rtol=0, atol=20 * TOL, equal_nan=True)


@pytest.mark.parametrize("devices", [["cpu", "cpu"]])
def test_rows_may_be_shared_by_devices(devices):
    policy = hosts.DiffusionPolicy().eval()
    found = []
    for given in ({}, {"devices": devices}):
        with lerobot.parallelize(policy, tol=TOL, **given):
            found.append(actions(policy))
    torch.testing.assert_close(*found, rtol=0, atol=20 * TOL)


def training(policy: Any) -> torch.Tensor:
    policy.train()
    torch.manual_seed(1)
    policy.reset()
    return policy.select_action(observations(1)[0])


def with_gradients(policy: Any) -> torch.Tensor:
    torch.manual_seed(1)
    return policy.diffusion.conditional_sample(1, torch.ones(1, 6))


def in_half_precision(policy: Any) -> torch.Tensor:
    torch.manual_seed(1)
    policy.reset()
    with torch.autocast("cpu", torch.bfloat16):
        return policy.select_action(observations(1)[0])


class Rounded(nn.Module):
    """A network whose outputs have fewer digits than plans."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.network(*args, **kwargs).bfloat16()


@pytest.mark.parametrize(
    ("run", "why"),
    [(training, "training mode"), (with_gradients, "gradients are asked for"), (in_half_precision, "precision")],
)
def test_what_cannot_be_made_in_parallel_is_left_to_the_policys_own_loop_and_said_once(run, why, recwarn):
    policy = hosts.DiffusionPolicy().eval()
    if run is in_half_precision:
        policy.diffusion.unet = Rounded(policy.diffusion.unet).eval()
    expected = run(policy)
    with lerobot.parallelize(policy):
        assert torch.equal(run(policy), expected)
        assert torch.equal(run(policy), expected)
    assert [why in str(said.message) for said in recwarn.list] == [True]


def test_schedulers_that_are_given_more_are_stepped():
    policy = hosts.LowdimPolicy(kind="DDIM").eval()
    policy.kwargs = {"eta": 0.5}
    expected = actions(policy)
    with diffusion_policy.parallelize(policy), pytest.warns(UserWarning, match="its scheduler is given eta"):
        assert torch.equal(actions(policy), expected)


class Later(hosts._DiffusionModel):
    def conditional_sample(self, batch_size, global_cond=None, generator=None, guidance=1.0):
        return super().conditional_sample(batch_size, global_cond, generator)


class Scaled(hosts._DiffusionModel):
    def conditional_sample(self, batch_size, global_cond=None, generator=None, noise=None):
        return 1.01 * super().conditional_sample(batch_size, global_cond, generator, noise)


def test_unknown_versions_are_refused():
    policy = hosts.DiffusionPolicy().eval()
    policy.diffusion.__class__ = Later
    with pytest.raises(TypeError, match=r"^policy: expected Later.conditional_sample\(batch_size, .*guidance"):
        lerobot.parallelize(policy)
    with pytest.raises(
        TypeError, match=r"^policy: expected a DiffusionPolicy or MultiTaskDiTPolicy of lerobot, got Net"
    ):
        lerobot.parallelize(policy.network)
    language = SimpleNamespace(model=SimpleNamespace(denoise_step=None))
    with pytest.raises(TypeError, match=r"^policy: SimpleNamespace follows its velocity in so few steps"):
        lerobot.parallelize(language)
    with pytest.raises(TypeError, match=r"^policy: Network has no conditional_sample, model, noise_scheduler"):
        diffusion_policy.parallelize(policy.network)
    policy.diffusion.__class__ = Scaled  # the same arguments, other plans
    with (
        lerobot.parallelize(policy),
        pytest.raises(TypeError, match="makes other plans than the steps of its scheduler"),
    ):
        actions(policy)


def test_a_scheduler_that_changes_is_read_anew():
    policy = hosts.DiffusionPolicy(kind="DDIM", steps=20).eval()
    with lerobot.parallelize(policy, tol=TOL) as run:
        actions(policy)
        policy.diffusion.num_inference_steps = 10
        found = actions(policy)
        assert run.plan.solution.stats.steps == 10
    torch.testing.assert_close(found, actions(policy), rtol=0, atol=20 * TOL)


# ---- the libraries' own classes

HAVE_LEROBOT = "lerobot is not installed: pip install lerobot"


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_lerobots_own_policy(kind):
    modeling = pytest.importorskip("lerobot.policies.diffusion.modeling_diffusion", reason=HAVE_LEROBOT)
    types = pytest.importorskip("lerobot.configs.types", reason=HAVE_LEROBOT)
    feature = types.PolicyFeature
    torch.manual_seed(0)
    config = modeling.DiffusionConfig(
        input_features={
            "observation.state": feature(types.FeatureType.STATE, (3,)),
            "observation.environment_state": feature(types.FeatureType.ENV, (2,)),
        },
        output_features={"action": feature(types.FeatureType.ACTION, (2,))},
        down_dims=(16, 32),
        n_groups=4,
        diffusion_step_embed_dim=16,
        noise_scheduler_type=kind,
        num_inference_steps=20 if kind == "DDIM" else None,
        device="cpu",
    )
    policy = modeling.DiffusionPolicy(config).eval()
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        policy.reset()
        steps = [{"observation.state": each, "observation.environment_state": each[:, :2]} for each in observations(20)]
        found.append(torch.stack([policy.select_action(each) for each in steps]))
        if len(found) == 1:
            run = lerobot.parallelize(policy, tol=TOL)
    assert float((found[1] - found[0]).abs().max()) < 20 * TOL
    assert run.plan.rounds < (35 if kind == "DDPM" else 20)
