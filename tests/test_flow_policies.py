"""Plans of flow policies against loops written as diffusers', lerobot's and openpi's are, with the same noise."""

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from test_policies import SHAPE, pytestmark, seen

import picardsolve as ps
from picardsolve.integrations.policies import FlowMatching, ParallelPolicy

__all__ = ["pytestmark"]  # the warnings of diffusers that are let pass there


class Velocity:
    """The velocity towards a sample that is a bounded function of the state and the observation.

    Args:
        rises: whether noise is at t = 0; else it is at t = 1.
        unit: what it is given for one unit of time.
    """

    def __init__(self, rises: bool, unit: float = 1.0):
        g = torch.Generator().manual_seed(0)
        size = SHAPE[0] * SHAPE[1]
        self.inner, self.outer = torch.randn(size, size, generator=g), torch.randn(3, size, generator=g)
        self.rises, self.unit, self.calls = rises, unit, []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(x))
        time = (t / self.unit).to(x)[:, None]
        noise, flat = (1 - time if self.rises else time), x.flatten(1)
        sample = torch.tanh(0.3 * (1 - noise) * flat @ self.inner.to(x) + observation.to(x) @ self.outer.to(x))
        away = (flat - (1 - noise) * sample) / (0.1 + 0.9 * noise) - sample
        return (-away if self.rises else away).view(x.shape)


def first(seed: int, batch: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stepped(v: Velocity, x: torch.Tensor, ts: torch.Tensor, integrator: Any, observation: Any) -> torch.Tensor:
    """The loop of a flow policy: Euler's as in lerobot and openpi, the others from their textbooks."""
    for start, end in zip(ts[:-1].tolist(), ts[1:].tolist(), strict=True):
        h = end - start

        def slope(y: torch.Tensor, t: float) -> torch.Tensor:
            return v(y, torch.full((len(y),), t, dtype=torch.float64), observation)

        k = slope(x, start)
        if integrator == ps.Midpoint():
            k = slope(x + h / 2 * k, start + h / 2)
        elif integrator == ps.Heun():
            k = (k + slope(x + h * k, end)) / 2
        elif integrator == ps.RK4():
            k2 = slope(x + h / 2 * k, start + h / 2)
            k3 = slope(x + h / 2 * k2, start + h / 2)
            k = (k + 2 * k2 + 2 * k3 + slope(x + h * k3, end)) / 6
        x = x + h * k
    return x


@settings(max_examples=10)
@given(
    st.sampled_from([ps.Euler(), ps.Midpoint(), ps.Heun(), ps.RK4()]),
    st.booleans(),
    st.integers(1, 20),
    st.sampled_from([1.0, 0.97]),
    st.integers(1, 3),
    st.sampled_from([0.0, 1e-3]),
    st.integers(0, 99),
)
def test_plans_are_those_of_the_loop_over_a_velocity_field(integrator, rises, steps, last, batch, tol, seed):
    """Two plans in a row, of which the second starts from the first, in either direction of time."""
    ts = ps.grids.uniform(0, last, steps) if rises else ps.grids.uniform(1, 1 - last, steps)
    v, g = Velocity(rises), torch.Generator().manual_seed(seed)
    flow = FlowMatching(ts, integrator)
    policy = ParallelPolicy(v, flow, SHAPE, executed=2, tol=tol, seed=seed, dtype=torch.float64)
    for number in range(2):
        observation = seen(number, batch)
        x = torch.randn(batch, *SHAPE, generator=g, dtype=torch.float64)
        plan, expected = policy.plan(observation), stepped(v, x, ts, integrator, observation)
        assert plan.converged
        assert plan.rounds <= (steps + 1) * len(integrator.tableau[1])
        assert float((plan.actions - expected).abs().max()) <= max(10 * tol, 1e-9)


eulers = st.fixed_dictionaries(
    {
        "shift": st.sampled_from([1.0, 3.0]),
        "stochastic_sampling": st.booleans(),
        "invert_sigmas": st.booleans(),
        "use_karras_sigmas": st.booleans(),
    }
).filter(lambda given: not (given["stochastic_sampling"] and given["invert_sigmas"]))
schedulers = st.one_of(
    st.builds(lambda c: FlowMatchEulerDiscreteScheduler(**c), eulers),
    st.builds(lambda shift: FlowMatchHeunDiscreteScheduler(shift=shift), st.sampled_from([1.0, 3.0])),
)


@settings(max_examples=10)
@given(schedulers, st.integers(1, 12), st.integers(1, 2), st.integers(0, 99))
def test_plans_are_those_of_the_flow_schedulers(scheduler, steps, batch, seed):
    scheduler.set_timesteps(steps)
    v = Velocity(bool(scheduler.config.get("invert_sigmas")), 1000.0)
    policy = ParallelPolicy(v, scheduler, SHAPE, executed=2, tol=1e-5, seed=seed)
    g = torch.Generator().manual_seed(seed)
    for number in range(2):
        scheduler.set_timesteps(steps)
        observation = seen(number, batch).float()
        x = torch.randn(batch, *SHAPE, generator=g)
        for t in scheduler.timesteps:
            x = scheduler.step(v(x, t.expand(batch), observation), t, x, generator=g).prev_sample
        plan = policy.plan(observation)
        assert plan.converged
        torch.testing.assert_close(plan.actions, x, rtol=0, atol=2e-4)


def test_calls_and_the_budget_count_stages():
    v = Velocity(True)
    policy = ParallelPolicy(v, FlowMatching(ps.grids.uniform(0, 1, 40), ps.Heun()), SHAPE)
    plan = policy.plan(seen(0).float())
    assert plan.rounds == len(v.calls)
    assert plan.evaluations == sum(v.calls)
    assert plan.rounds < 40
    v.calls.clear()
    early = ParallelPolicy(v, FlowMatching(ps.grids.uniform(0, 1, 40), ps.Heun()), SHAPE, max_rounds=5)
    assert early.plan(seen(0).float()).rounds == len(v.calls) == 4


def test_few_steps_say_that_they_do_not_pay():
    """A hundred steps of lerobot's flow policy, and the ten of openpi's."""
    notes = {}
    for steps in (10, 100):
        flow = FlowMatching(ps.grids.uniform(1, 0, steps))
        plan = ParallelPolicy(Velocity(False), flow, SHAPE).plan(seen(0).float())
        notes[steps] = [note for note in plan.solution.notes if note.startswith("few steps: ")]
        assert bool(notes[steps]) == (4 * plan.rounds > steps)
    assert notes[10]
    assert not notes[100]


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"ts": "uniform"}, TypeError, "ts: expected times"),
        ({"ts": [0.5]}, ValueError, "ts: expected times that rise or fall"),
        ({"ts": [0.0, 0.5, 0.5]}, ValueError, "ts: expected times that rise or fall"),
        ({"ts": [0.0, 1.5]}, ValueError, "within .0, 1."),
        ({"ts": [[0.0], [1.0]]}, ValueError, "ts: expected times that rise or fall"),
        ({"integrator": ps.BackwardEuler()}, TypeError, "integrator: expected"),
    ],
)
def test_wrong_flows_are_named(given, error, says):
    with pytest.raises(error, match=says):
        FlowMatching(**{"ts": [0.0, 1.0], **given})


def test_levels_that_do_not_fall_are_named():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[0.5, 0.5, 0.1])
    with pytest.raises(ValueError, match="scheduler: expected noise that falls in every step"):
        ParallelPolicy(Velocity(False, 1000.0), scheduler, SHAPE)
