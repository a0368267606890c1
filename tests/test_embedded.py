"""Adaptive steps of embedded pairs: against scipy, closed forms, the bank, and each sample alone."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import PROBLEMS
from scipy.integrate import solve_ivp

import picardsolve as ps

METHODS = (ps.Dopri5(), ps.Tsit5(), ps.Dopri8())
methods = st.sampled_from(METHODS)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def solve(f, y0, ts, method=METHODS[0], **given):
    return ps.solve(ps.ODE(f), y0, ts, integrator=method, **given)


def network(seed: int, numbers: int, hidden: int = 16):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(numbers, hidden, generator=generator, dtype=torch.float64) / numbers**0.5
    second = torch.randn(hidden, numbers, generator=generator, dtype=torch.float64) / hidden**0.5
    return lambda t, y: torch.tanh(y @ first.to(y)) @ second.to(y) + 0.3 * torch.cos(t)


def reference(f, y0, ts):
    """By scipy to 1e-12, ``(T, *y0.shape)``."""

    def flat(t, y):
        return f(torch.tensor([[t]], dtype=torch.float64), torch.from_numpy(y)[None])[0].numpy()

    span = float(ts[0]), float(ts[-1])
    found = solve_ivp(flat, span, y0.numpy(), "DOP853", t_eval=ts.numpy(), rtol=1e-12, atol=1e-13)
    return torch.from_numpy(found.y.T.copy())


@settings(max_examples=12, deadline=None)
@given(
    method=methods,
    seed=st.integers(0, 1000),
    numbers=st.integers(1, 12),
    times=st.integers(2, 12),
    end=st.sampled_from([-3.0, 0.7, 5.0]),
    tolerance=st.sampled_from([1e-3, 1e-6, 1e-9]),
)
def test_states_at_all_times_are_within_the_tolerance(method, seed, numbers, times, end, tolerance):
    f, y0 = network(seed, numbers), torch.linspace(-1, 1, numbers, dtype=torch.float64)
    ts = torch.linspace(0.5, 0.5 + end, times, dtype=torch.float64)
    sol = solve(f, y0, ts, method, rtol=tolerance, atol=tolerance)
    assert sol.result is ps.Result.solved
    assert torch.equal(sol.ys[0], y0)
    between = torch.linspace(0.5, 0.5 + end, 17, dtype=torch.float64)
    for at, found, tolerances in ((ts, sol.ys, 3), (between, sol(between), 30)):  # between them nothing is promised
        exact = reference(f, y0, at)
        assert float(((found - exact).abs() / (tolerance * (1 + exact.abs()))).max()) <= tolerances


@settings(max_examples=8, deadline=None)
@given(method=methods, seed=st.integers(0, 1000), samples=st.integers(2, 9), tolerance=st.sampled_from([1e-4, 1e-8]))
def test_a_batch_gives_every_sample_what_it_gets_alone(method, seed, samples, tolerance):
    """With spans, directions, tolerances and arguments of their own; one of them breaks down."""
    generator = torch.Generator().manual_seed(seed)
    y0 = torch.randn(samples, 2, generator=generator, dtype=torch.float64)
    rate = 0.5 + 3 * torch.rand(samples, generator=generator, dtype=torch.float64)
    ends = torch.rand(samples, generator=generator, dtype=torch.float64) * 4 - 2
    ts = torch.stack([torch.zeros_like(ends), ends / 2, ends])
    atol = tolerance * (1 + torch.arange(samples).double())
    rate[-1] = torch.nan

    def f(t, y, rate):
        return torch.stack([y[:, 1] * rate, -rate * y[:, 0].sin()], -1)

    given_ = {"batch_dims": 1, "rtol": tolerance, "throw": False}
    together = solve(f, y0, ts, method, args=(rate,), atol=atol, **given_)
    for i in range(samples):
        alone = solve(f, y0[i : i + 1], ts[:, i], method, args=(rate[i : i + 1],), atol=atol[i : i + 1], **given_)
        torch.testing.assert_close(together.ys[:, i : i + 1], alone.ys, rtol=1e-12, atol=1e-12, equal_nan=True)
        torch.testing.assert_close(
            together.certificate.error[:, i], alone.certificate.error[:, 0], rtol=1e-4, atol=1e-15, equal_nan=True
        )
    assert together.result is ps.Result.nonfinite_drift
    assert together.ys[1:, :-1].isfinite().all()


def test_a_sample_that_is_over_costs_no_rows():
    rows = []

    def f(t, y):
        rows.append(len(y))
        return torch.stack([y[:, 1], -y[:, 0]], -1)

    ends = doubles(*[1.0] * 31, 100.0)
    solve(f, torch.ones(32, 2).double(), torch.stack([0 * ends, ends]), batch_dims=1, rtol=1e-6, atol=1e-6)
    assert np.median(rows) == 1
    assert max(rows[:10]) == 34  # with two rows that show whether the drift mixes its rows


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("name", ["lv", "kepler_0.7", "lorenz_5", "brusselator", "dahlquist_growing", "blow_up"])
def test_the_end_is_within_the_tolerance_however_errors_grow(name, method):
    problem = PROBLEMS[name]
    for tolerance in (1e-3, 1e-6):
        sol = solve(problem.f, problem.y0, problem.span, method, rtol=tolerance, atol=tolerance)
        error = float(((sol.ys[-1] - problem.y1).abs() / (tolerance * (1 + problem.y1.abs()))).max())
        assert error <= 10
        assert float((sol.certificate.error / sol.certificate.allowed).max()) <= 1


def test_the_estimate_is_a_few_times_the_error_at_sharp_tolerances():
    """Eight times, on purpose: where errors grow or cancel it has been as much too small."""
    for name in ("lv", "lorenz_5", "pendulum", "duffing"):
        problem = PROBLEMS[name]
        sol = solve(problem.f, problem.y0, problem.span, ps.Dopri5(), rtol=1e-9, atol=1e-9)
        error = float(((sol.ys[-1] - problem.y1).abs() / (1e-9 * (1 + problem.y1.abs()))).max())
        estimate = float(sol.certificate.error[-1] / sol.certificate.allowed[-1])
        assert 4 <= estimate / error <= 16, name


def test_stiffness_is_said_and_not_crawled_through():
    problem = PROBLEMS["prothero_robinson_1e6"]
    with pytest.raises(ps.SolveError, match=r"steps are predicted; t = .*picardsolve.Collocation\(\)") as error:
        solve(problem.f, problem.y0, problem.span, rtol=1e-6, atol=1e-6)
    assert error.value.solution.result is ps.Result.stiff_for_steps
    assert error.value.solution.stats.rounds < 1000


def test_a_pole_and_a_drift_that_ends_are_said():
    problem = PROBLEMS["blow_up"]
    with pytest.raises(ps.SolveError) as error:
        solve(problem.f, problem.y0, (0.0, 2.0), rtol=1e-6, atol=1e-6)
    assert error.value.solution.result in (ps.Result.diverged, ps.Result.unresolved, ps.Result.nonfinite_drift)
    assert error.value.time == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(ps.SolveError, match="the drift is not finite at t = 1") as error:
        solve(lambda t, y: torch.sqrt(1 - t) + 0 * y, doubles(1.0), (0.0, 2.0), rtol=1e-6, atol=1e-6)
    assert error.value.solution.result is ps.Result.nonfinite_drift


def test_the_options_of_steps_act():
    def seen(method, f=lambda t, y: -y, **given_):
        times = []

        def noted(t, y):
            times.extend(t.flatten().tolist())
            return f(t, y)

        return times, solve(noted, doubles(1.0), (0.0, 2.0), method, rtol=1e-4, atol=1e-4, **given_)

    times, sol = seen(ps.Dopri5(first_step=0.125))
    assert max(times[:7]) == 0.125
    times, sol = seen(ps.Dopri5(max_step=0.01))
    assert float(sol.dense.segments(0).diff().max()) <= 0.01 * (1 + 1e-9)
    times, sol = seen(ps.Dopri5(step_t=[0.3, 1.7]))
    assert {0.3, 1.7} <= set(sol.dense.segments(0).tolist())
    with pytest.raises(ps.SolveError, match="max_num_steps"):
        seen(ps.Dopri5(max_num_steps=2))
    rough, fine = (seen(ps.Dopri5(safety=safety, ifactor=2.0, dfactor=0.5))[1] for safety in (0.95, 0.3))
    assert fine.stats.steps > rough.stats.steps

    def jump(t, y):
        return torch.where(t < 1, -1.0, 1.0) * y

    with_jump, without = (seen(ps.Dopri5(jump_t=jumps), jump)[1] for jumps in ([1.0], None))
    assert float((with_jump.ys[-1] - 1).abs()) <= 1e-4
    assert with_jump.stats.rounds < without.stats.rounds
    assert float((with_jump(doubles(0.9, 1.1)) - math.exp(-0.9)).abs().max()) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.complex64, torch.complex128])
def test_dtypes(dtype):
    rate = 1j if dtype.is_complex else -1.0
    y0 = torch.ones(3, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.ConvergenceWarning)
        sol = solve(lambda t, y: rate * y, y0, (0.0, 1.0), tol=1e-2)
    assert sol.ys.dtype == dtype
    assert float((sol.ys[-1] - np.exp(rate)).abs().max()) <= 2e-2


def test_structures_and_second_order_equations():
    y0 = (doubles(1.0, 2.0), doubles(0.0, 0.5))
    term = ps.SecondOrderODE(lambda t, q: -q)
    sol = ps.solve(term, y0, (0.0, 2.0), integrator=ps.Dopri8(), tol=1e-9)
    exact = y0[0] * math.cos(2.0) + y0[1] * math.sin(2.0)
    torch.testing.assert_close(sol.ys[0][-1], exact, rtol=1e-8, atol=1e-8)
    again = ps.odeint(lambda t, y: (y[1], -y[0]), y0, doubles(0.0, 2.0), method="dopri8", rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(again[0][-1], exact, rtol=1e-8, atol=1e-8)


def test_only_the_last_state():
    f, y0 = network(1, 3), doubles(0.1, -0.2, 0.5)
    every, last = (solve(f, y0, (0.0, 1.0, 2.0), tol=1e-6, save=save) for save in ("all", "last"))
    assert torch.equal(last.ys, every.ys[-1:])
    assert torch.equal(last.ts, every.ts[-1:])


@pytest.mark.parametrize(
    ("given_", "kind", "said"),
    [
        ({"iteration": ps.Picard()}, TypeError, "^iteration: Dopri5 steps without iterating"),
        ({"window": 3}, ValueError, "^window: got 3, but Dopri5"),
        ({"guess": ps.Copy()}, ValueError, "^guess, stop: Dopri5"),
        ({"brownian": ps.BrownianPath(seed=0)}, ValueError, "^brownian: .* Dopri5"),
        ({"rtol": 1e-17, "atol": 0.0}, ValueError, "^rtol, atol: got 1e-17 .*pass rtol >="),
    ],
)
def test_what_does_not_belong_to_steps_is_refused(given_, kind, said):
    with pytest.raises(kind, match=said):
        solve(lambda t, y: -y, doubles(1.0), (0.0, 1.0), **given_)


def test_methods_that_are_refused():
    for name in ("first_step", "max_step", "min_step", "safety", "ifactor", "dfactor", "max_num_steps"):
        for value in (-1.0, math.nan, "small", True):
            with pytest.raises((TypeError, ValueError), match=f"^{name}: expected "):
                ps.Dopri5(**{name: value})
    with pytest.raises(ValueError, match="drop repeats"):
        ps.Dopri5(step_t=[1.0], jump_t=[1.0])


def test_odeint_takes_them_by_name():
    y0, t = doubles(1.0, 0.0), torch.linspace(0, 3, 5).double()
    for name in ("dopri5", "dopri8", "tsit5"):
        full = {"full_output": True, "safety": 0.8}
        ys, sol = ps.odeint(lambda t, y: torch.stack([y[1], -y[0]]), y0, t, method=name, options=full)
        assert "embedded pair" in sol.notes[0]
        torch.testing.assert_close(ys[:, 0], t.cos(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", [ps.Dopri5, ps.Dopri8, ps.Tsit5])
@pytest.mark.parametrize("start", [0.0, 0.3, 1e6])
def test_a_shortest_step_is_accepted_wherever_it_begins(method, start):
    """Also where rounding of times makes it longer by a last bit."""
    ts = [start, start + 3.0]
    term, y0 = ps.ODE(lambda t, y: -8 * y), torch.ones(1, dtype=torch.float64)
    given = {"integrator": method(min_step=0.2, first_step=0.05), "rtol": 1e-9, "atol": 1e-9}
    sol = ps.solve(term, y0, ts, throw=False, max_rounds=3000, **given)
    assert sol.stats.calls < 3000


def test_samples_of_a_batch_are_within_the_tolerance():
    """Pendulums about the top and eccentric orbits, whose errors grow unevenly: at most one in a hundred is beyond it.

    Measured: none of 576, 0.92 tolerances at most. By errors as they are estimated 75 were beyond it, 9.7 at most.
    """
    gen = torch.Generator().manual_seed(11)
    angle, speed, e = (torch.rand(32, generator=gen, dtype=torch.float64) for _ in range(3))
    pendulums = torch.stack([5 * angle - 2.5, 2 * speed - 1], 1)
    e = 0.1 + 0.6 * e
    orbits = torch.stack([1 - e, 0 * e, 0 * e, ((1 + e) / (1 - e)).sqrt()], 1)
    given = (
        (lambda t, y: torch.stack([y[..., 1], -torch.sin(y[..., 0])], -1), pendulums, 25.0),
        (
            lambda t, y: torch.cat([y[..., 2:], -y[..., :2] / y[..., :2].norm(dim=-1, keepdim=True) ** 3], -1),
            orbits,
            14.0,
        ),
    )
    for pair in (ps.Dopri5(), ps.Dopri8(), ps.Tsit5()):
        off = []
        for f, y0, end in given:
            ts, how = torch.tensor([0.0, end], dtype=torch.float64), {"batch_dims": 1}
            right = ps.solve(ps.ODE(f), y0, ts, integrator=ps.Dopri8(), rtol=1e-11, atol=1e-11, **how).ys[-1]
            for tol in (1e-3, 1e-5, 1e-7):
                found = ps.solve(ps.ODE(f), y0, ts, integrator=pair, rtol=tol, atol=tol, **how).ys[-1]
                off.append(((found - right).abs() / (tol * (1 + right.abs()))).amax(1))
        off = torch.cat(off)
        assert int((off > 1).sum()) <= len(off) // 100
        assert off.max() <= 3
