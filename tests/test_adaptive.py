"""`Adaptive`: whatever its clock says, the tolerance is held; what it says decides what a solve costs."""

import time
import warnings

import pytest
import torch
from clocked import Clocked, clocked
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import picardsolve as ps
from picardsolve.adaptive import choice_solve

SHARP = {"integrator": ps.Dopri8(), "rtol": 1e-10, "atol": 1e-10}


def column(*parts: Tensor) -> Tensor:
    return torch.stack(parts, -1)


DRIFTS = {
    "decay": (lambda t, y: -y, 2, 1.0),
    "oscillator": (lambda t, y: column(y[..., 1], -y[..., 0]), 2, 9.0),
    "growth": (lambda t, y: 0.5 * y, 3, 4.0),
    "predators": (lambda t, y: column(y[..., 0] * (1 - y[..., 1]), y[..., 1] * (y[..., 0] - 1)), 2, 6.0),
    "forced": (lambda t, y: torch.cos(3 * t) - 2 * y, 12, 3.0),
    "lorenz": (
        lambda t, y: column(
            10 * (y[..., 1] - y[..., 0]),
            y[..., 0] * (28 - y[..., 2]) - y[..., 1],
            y[..., 0] * y[..., 1] - 8 / 3 * y[..., 2],
        ),
        3,
        0.7,
    ),
}


def starts(size: int, samples: int, seed: int) -> Tensor:
    shape = (samples, size)
    return 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def timed(monkeypatch, name: str, call: float, row: float) -> Clocked:
    return clocked(monkeypatch, DRIFTS[name][0], call, row)


def solve(drift, y0, span, tol=1e-5, **given) -> ps.Solution:
    how = {"integrator": ps.Adaptive(), "batch_dims": 1, "rtol": tol, "atol": tol}
    return ps.solve(ps.ODE(drift), y0, torch.linspace(0, span, 4, dtype=torch.float64), **(how | given))


@settings(max_examples=25)
@given(
    st.sampled_from(sorted(DRIFTS)),
    st.integers(1, 20),
    st.sampled_from([1e-3, 1e-5, 1e-8]),
    st.lists(st.floats(0, 0.1), min_size=1, max_size=60),
    st.integers(0, 2**31),
)
def test_whatever_the_clock_says_the_tolerance_is_held(name, samples, tol, ticks, seed):
    drift, size, span = DRIFTS[name]
    y0, steps = starts(size, samples, seed), iter(range(10**9))
    now = [0.0]

    def seconds() -> float:
        now[0] += ticks[next(steps) % len(ticks)]
        return now[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice_solve, "seconds", seconds)
        sol = solve(drift, y0, span, tol)
    exact = solve(drift, y0, span, **SHARP).ys
    off = ((sol.ys - exact).abs() / (tol + tol * exact.abs())).max()
    assert off <= 1, sol.notes
    assert sol.certificate.error.max() < 10


@pytest.mark.parametrize("name", ["predators", "forced"])
@pytest.mark.parametrize("samples", [1, 64])
@pytest.mark.parametrize(("call", "row"), [(0.05, 1e-6), (0.05, 1e-3), (0.0, 1e-3)])
def test_it_takes_hardly_longer_than_the_faster_one(monkeypatch, name, samples, call, row):
    """The seconds of drift calls that are so dear that nothing else counts."""
    size, span = DRIFTS[name][1:]
    y0, took = starts(size, samples, 0), {}
    for method in (ps.Adaptive(), ps.Collocation(), ps.Dopri5(), ps.Dopri8()):
        drift = timed(monkeypatch, name, call, row)
        solve(drift, y0, span, integrator=method)
        took[type(method).__name__] = drift.now
    assert took.pop("Adaptive") < 2.0 * min(took.values()), took


def test_free_rows_are_taken_by_collocation_and_dear_ones_by_steps(monkeypatch):
    y0 = starts(2, 64, 0)
    free = solve(timed(monkeypatch, "predators", 0.05, 0.0), y0, 6.0)
    dear = solve(timed(monkeypatch, "predators", 0.0, 1e-3), y0, 6.0)  # of an oscillator, collocation takes as few rows
    assert any(note.startswith("Collocation took over: ") for note in free.notes)
    assert any("nodes" in note for note in free.notes)
    assert any("embedded pair" in note for note in dear.notes)
    assert free.stats.calls < 30 < dear.stats.calls


@pytest.mark.parametrize("tol", [1e-3, 1e-8])
def test_collocation_is_not_left_when_it_is_almost_done(monkeypatch, tol):
    """Its last rounds have no segment in flight, which is no sign that few steps are left."""
    sol = solve(timed(monkeypatch, "predators", 0.05, 0.0), starts(2, 1, 5), 6.0, tol)
    alone = solve(timed(monkeypatch, "predators", 0.05, 0.0), starts(2, 1, 5), 6.0, tol, integrator=ps.Collocation())
    assert not any("took over" in note for note in sol.notes), sol.notes
    assert sol.stats.calls <= alone.stats.calls + 4  # some rows show what rows cost


def test_every_drift_call_is_counted(monkeypatch):
    for call, row in ((0.05, 0.0), (0.0, 1e-3), (0.01, 1e-4)):
        drift = timed(monkeypatch, "predators", call, row)
        sol = solve(drift, starts(2, 32, 1), 6.0)
        assert (sol.stats.calls, sol.stats.evaluations) == (len(drift.calls), sum(drift.calls))


def test_a_stiff_equation_is_left_to_collocation():
    y0 = torch.linspace(0.5, 1.5, 64, dtype=torch.float64)[:, None]
    sol = solve(lambda t, y: -1e6 * (y - torch.cos(t)) - torch.sin(t), y0, 2.0, 1e-6)
    assert any(note.startswith("Collocation took over: ") for note in sol.notes), sol.notes
    torch.testing.assert_close(sol.ys[-1], torch.full_like(y0, 2.0).cos(), rtol=1e-6, atol=1e-6)


def test_where_none_can_solve_it_the_error_carries_what_was_reached():
    with pytest.raises(ps.SolveError) as caught:
        solve(lambda t, y: y**2, torch.ones(1, 1, dtype=torch.float64), 2.0)
    solution = caught.value.solution
    assert solution.stats.calls > 0
    assert torch.isfinite(solution.ys[0]).all()
    assert not torch.isfinite(solution.ys[-1]).any()


@pytest.mark.parametrize("name", sorted(DRIFTS))
@pytest.mark.parametrize(("call", "row"), [(0.05, 0.0), (0.0, 1e-3)])
def test_gradients_are_those_of_the_equation(monkeypatch, name, call, row):
    size, span = DRIFTS[name][1:]
    found = []
    for method, tol in ((ps.Adaptive(), 1e-9), (ps.Dopri8(), 1e-12)):
        y0 = starts(size, 3, 4).requires_grad_()
        sol = solve(timed(monkeypatch, name, call, row), y0, span, tol, integrator=method)
        (gradient,) = torch.autograd.grad(sol.ys[-1].square().sum(), y0)
        found.append(gradient)
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("nothing_is_decided_by_the_clock")
def test_nothing_is_decided_by_the_clock_where_torch_is_deterministic():
    y0, found = starts(2, 5, 3), []
    for wait in (0.0, 0.01):

        def drift(t, y, wait=wait):
            time.sleep(wait)
            return DRIFTS["predators"][0](t, y)

        found.append(solve(drift, y0, 6.0, 1e-8))
    assert torch.equal(found[0].ys, found[1].ys)
    assert found[0].notes == found[1].notes


@pytest.mark.parametrize(("call", "row"), [(0.05, 0.0), (0.0, 1e-3)])
def test_events_and_the_last_state_only(monkeypatch, call, row):
    y0 = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    sol = solve(timed(monkeypatch, "oscillator", call, row), y0, 9.0, events=lambda t, y: y[..., 0], save="last")
    assert sol.ys.shape == (1, 2, 2)
    for occurrences in sol.events[0]:
        torch.testing.assert_close(occurrences.ts, torch.pi * torch.tensor([0.5, 1.5, 2.5]).double(), rtol=0, atol=1e-4)


def test_a_solve_by_several_devices_is_the_same():
    drift, size, span = DRIFTS["oscillator"]
    y0 = starts(size, 6, 0)
    torch.testing.assert_close(
        solve(drift, y0, span, 1e-8, devices=["cpu", "cpu"]).ys, solve(drift, y0, span, 1e-8).ys, rtol=1e-6, atol=1e-6
    )


def test_an_iteration_is_refused():
    with pytest.raises(TypeError, match=r"^iteration: Adaptive chooses its own, got Newton\(.*\); pass integrator="):
        solve(lambda t, y: -y, torch.ones(1, 2), 1.0, iteration=ps.Newton())


@pytest.mark.parametrize("name", ["first_step", "max_step"])
@pytest.mark.parametrize(
    ("value", "error"), [(0.0, ValueError), (-1.0, ValueError), ("1", TypeError), (True, TypeError)]
)
def test_a_wrong_length_is_refused(name, value, error):
    with pytest.raises(error, match=f"^{name}: expected a number > 0, got "):
        ps.Adaptive(**{name: value})


def lorenz(t, y):
    return DRIFTS["lorenz"][0](t, y)


@pytest.mark.parametrize("method", [ps.Collocation(), ps.Dopri5(), ps.Dopri8(), ps.Tsit5(), ps.Adaptive()])
@pytest.mark.parametrize(("span", "first"), [(12.0, 1.2), (14.0, 1.0)])
def test_in_single_precision_a_chaotic_solution_is_right_or_said_to_be_beyond(method, span, first):
    """Where rounding grows to the size of the tolerance."""
    y0, tol = torch.tensor([first, 1.0, 1.0]), 7.6e-4
    how = {"integrator": method, "rtol": tol, "atol": 1e-9, "batch_dims": 0}
    exact = solve(lorenz, y0.double(), span, **(SHARP | {"batch_dims": 0})).ys[-1]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        sol = solve(lorenz, y0, span, throw=False, **how)
    if sol.result is ps.Result.unreachable:
        return
    off = ((sol.ys[-1] - exact).abs() / (tol * exact.abs())).max()
    assert off <= 1 or sol.result is ps.Result.beyond
    assert (sol.result is ps.Result.beyond) == any("estimated error stays above" in str(one.message) for one in heard)
