"""The width that pays, against a fake clock: what is chosen, what trying costs, and that no answer depends on it."""

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from cases import Case, any_case, assert_close, company, denoiser_cases, iterations, ode_cases, sde_cases, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

import picardsolve as ps
from picardsolve.fixed_point.automatic_width import Pace

# ---- the choice by itself


@dataclass(frozen=True)
class Machine:
    """Rounds of w steps take ``1 + b w`` and accept ``k sqrt(w)`` of them, at least one and at most w."""

    b: float
    k: float

    def seconds(self, width: int) -> float:
        return 1 + self.b * width

    def stride(self, width: int) -> float:
        return min(width, max(1.0, self.k * math.sqrt(width)))

    def a_step(self, width: int) -> float:
        return self.seconds(width) / self.stride(width)

    def best(self, most: int) -> float:
        return min(map(self.a_step, range(1, most + 1)))


def run(machine: Machine, pace: Pace, steps: int, noise: float = 0.0, seed: int = 0) -> tuple[float, list[int]]:
    """The time that a solve takes, and the widths of its rounds. A window widens a round late, and ends at the grid's.

    Up to ``noise`` of a round's time is added to it.
    """
    done, total, widths = 0.0, 0.0, []
    late = torch.rand(1000, generator=torch.Generator().manual_seed(seed)).tolist()
    held = pace.width
    while done < steps:
        width = min(held, pace.width, math.ceil(steps - done))
        held = pace.width
        spent = machine.seconds(width) * (1 + noise * late[len(widths) % len(late)])
        stride = min(machine.stride(width), steps - done)
        total, done = total + spent, done + stride
        widths.append(width)
        pace.note(width, stride, spent)
    return total, widths


machines = st.builds(
    Machine, st.floats(-4, 1).map(lambda x: 10**x), st.sampled_from([0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 4.0, 6.0])
)
mosts = st.sampled_from([1, 2, 3, 7, 16, 40, 100, 256])


@settings(max_examples=150)
@given(machines, mosts)
def test_what_is_settled_for_is_near_the_best(machine, most):
    """Within a quarter of the best width's rate, where some width is well worth it; else one step at a time may do.

    A width must promise more than it costs before it is tried, by a law that some methods exceed.
    """
    pace = Pace(most)
    total, widths = run(machine, pace, 3000)
    assert max(widths) <= most
    assert pace.settled
    gain = machine.a_step(1) / machine.best(most)
    assert machine.a_step(pace.width) <= machine.best(most) * (1.25 if gain > 1.6 else gain + 1e-9)
    assert total <= 1.1 * 3000 * machine.a_step(1)


@settings(max_examples=150)
@given(machines, mosts, st.sampled_from([100, 300, 1000]))
def test_trying_costs_little_where_nothing_pays(machine, most, steps):
    """Where a round accepts one step whatever its width: a few rounds of widths that promised more, then one by one.

    In all within a tenth, or, where so few steps are left that three rounds of any width cost as much, those rounds.
    """
    machine = replace(machine, k=0.0)
    pace = Pace(min(most, steps // 2))
    total, widths = run(machine, pace, steps)
    wide = [width for width in widths if width > 1]
    assert pace.settled
    assert machine.a_step(pace.width) <= 1.01 * machine.a_step(1)  # wider costs nothing where it does not end at one
    assert total <= 1.1 * steps * machine.seconds(1) or len(wide) <= 7
    if steps == 1000:
        assert total <= 1.1 * steps * machine.seconds(1)


def test_a_width_of_two_is_judged_before_it_is_kept():
    """It is tried to see how long it takes, and then accepts nothing more than one step."""
    machine, pace = Machine(0.1, 0.0), Pace(2)
    run(machine, pace, 20)
    assert pace.settled
    assert pace.width == 1


def test_a_window_that_never_gets_as_wide_is_judged_as_it_is():
    """Near the end of a grid, or where it diverges: a round then takes fewer steps than were asked for."""
    machine, pace, tried = Machine(0.1, 0.0), Pace(64), []
    while not pace.settled:
        tried.append(min(pace.width, 20))
        pace.note(tried[-1], 1, machine.seconds(tried[-1]))
        assert len(tried) < 12
    assert pace.width == 1


@given(machines)
def test_a_first_width_waits_for_its_window(machine):
    """Where a width is given to begin with, the round of the first step alone does not count for it."""
    pace = Pace(64, 8)
    pace.note(1, 1, machine.seconds(1))
    assert pace.width == 8
    for _ in range(2):
        pace.note(8, machine.stride(8), machine.seconds(8))
        assert (pace.width, pace.settled) == (8, False)


@settings(max_examples=100)
@given(machines, mosts, seeds)
def test_noisy_times(machine, most, seed):
    """Rounds that take up to half as long again by chance: still never much slower than one step at a time."""
    pace = Pace(most)
    total, widths = run(machine, pace, 3000, noise=0.5, seed=seed)
    assert max(widths) <= most
    assert pace.settled
    assert total <= 1.5 * 1.25 * 3000 * machine.a_step(1)


@given(machines, st.integers(2, 100), st.data())
def test_a_limit_holds_from_now_on(machine, most, data):
    pace, limits = Pace(most), []
    for _ in range(30):
        width = pace.width
        limits.append(data.draw(st.integers(0, 120)))
        pace.limit(limits[-1])
        pace.note(width, machine.stride(width), machine.seconds(width))
        assert 1 <= pace.width <= max(1, limits[-1])
        assert pace.width <= most


# ---- solves with window="auto"


class Clock:
    """A time that passes only in the drift: ``1 + b rows`` for every call."""

    def __init__(self):
        self.now, self.b, self.calls = 0.0, 0.0, 0

    def __call__(self) -> float:
        return self.now

    def slowed(self, case: Case) -> Case:
        term = case.term
        name = "model" if isinstance(term, ps.Denoiser) else "drift"
        inner = getattr(term, name)

        def timed(first, second, *more, **named):
            rows = len(first) if name == "model" else len(second)
            self.now += 1 + self.b * rows
            self.calls += 1
            return inner(first, second, *more, **named)

        return replace(case, term=replace(term, **{name: timed}))


@pytest.fixture(scope="module")
def clock():
    made = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys.modules["picardsolve.fixed_point.automatic_width"], "perf_counter", made
        )  # ps.solve is the function
        yield made


def check(case: Case, sol: ps.Solution, ref: ps.Solution) -> None:
    assert sol.result is ref.result is ps.Result.converged
    assert_close(sol.ys, ref.ys, case.rounding(ref.ys))


costs = st.sampled_from([0.0, 0.01, 0.2, 10.0])  # from free rows to none that pay


@settings(max_examples=30)
@given(st.data())
def test_auto_gives_the_sequential_answer(clock, data):
    """Whatever it decides, for every kind of problem: steps of any memory and noise, samples apart, in chunks."""
    case = data.draw(st.one_of(any_case(), company().map(lambda drawn: drawn[0]), denoiser_cases((ps.DPMSolver(3),))))
    clock.b = data.draw(costs)
    how: dict[str, Any] = {"window": "auto", "iteration": data.draw(iterations), "tol": 0}
    how |= {
        "max_batch": data.draw(st.sampled_from([None, 1, 5])),
        "stop": data.draw(st.sampled_from(["error", "increment"])),
    }
    ref, timed = case.sequential(), clock.slowed(case)
    sol = timed.solve(**how)
    if "args" in case.given:  # a faster drift amplifies rounding beyond the bound
        assert_close(sol.ys[:, 0], ref.ys[:, 0], case.rounding(ref.ys[:, 0]))
    else:
        check(case, sol, ref)
    assert sol.stats.steps == case.steps
    assert sol.stats.rounds <= case.steps * case.stages
    last = timed.solve(**how, save="last")
    assert torch.equal(last.ys, sol.ys[-1:])
    assert last.stats == sol.stats


@settings(max_examples=30)
@given(st.data())
def test_auto_counts_its_rounds_and_stops_where_they_end(clock, data):
    case = data.draw(st.one_of(ode_cases(), sde_cases(), denoiser_cases()))
    clock.b, k = data.draw(costs), data.draw(st.integers(1, case.steps))
    clock.calls, timed = 0, clock.slowed(case)
    sol = timed.solve(window="auto", tol=0, max_rounds=k * case.stages, throw=False)
    ref = case.sequential()
    assert sol.stats.calls == clock.calls == sol.stats.rounds <= k * case.stages
    assert_close(sol.ys[: k + 1], ref.ys[: k + 1], case.rounding(ref.ys))
    known = ~sol.ys.isnan()
    assert_close(sol.ys[known], ref.ys[known], case.rounding(ref.ys))
    assert sol.result is (ps.Result.converged if known.all() else ps.Result.max_rounds)


@pytest.mark.parametrize("stop", ["error", "increment"])
@given(data=st.data())
def test_auto_with_a_sample_that_fails(clock, stop, data):
    """At any step: in the first round, in a window, or when steps are taken one at a time."""
    case, _ = data.draw(company().filter(lambda drawn: isinstance(drawn[0].term, ps.ODE)))
    clock.b, fails = data.draw(costs), data.draw(st.integers(0, case.steps - 1))
    sick = data.draw(st.integers(0, len(case.y0) - 1))
    limit = torch.full((len(case.y0),), torch.inf, dtype=torch.float64)
    limit[sick] = (case.ts[fails] - case.ts[0]).abs()
    drift, (pace,) = case.term.drift, case.given["args"]

    def f(t, y, pace, limit):
        bad = ((t.flatten() - case.ts[0]).abs() >= limit).reshape(-1, *[1] * (y.dim() - 1))
        return torch.where(bad, torch.nan, drift(t, y, pace))

    ill = clock.slowed(replace(case, term=ps.ODE(f), given={"args": (pace, limit)}))
    sol, ref = ill.solve(window="auto", tol=1e-4, stop=stop, throw=False), ill.sequential(throw=False)
    assert sol.result is ref.result is ps.Result.nonfinite
    assert torch.equal(sol.ys.isnan(), ref.ys.isnan())
    with pytest.raises(ps.SolveError) as caught:
        ill.solve(window="auto", tol=1e-4, stop=stop)
    with pytest.raises(ps.SolveError) as expected:
        ill.sequential()
    assert (caught.value.step, caught.value.time) == (expected.value.step, expected.value.time)


@pytest.mark.parametrize(("b", "wide"), [(0.0, True), (10.0, False)])
@pytest.mark.parametrize("stop", ["error", "increment"])
def test_auto_is_parallel_where_rows_are_free_and_sequential_where_they_are_not(clock, b, wide, stop):
    clock.b, clock.now = b, 0.0
    case = Case(
        "slow decay",
        ps.ODE(lambda t, y: torch.sin(y + t) - y),
        torch.ones(3, dtype=torch.float64),
        torch.linspace(0, 2, 201),
        ps.Euler(),
        growth=1,
        weight=2,
    )
    sol = clock.slowed(case).solve(window="auto", tol=1e-6, stop=stop)
    spent, alone = clock.now, 200 * (1 + b)
    assert (sol.stats.rounds < 100) is wide
    assert (sol.stats.max_width > 2) is wide
    assert spent < (0.5 if wide else 1.1) * alone
    assert_close(sol.ys, case.sequential().ys, 1e-4)


@pytest.mark.parametrize("max_batch", [None, 6])
@given(data=st.data())
def test_auto_bounds_the_rows(clock, max_batch, data):
    """Three samples: as many rows as max_batch says, and of Parareal as many cores."""
    case = data.draw(ode_cases((torch.float64,), (3,)).filter(lambda case: case.stages == 1))
    clock.b = 0.0
    for iteration in (ps.Secant(), ps.Parareal()):
        sol = clock.slowed(case).solve(window="auto", tol=0, iteration=iteration, max_batch=max_batch)
        check(case, sol, case.sequential())
        assert sol.stats.max_width <= (max_batch or 256) // 3
        assert sol.stats.rounds <= case.steps


@pytest.mark.parametrize("window", ["wide", 0, 1.5, True])
def test_a_window_is_a_number_or_auto(window):
    with pytest.raises((TypeError, ValueError), match=r'^window: expected an integer >= 1 or "auto", got .*\.$'):
        ps.solve(ps.ODE(lambda t, y: y), torch.ones(2), [0.0, 1.0], integrator=ps.Euler(), window=window)


@pytest.mark.parametrize("stop", ["error", "increment"])
def test_auto_that_goes_on_one_step_at_a_time_is_exact(clock, stop):
    """What its first windows accepted within the tolerance is stepped over again: no error is left to grow."""
    clock.b, steps = 10.0, 400
    term, ts = ps.ODE(lambda t, y: y), ps.grids.uniform(0, 8, steps)
    case = Case("growing", term, torch.ones(3, dtype=torch.float64), ts, ps.Heun(), growth=3000.0, weight=8.0)
    ref, sol = case.sequential(), clock.slowed(case).solve(window="auto", tol=1e-4, stop=stop)
    assert_close(sol.ys, ref.ys, case.rounding(ref.ys))
    assert float(sol.certificate.error.max()) == 0
    assert sol.certificate.verify().holds
    assert sol.stats.rounds <= 1.2 * ref.stats.rounds
    assert sol.stats.evaluations <= 1.3 * ref.stats.evaluations


@pytest.mark.parametrize("cost", [0.2, 0.5, 10.0])
@pytest.mark.parametrize("steps", [60, 200, 1000])
def test_auto_that_goes_on_one_step_at_a_time_keeps_to_max_rounds(clock, steps, cost):
    """Steps are taken again only where the limit has room for them: as many rounds as steps are enough."""
    clock.b = cost
    term, ts = ps.ODE(lambda t, y: torch.sin(t) - y), ps.grids.uniform(0, 5, steps)
    case = Case("settling", term, torch.ones(3, dtype=torch.float64), ts, ps.Euler(), growth=1.0, weight=5.0)
    sol = clock.slowed(case).solve(window="auto", tol=1e-4, max_rounds=steps)
    assert sol.result is ps.Result.converged
    assert sol.stats.rounds <= steps
