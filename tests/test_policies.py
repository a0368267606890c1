"""Plans of `ParallelPolicy` against those of the scheduler's own loop with the same noise."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given, settings
from hypothesis import strategies as st

import picardsolve as ps
from picardsolve.integrations.policies import ParallelPolicy
from picardsolve.integrations.policies.steps import PlanSteps

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "diffusion_policy"))
from network import checkpoint, load
from samplers import SAMPLERS, LeanLoop, diffusers_loop, scheduler_of

# diffusers' schedulers make numpy arrays of tensors, in ways that numpy 2 wants torch to support differently
pytestmark = [
    pytest.mark.usefixtures("no_clock"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

SHAPE, SEEN = (6, 2), 3  # of plans of six actions; numbers of an observation
COSINE: dict[str, Any] = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}


class Expert:
    """A denoiser whose predicted sample is a bounded function of the state and the observation."""

    def __init__(self, scheduler: Any, seed: int = 0):
        g = torch.Generator().manual_seed(seed)
        size = SHAPE[0] * SHAPE[1]
        self.inner, self.outer = torch.randn(size, size, generator=g), torch.randn(SEEN, size, generator=g)
        self.alpha_bar = scheduler.alphas_cumprod.double()
        self.kind, self.calls = scheduler.config["prediction_type"], []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        self.calls.append((x, t))
        alpha, sigma = (v[t][:, None].to(x) for v in (self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()))
        flat = x.flatten(1)
        sample = torch.tanh(0.2 * alpha * flat @ self.inner.to(x) + observation @ self.outer.to(x))
        noise = (flat - alpha * sample) / sigma
        out = {"epsilon": noise, "sample": sample, "v_prediction": alpha * noise - sigma * sample}[self.kind]
        return out.view(x.shape)


def sequential(model: Any, scheduler: Any, observation: Any, g: torch.Generator, dtype=torch.float64) -> torch.Tensor:
    scheduler.set_timesteps(len(scheduler.timesteps))
    x = randn_tensor((len(observation), *SHAPE), g, dtype=dtype)
    random = {} if isinstance(scheduler, DDIMScheduler) else {"generator": g}
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(len(x)), observation), t, x, **random).prev_sample
    return x


def seen(seed: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, SEEN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


common = {
    "beta_schedule": st.sampled_from(["linear", "squaredcos_cap_v2"]),
    "prediction_type": st.sampled_from(["epsilon", "sample", "v_prediction"]),
    "timestep_spacing": st.sampled_from(["leading", "trailing", "linspace"]),
}
clips = {"clip_sample": st.booleans(), "clip_sample_range": st.sampled_from([0.4, 1.0])}
variance = {"variance_type": st.sampled_from(["fixed_small", "fixed_large"])}
solver = {
    "algorithm_type": st.sampled_from(["dpmsolver++", "sde-dpmsolver++"]),
    "solver_order": st.sampled_from([1, 2]),
    "solver_type": st.sampled_from(["midpoint", "heun"]),
}
schedulers = st.one_of(
    st.builds(lambda c: DDPMScheduler(100, **c), st.fixed_dictionaries({**common, **clips, **variance})),
    st.builds(lambda c: DDIMScheduler(100, **c), st.fixed_dictionaries({**common, **clips})),
    st.builds(lambda c: DPMSolverMultistepScheduler(100, **c), st.fixed_dictionaries({**common, **solver})),
)


@settings(max_examples=40)
@given(schedulers, st.integers(2, 20), st.integers(1, 3), st.sampled_from([0.0, 1e-3]), st.integers(0, 99))
def test_plans_are_the_sequential_ones(scheduler, steps, batch, tol, seed):
    """Three plans in a row, of which the later ones start from the ones before."""
    scheduler.set_timesteps(steps)
    model = Expert(scheduler)
    policy = ParallelPolicy(model, scheduler, SHAPE, executed=2, tol=tol, seed=seed, dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    for number in range(3):
        observation = seen(number, batch)
        plan, expected = policy.plan(observation), sequential(model, scheduler, observation, g)
        assert plan.converged
        # schedulers hold their tables in single precision
        assert float((plan.actions - expected).abs().max()) <= max(10 * tol, 1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_lean_loop_is_the_schedulers(sampler):
    net, scheduler = load(checkpoint("pick-place-v3")), scheduler_of(sampler)
    observation = torch.stack([net.low, net.low + 0.5 * net.scale.clamp(min=1e-3).reciprocal().clamp(max=1)])[None]
    ours, theirs = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    lean = LeanLoop(net, scheduler, [ours])
    for _ in range(2):
        expected = diffusers_loop(net, scheduler, observation, theirs)
        torch.testing.assert_close(lean.plan(observation), expected, rtol=0, atol=1e-4)


def observations(net: Any, count: int, seed: int) -> torch.Tensor:
    """Somewhere between the smallest and the largest that the network was trained on, ``(count, 2, 39)``."""
    span = torch.where(net.scale > 0, 2 / net.scale, 0)
    share = torch.rand(count, 1, len(span), generator=torch.Generator().manual_seed(seed))
    return (net.low + share * span).expand(-1, 2, -1)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("sampler", ["ddpm-100", "ddim-15"])
def test_a_trained_policy_with_and_without_the_clip(sampler, clip):
    """To a tenth of a per cent of an action's range in a quarter of the steps, warm and cold."""
    net, scheduler = load(checkpoint("pick-place-v3")), scheduler_of(sampler)
    scheduler.register_to_config(clip_sample=clip)
    g, policy = torch.Generator().manual_seed(1), ParallelPolicy(net, scheduler, (16, 4), tol=1e-3, seed=1)
    for seed in range(2):
        observation = observations(net, 1, seed)
        plan, expected = policy.plan(observation), diffusers_loop(net, scheduler, observation, g)
        assert float((plan.actions - expected).square().mean().sqrt()) < 2e-3
        assert plan.rounds < len(scheduler.timesteps) * (0.25 if sampler == "ddpm-100" else 0.8)


@pytest.mark.parametrize(
    "iteration", [ps.Picard(), ps.Secant(), ps.MultiSecant(), ps.Exponential(), ps.Anderson(), ps.Jacobi()]
)
def test_iterations_that_assume_smoothness_are_safe_where_most_is_clipped(iteration):
    scheduler = DDPMScheduler(**COSINE, clip_sample_range=0.3)
    scheduler.set_timesteps(25)
    model, g = Expert(scheduler), torch.Generator().manual_seed(0)
    policy = ParallelPolicy(model, scheduler, SHAPE, tol=1e-5, iteration=iteration, dtype=torch.float64)
    for number in range(2):
        plan, expected = policy.plan(seen(number)), sequential(model, scheduler, seen(number), g)
        assert float((plan.actions - expected).abs().max()) < 1e-4
        assert plan.rounds <= 25


def test_a_robot_goes_where_the_sequential_plans_lead():
    """A closed loop, in which differences would add up."""
    scheduler = DDPMScheduler(**COSINE)
    scheduler.set_timesteps(20)
    model, g = Expert(scheduler), torch.Generator().manual_seed(4)
    policy = ParallelPolicy(model, scheduler, SHAPE, executed=3, tol=1e-6, seed=4, dtype=torch.float64)
    places = seen(0, 2).repeat(2, 1, 1)
    for _ in range(4):
        plans = policy.plan(places[0]).actions, sequential(model, scheduler, places[1], g)
        for place, plan in zip(places, plans, strict=True):
            place[:, :2] += 0.1 * plan[:, :3].sum(1)
    torch.testing.assert_close(places[0], places[1], rtol=0, atol=1e-4)
    assert float((places[0] - seen(0, 2)).abs().max()) > 0.1


def test_a_warm_start_is_the_last_plan_without_what_was_executed():
    scheduler = DDIMScheduler(**COSINE)
    scheduler.set_timesteps(10)
    model = Expert(scheduler)
    policy = ParallelPolicy(model, scheduler, SHAPE, executed=2, dtype=torch.float64)
    before = policy.plan(seen(0)).actions[0]
    model.calls.clear()
    policy.plan(seen(1))
    states, times = model.calls[0]
    assert times.tolist() == scheduler.timesteps.tolist()
    expected = torch.cat([before[2:], before[-1:], before[-1:]])
    alpha_bar = model.alpha_bar[times[-1]]  # the state that the last step starts from has next to no noise
    torch.testing.assert_close(states[-1] / alpha_bar.sqrt(), expected, rtol=0, atol=3 * float((1 - alpha_bar).sqrt()))
    assert float((expected - before).abs().max()) > 3 * float((1 - alpha_bar).sqrt())


def test_a_warm_start_saves_work():
    net, scheduler = load(checkpoint("pick-place-v3")), scheduler_of("ddpm-100")
    observation, work = observations(net, 8, 0), {}
    for executed, kind in ((16, "cold"), (1, "warm")):
        policy = ParallelPolicy(net, scheduler, (16, 4), executed=executed, seed=3)
        policy.plan(observation)
        if kind == "cold":
            policy.reset(5)
        else:
            policy._noise.begin(5)  # the noise of the other one, and the plan before
        work[kind] = policy.plan(observation).evaluations
    assert work["warm"] < work["cold"]


def test_the_same_seed_gives_the_same_plans():
    scheduler = DDPMScheduler(**COSINE)
    scheduler.set_timesteps(10)
    policy = ParallelPolicy(Expert(scheduler), scheduler, SHAPE, seed=1)
    first = [policy.plan(seen(0).float()).actions for _ in range(2)]
    policy.reset(1)
    again = [policy.plan(seen(0).float()).actions for _ in range(2)]
    policy.reset(2)
    other = policy.plan(seen(0).float()).actions
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other)


def test_a_budget_returns_what_there_is_and_how_far_off_it_may_be():
    net, scheduler = load(checkpoint("pick-place-v3")), scheduler_of("ddpm-100")
    observation, errors = observations(net, 4, 2), []
    expected = ParallelPolicy(net, scheduler, (16, 4), tol=1e-5).plan(observation).actions
    for most in (1, 2, 3, 5):
        plan = ParallelPolicy(net, scheduler, (16, 4), max_rounds=most).plan(observation)
        assert not plan.converged
        assert plan.rounds == most
        error = (plan.actions - expected).flatten(1).double().square().mean(1).sqrt()
        assert bool((error <= plan.certificate.bound[-1]).all())
        assert bool((plan.certificate.error[-1] < 100 * error).all())
        errors.append(float(error.mean()))
    assert errors == sorted(errors, reverse=True)
    assert ParallelPolicy(net, scheduler, (16, 4), max_rounds=1).plan(observation, max_rounds=50).converged


def test_a_certificate_can_be_held_against_the_sequential_plan():
    scheduler = DDPMScheduler(**COSINE)
    scheduler.set_timesteps(20)
    plan = ParallelPolicy(Expert(scheduler), scheduler, SHAPE, tol=1e-2, dtype=torch.float64).plan(seen(0, 2))
    found = plan.certificate.verify()
    expected = sequential(Expert(scheduler), scheduler, seen(0, 2), torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.reference.ys[-1], expected, rtol=0, atol=1e-5)
    assert found.holds
    better = plan.certificate.recheck().better
    assert float((better.ys[-1] - expected).abs().max()) < 1e-2


def test_observations_may_be_any_tensors():
    scheduler = DDIMScheduler(**COSINE)
    scheduler.set_timesteps(8)
    expert = Expert(scheduler)

    def model(x, t, observation):
        return expert(x, t, torch.cat([observation["hand"], observation["goal"]], 1))

    whole = seen(0, 3)
    parts = {"hand": whole[:, :2], "goal": whole[:, 2:]}
    plans = [
        ParallelPolicy(function, scheduler, SHAPE, dtype=torch.float64).plan(given).actions
        for function, given in ((model, parts), (expert, whole))
    ]
    assert torch.equal(*plans)


def plain(x, t, observation):
    return x


def ready(scheduler: Any) -> Any:
    scheduler.set_timesteps(5)
    return scheduler


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": 3}, TypeError, "model: expected a function"),
        ({"scheduler": EulerDiscreteScheduler()}, TypeError, "scheduler: expected a DDPMScheduler"),
        (
            {"scheduler": ready(DDPMScheduler(thresholding=True))},
            ValueError,
            "scheduler: expected steps that are linear",
        ),
        (
            {"scheduler": ready(DDPMScheduler(variance_type="learned"))},
            ValueError,
            "scheduler: expected steps that are",
        ),
        ({"scheduler": DDIMScheduler()}, ValueError, "scheduler: expected one whose timesteps are set"),
        ({"shape": 16}, TypeError, "shape: expected a tuple"),
        ({"shape": (16, 0)}, ValueError, "shape: expected an integer >= 1"),
        ({"executed": 0}, ValueError, "executed: expected"),
        ({"executed": -1}, ValueError, "executed: expected an integer >= 1"),
        ({"executed": 3.0}, TypeError, "executed: expected an integer >= 1"),
        ({"executed": True}, TypeError, "executed: expected an integer >= 1"),
        ({"executed": 7}, ValueError, "executed: expected at most 6, .* got 7; pass how many are executed before"),
        ({"executed": 20, "shape": (16, 4)}, ValueError, "executed: expected at most 16, .* got 20; pass"),
        ({"executed": 2, "shape": (1,)}, ValueError, "executed: expected at most 1, .* got 2; pass"),
        ({"seed": 2**64}, ValueError, "seed: expected an integer below 2"),
        ({"seed": [1]}, TypeError, "seed: expected an integer >= 0"),
        ({"tol": -1.0}, ValueError, "tol: expected"),
        ({"max_rounds": 0}, ValueError, "max_rounds: expected"),
        ({"seed": -1}, ValueError, "seed: expected"),
        ({"spread": -0.1}, ValueError, "spread: expected"),
        ({"iteration": ps.Newton()}, TypeError, "iteration: "),
        ({"dtype": torch.int64}, TypeError, "dtype: expected"),
    ],
)
def test_wrong_arguments_are_named(change, error, says):
    given = {"model": plain, "scheduler": ready(DDIMScheduler()), "shape": SHAPE, **change}
    with pytest.raises(error, match=says):
        ParallelPolicy(given.pop("model"), given.pop("scheduler"), given.pop("shape"), **given)


@pytest.mark.parametrize(
    ("observation", "error", "says"),
    [
        ([1.0], TypeError, "observation: expected tensors"),
        ({}, TypeError, "observation: expected tensors"),
        ((torch.zeros(2, 1), torch.zeros(3, 1)), ValueError, "observation: expected one leading dimension"),
        (torch.zeros(0, 3), ValueError, "observation: expected one leading dimension"),
    ],
)
def test_wrong_observations_are_named(observation, error, says):
    with pytest.raises(error, match=says):
        ParallelPolicy(plain, ready(DDIMScheduler()), SHAPE).plan(observation)


def test_wrong_models_are_named():
    scheduler = DDIMScheduler(**COSINE)
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="model: expected to return shape"):
        ParallelPolicy(lambda x, t, o: x[:, :2], scheduler, SHAPE).plan(seen(0))
    with pytest.raises(ps.SolveError, match="not finite"):
        ParallelPolicy(lambda x, t, o: x * torch.nan, scheduler, SHAPE).plan(seen(0))


def test_solvers_that_remember_predicted_noise_are_refused():
    with pytest.warns(FutureWarning):
        scheduler = DPMSolverMultistepScheduler(**COSINE, algorithm_type="dpmsolver", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(7)
    with pytest.raises(ValueError, match="pass algorithm_type"):
        PlanSteps.of(scheduler, 0.1)


def test_a_scheduler_that_was_used_before_is_read_from_its_start():
    scheduler = ready(DPMSolverMultistepScheduler(**COSINE))
    expected = PlanSteps.of(scheduler, 0.1).table
    sequential(Expert(scheduler), scheduler, seen(0), torch.Generator())
    assert torch.equal(PlanSteps.of(scheduler, 0.1).table, expected)


def test_steps_are_read_of_a_scheduler_that_is_left_as_it_was():
    scheduler = DPMSolverMultistepScheduler(**COSINE)
    scheduler.set_timesteps(7)
    before = {name: repr(value) for name, value in vars(scheduler).items()}
    PlanSteps.of(scheduler, 0.1)
    assert {name: repr(value) for name, value in vars(scheduler).items()} == before
