"""Events between adaptive steps: scipy's, as those of collocation."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from test_events import CASES, SHARP, double, event, first, oscillator

import picardsolve as ps


@pytest.mark.parametrize("method", [ps.Dopri5(), ps.Dopri8()], ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("name", CASES)
def test_events_are_scipys(name, method):
    drift, start, span, events = CASES[name]
    sol = ps.solve(ps.ODE(drift), double(*start), span, integrator=method, events=events, **SHARP)
    theirs = solve_ivp(
        lambda t, y: drift(None, torch.from_numpy(y)).numpy(), span, start, "DOP853", rtol=1e-12, atol=1e-13,
        events=events,
    )  # fmt: skip
    assert (sol.result is ps.Result.terminated) == (theirs.status == 1)
    for ours, ts, ys in zip(sol.events, theirs.t_events, theirs.y_events, strict=True):
        np.testing.assert_allclose(ours.ts.numpy(), ts, rtol=0, atol=2e-8)
        np.testing.assert_allclose(ours.ys.numpy(), ys.reshape(-1, len(start)), rtol=1e-8, atol=1e-7)
    if theirs.status == 1:
        assert sol.ys[-1].isnan().all()


def test_samples_have_their_own_events_and_ends():
    y0 = double(1.0, 0.0, 2.0, 0.5).reshape(2, 2)
    crossing = event(first, terminal=True)
    sol = ps.solve(ps.ODE(oscillator), y0, (0.0, 1.8), integrator=ps.Dopri5(), events=crossing, batch_dims=1, **SHARP)
    alone = [ps.solve(ps.ODE(oscillator), y, (0.0, 1.8), integrator=ps.Dopri5(), events=crossing, **SHARP) for y in y0]
    for i in range(2):
        assert torch.equal(sol.events[0][i].ts, alone[i].events[0].ts)
        torch.testing.assert_close(sol.ys[:, i], alone[i].ys, rtol=0, atol=0, equal_nan=True)


def test_what_fails_after_a_terminal_event_does_not_count():
    falls = event(lambda t, y: y[0] - 0.5, terminal=True)
    sol = ps.solve(ps.ODE(lambda t, y: -0.5 / y.sqrt()), double(1.0), (0.0, 9.0), integrator=ps.Dopri5(), events=falls)
    assert sol.result is ps.Result.terminated
    assert float(sol.events[0].ys[0, 0]) == pytest.approx(0.5, abs=1e-5)
