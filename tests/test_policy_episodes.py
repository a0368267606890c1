"""Episodes of `ParallelPolicy`: whose noise goes on, whose plan is forgotten, and that no robot disturbs another."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from test_policies import COSINE, SEEN, SHAPE, Expert, pytestmark, seen, sequential

import picardsolve as ps
from picardsolve.integrations.policies import ParallelPolicy

__all__ = ["pytestmark"]  # the warnings of diffusers that are let pass there

STEPS, ROBOTS = 8, 3
KINDS = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler, "DPM-Solver++": DPMSolverMultistepScheduler}


def scheduled(kind: str = "DDPM"):
    scheduler = KINDS[kind](**COSINE)
    scheduler.set_timesteps(STEPS)
    return scheduler


class Alone(Expert):
    """An expert whose rows are computed as they would be alone, to the last bit: no products of matrices."""

    def __call__(self, x: torch.Tensor, t: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        self.calls.append((x, t))
        alpha, sigma = (v[t][:, None, None].to(x) for v in (self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()))
        sample = torch.tanh(0.4 * alpha * x.flip(1) + observation[:, None, : x.shape[2]])
        return (x - alpha * sample) / sigma


def policy_of(kind: str = "DDPM", model: type[Expert] = Alone, **more) -> ParallelPolicy:
    scheduler = scheduled(kind)
    given = {"tol": 1e-6, "executed": 2, "seed": 3, "dtype": torch.float64, **more}
    return ParallelPolicy(model(scheduler), scheduler, SHAPE, **given)


# ---- whose noise


robots = st.sets(st.integers(0, ROBOTS - 1), min_size=1)
events = st.lists(
    st.one_of(
        st.just(("plan", None, None)),
        st.tuples(st.just("reset"), st.none() | robots, st.none() | st.integers(0, 5)),
    ),
    max_size=6,
)


@settings(max_examples=40)
@given(st.sampled_from(list(KINDS)), events, st.integers(0, 9))
def test_plans_of_any_episodes_are_the_schedulers_loops(kind, happened, seed):
    """Against loops of diffusers' own, one for all robots and one for each group with a seed of its own."""
    policy, scheduler = policy_of(kind, Expert, seed=seed), scheduled(kind)
    model, streams = Expert(scheduler), [(list(range(ROBOTS)), torch.Generator().manual_seed(seed))]
    for number, (event, some, again) in enumerate([*happened, ("plan", None, None)]):
        if event == "reset":
            policy.reset(again, robots=None if some is None else sorted(some))
            if again is not None:
                streams = streams if some is not None else []
                streams.append((sorted(some or range(ROBOTS)), torch.Generator().manual_seed(again)))
            continue
        observation = seen(number, ROBOTS)
        expected = torch.zeros(ROBOTS, *SHAPE, dtype=torch.float64)
        for group, g in streams:
            expected[group] = sequential(model, scheduler, observation[group], g)
        plan = policy.plan(observation)
        assert plan.converged
        assert float((plan.actions - expected).abs().max()) <= 1e-4  # schedulers hold their tables in single precision


@given(st.integers(0, 99), st.sampled_from(list(KINDS)))
@settings(max_examples=10)
def test_the_same_seed_is_the_same_sequence_of_episodes_and_no_two_are_alike(seed, kind):
    def starts(policy):
        episodes = []
        for _ in range(4):
            policy.reset()
            policy._model._model.calls.clear()
            policy.plan(seen(0))
            episodes.append(policy._model._model.calls[0][0][0])  # the noise that the first step leaves from
        return episodes

    first, again = starts(policy_of(kind, seed=seed)), starts(policy_of(kind, seed=seed))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for k, a in enumerate(first) for b in first[:k])


def test_a_seed_or_a_generator_given_to_reset_repeats_an_episode():
    policy, episodes = policy_of(), []
    for noise in ({"seed": 7}, {}, {"seed": 7}, {"generator": torch.Generator().manual_seed(7)}):
        policy.reset(**noise)
        episodes.append([policy.plan(seen(k, 2)).actions for k in range(2)])
    first, between, *again = episodes
    for episode in again:
        assert all(torch.equal(a, b) for a, b in zip(first, episode, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, between, strict=True))


# ---- whose plan


def test_no_plan_is_kept_over_a_reset():
    """The first round of an episode is that of a policy that has never planned."""
    policy, fresh = policy_of(), policy_of()
    policy.plan(seen(0))
    policy.plan(seen(1))
    for one in (policy, fresh):
        one.reset(11)
        one._model._model.calls.clear()
        one.plan(seen(2))
    for ours, theirs in zip(policy._model._model.calls, fresh._model._model.calls, strict=True):
        assert torch.equal(ours[0], theirs[0])


FORMS = [
    lambda some: some,
    tuple,
    torch.tensor,
    np.array,
    lambda some: [n in some for n in range(ROBOTS)],
    lambda some: torch.tensor([n in some for n in range(ROBOTS)]),
    lambda some: np.isin(np.arange(ROBOTS), some),
]


@settings(max_examples=40)
@given(robots, st.sampled_from(FORMS), st.none() | st.integers(0, 9), st.sampled_from(list(KINDS)))
def test_a_reset_of_some_robots_changes_no_bit_of_the_others(some, form, seed, kind):
    one, other, some = policy_of(kind), policy_of(kind), sorted(some)
    others = [n for n in range(ROBOTS) if n not in some]
    for policy in (one, other):
        policy.plan(seen(0, ROBOTS))
    one.reset(seed, robots=form(some))
    one._model._model.calls.clear()
    for number in range(1, 4):
        plans = [policy.plan(seen(number, ROBOTS)).actions for policy in (one, other)]
        assert torch.equal(plans[0][others], plans[1][others])
        if seed is not None and kind == "DDPM":
            assert not torch.equal(plans[0][some], plans[1][some])
    # a robot that begins anew starts where one does that has never planned
    cold = policy_of(kind)
    cold._noise = policy_of(kind)._noise
    cold._noise.draw(ROBOTS, torch.device("cpu"))
    if seed is not None:
        cold.reset(seed, robots=some)
    cold.plan(seen(1, ROBOTS))
    ours, theirs = (p._model._model.calls[0][0].reshape(STEPS, ROBOTS, *SHAPE)[:, some] for p in (one, cold))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("form", [0, torch.tensor(0), [0], [0, 0], np.array([True, False, False])])
def test_one_robot_may_be_named_in_any_way(form):
    policy = policy_of()
    policy.plan(seen(0, ROBOTS))
    policy.reset(robots=form)
    assert policy._warm.tolist() == [False, True, True]


@pytest.mark.parametrize("none", [[], torch.zeros(0), [False] * ROBOTS, np.zeros(ROBOTS, bool)])
@pytest.mark.parametrize("seed", [None, 5])
def test_a_reset_of_no_robot_does_nothing(none, seed):
    one, other = policy_of(), policy_of()
    for number in range(3):
        assert torch.equal(*(policy.plan(seen(number, ROBOTS)).actions for policy in (one, other)))
        one.reset(seed, robots=none)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"robots": 3}, ValueError, "robots: expected numbers from 0 to 2, as the last plan had them, got 3; pass"),
        ({"robots": [-1]}, ValueError, "robots: expected numbers from 0 to 2"),
        ({"robots": [True, False]}, ValueError, "robots: expected one boolean for each of 3 robots"),
        ({"robots": True}, ValueError, "robots: expected one boolean for each of 3 robots"),
        ({"robots": 1.0}, TypeError, "robots: expected numbers of robots of a batch, or a mask, got 1.0; pass a"),
        ({"robots": "first"}, TypeError, "robots: expected numbers"),
        ({"robots": [[0], [1]]}, TypeError, "robots: expected numbers"),
        ({"robots": slice(2)}, TypeError, "robots: expected numbers"),
        ({"seed": -1}, ValueError, "seed: expected"),
        ({"seed": True}, TypeError, "seed: expected"),
        ({"seed": 1.5}, TypeError, "seed: expected"),
        ({"seed": [0, 1]}, TypeError, "seed: .* pass robots= to reset for some robots only"),
        ({"seed": torch.tensor([True, False, False])}, TypeError, "seed: .* pass robots="),
        ({"seed": torch.Generator()}, TypeError, "seed: .* pass generator="),
        ({"generator": 3}, TypeError, "generator: expected Generator"),
        ({"seed": 3, "generator": torch.Generator()}, ValueError, "generator: .* pass one of them"),
    ],
)
def test_wrong_resets_are_named_and_change_nothing(given, error, says):
    one, other = policy_of(), policy_of()
    for policy in (one, other):
        policy.plan(seen(0, ROBOTS))
    with pytest.raises(error, match=says):
        one.reset(**given)
    assert torch.equal(*(policy.plan(seen(1, ROBOTS)).actions for policy in (one, other)))


def test_robots_may_be_given_seeds_before_the_first_plan():
    policy, scheduler = policy_of(model=Expert), scheduled()
    for robot in range(ROBOTS):
        policy.reset(40 + robot, robots=robot)
    actions = policy.plan(seen(0, ROBOTS)).actions
    for robot in range(ROBOTS):
        g = torch.Generator().manual_seed(40 + robot)
        expected = sequential(Expert(scheduler), scheduler, seen(0, ROBOTS)[robot : robot + 1], g)
        torch.testing.assert_close(actions[robot : robot + 1], expected, rtol=0, atol=1e-4)


def test_a_batch_without_a_robot_that_has_a_seed_is_refused():
    policy = policy_of()
    policy.plan(seen(0, ROBOTS))
    policy.reset(5, robots=[2])
    with pytest.raises(ValueError, match=r"observation: expected at least 3 robots, .* got 2; pass all of them, or"):
        policy.plan(seen(1, 2))
    policy.reset(5)
    policy.plan(seen(1, 2))


@settings(max_examples=15)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.sampled_from(list(KINDS)))
def test_batches_may_change_their_size(sizes, kind):
    policy, scheduler, g = policy_of(kind, Expert), scheduled(kind), torch.Generator().manual_seed(3)
    for number, size in enumerate(sizes):
        expected = sequential(Expert(scheduler), scheduler, seen(number, size), g)
        assert float((policy.plan(seen(number, size)).actions - expected).abs().max()) <= 1e-4
        policy._model._model.calls.clear()


# ---- who disturbs whom


@settings(max_examples=25)
@given(robots, st.integers(0, 2), st.sampled_from(list(KINDS)))
def test_a_broken_observation_disturbs_no_other_robot(broken, when, kind):
    one, other, others = policy_of(kind), policy_of(kind), [n for n in range(ROBOTS) if n not in broken]
    for number in range(4):
        observation = seen(number, ROBOTS)
        expected = other.plan(observation)
        if number != when:
            plan = one.plan(observation)
            assert plan.converged
            assert not plan.failed.any()
            torch.testing.assert_close(plan.actions, expected.actions, rtol=0, atol=1e-5)
        else:
            observation[sorted(broken), 0] = torch.nan
            plan = one.plan(observation, throw=False)
            assert not plan.converged
            assert plan.solution.result is ps.Result.nonfinite
            assert plan.failed.nonzero().flatten().tolist() == sorted(broken)
            assert bool(plan.actions[sorted(broken)].isnan().all())
        assert torch.equal(plan.actions[others], expected.actions[others])


def test_where_a_robot_fails_the_error_has_the_plans_of_the_others():
    one, other = policy_of(), policy_of()
    for policy in (one, other):
        policy.plan(seen(0, ROBOTS))
    observation = seen(1, ROBOTS)
    observation[1] = torch.nan
    expected = other.plan(seen(1, ROBOTS)).actions
    with pytest.raises(
        ps.SolveError, match=r"of plan 1, .* not finite: check the observation.* pass throw=False"
    ) as error:
        one.plan(observation)
    assert torch.equal(error.value.solution.ys[-1][[0, 2]], expected[[0, 2]])
    actions = [policy.plan(seen(2, ROBOTS)).actions[[0, 2]] for policy in (one, other)]
    assert torch.equal(*actions)  # their next plans start from these


@pytest.mark.parametrize("wrong", [lambda x: x[:-1], lambda x: x[..., :1], lambda x: None])
def test_a_call_that_fails_leaves_the_policy_as_it_was(wrong):
    one, other = policy_of(), policy_of()
    for policy in (one, other):
        policy.plan(seen(0, ROBOTS))
        policy.reset(9, robots=[1])
    model, one._model._model = one._model._model, lambda x, t, observation: wrong(x)
    with pytest.raises(ValueError, match="model: expected to return shape"):
        one.plan(seen(1, ROBOTS))
    one._model._model = model
    assert torch.equal(*(policy.plan(seen(1, ROBOTS)).actions for policy in (one, other)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64, torch.bool])
def test_observations_reach_the_model_in_their_own_type(dtype):
    seen_by_model = []

    def model(x, t, observation):
        seen_by_model.append(observation["a"].dtype)
        return 0.1 * x

    scheduler = scheduled("DDIM")
    policy = ParallelPolicy(model, scheduler, SHAPE, dtype=torch.float64)
    for kind in (dtype, torch.float64):  # may change, too
        assert policy.plan({"a": torch.ones(2, SEEN, dtype=kind)}).actions.dtype == torch.float64
    assert set(seen_by_model) == {dtype, torch.float64}


def test_observations_on_two_devices_are_refused():
    with pytest.raises(ValueError, match=r"observation: expected tensors on one device, got cpu, meta; move"):
        policy_of().plan((torch.zeros(2, SEEN), torch.zeros(2, SEEN, device="meta")))


def test_actions_are_expected_where_the_last_plan_left_them_up_to_the_whole_horizon():
    for executed in (1, SHAPE[0] - 1, SHAPE[0]):
        policy = policy_of("DDIM", executed=executed)
        before = policy.plan(seen(0)).actions[0]
        left = [before[min(n + executed, SHAPE[0] - 1)] for n in range(SHAPE[0])]
        assert torch.equal(policy._expected().reshape(SHAPE), torch.stack(left))


def test_a_spread_changes_rounds_alone_however_large():
    plans = [policy_of(spread=spread).plan(seen(0)).actions for spread in (0.0, 0.1, 1e200, torch.inf)]
    for one, other in pairwise(plans):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_a_budget_that_ends_in_a_narrowed_window_gives_the_predicted_plan():
    """Changes that grow tenfold narrow the window: the states that it reaches then are noise still."""
    scheduler = DDPMScheduler(**COSINE, clip_sample=False)
    scheduler.set_timesteps(20)
    expert, calls = Expert(scheduler), []

    def wild(x, t, observation):
        out = torch.sinh(0.05 * (x.flatten(1) @ expert.inner.double())).view(x.shape)
        calls.append((x, t, out))
        return out

    plan = ParallelPolicy(wild, scheduler, SHAPE, dtype=torch.float64, max_rounds=3).plan(seen(0))
    assert int(plan.solution.history[-1].width) < 15
    assert not plan.converged
    assert bool(plan.certificate.error[-1].isnan().all())  # not known
    x, t, out = (value[-1] for value in calls[-1])
    alpha_bar = expert.alpha_bar[t]
    torch.testing.assert_close(plan.actions[0], (x - (1 - alpha_bar).sqrt() * out) / alpha_bar.sqrt())
