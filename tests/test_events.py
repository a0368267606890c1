"""Events of `solve`, against scipy's and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import picardsolve as ps

SHARP = {"rtol": 1e-10, "atol": 1e-12}
GRAVITY = 9.81


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def event(function, terminal=None, direction=0):
    """A new function with scipy's attributes."""

    def own(t, y, *args):
        return function(t, y, *args)

    own.terminal, own.direction = terminal, direction
    return own


def ball(t, y):
    return torch.stack([y[..., 1], torch.full_like(y[..., 1], -GRAVITY)], -1)


def van_der_pol(t, y):
    return torch.stack([y[..., 1], (1 - y[..., 0] ** 2) * y[..., 1] - y[..., 0]], -1)


def kepler(t, y):
    q, v = y[..., :2], y[..., 2:]
    return torch.cat([v, -q / q.square().sum(-1, keepdim=True) ** 1.5], -1)


def oscillator(t, y):
    return torch.stack([y[..., 1], -y[..., 0]], -1)


def first(t, y):
    return y[0]


def second(t, y):
    return y[1]


def radial(t, y):
    return y[0] * y[2] + y[1] * y[3]


def branches(t, y):
    """What vmap cannot lift."""
    return math.sin(t) - 0.3 if y[0] > 0 else -1.0


PERIAPSIS = [0.5, 0.0, 0.0, math.sqrt(3.0)]
# what happens: (drift, start, span, events)
CASES = {
    "a ball's apex and ground": (
        ball, [0.0, 10.0], (0, 9), [event(second), event(first, terminal=True, direction=-1)]
    ),
    "a ball from the ground ends at once where both directions count": (
        ball, [0.0, 10.0], (0, 9), [event(first, terminal=True), event(second)]
    ),
    "a relaxation's zeros, by direction": (
        van_der_pol, [2.0, 0.0], (0, 20), [event(first), event(first, direction=1), event(first, direction=-1)]
    ),
    "a terminal count, before and after others": (
        van_der_pol, [2.0, 0.0], (0, 20), [event(second), event(first, terminal=3), event(first)]
    ),
    "half a period of an orbit": (kepler, PERIAPSIS, (0, 9), [event(radial, terminal=1, direction=-1)]),
    "backward": (
        van_der_pol, [2.0, 0.1], (3, -0.8), [event(first), event(second, terminal=True, direction=1)]
    ),
    "a function of time that branches": (oscillator, [1.0, 0.0], (0.5, 9), [event(branches)]),
    "no event": (oscillator, [1.0, 0.0], (0, 9), [event(lambda t, y: y[0] - 2.0, terminal=True)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_events_are_scipys(name):
    drift, start, span, events = CASES[name]
    sol = ps.solve(ps.ODE(drift), double(*start), span, integrator=ps.Collocation(), events=events, **SHARP)
    theirs = solve_ivp(
        lambda t, y: drift(None, torch.from_numpy(y)).numpy(), span, start, "DOP853", rtol=1e-12, atol=1e-13,
        events=events,
    )  # fmt: skip
    assert (sol.result is ps.Result.terminated) == (theirs.status == 1)
    assert len(sol.events) == len(events)
    for ours, ts, ys in zip(sol.events, theirs.t_events, theirs.y_events, strict=True):
        np.testing.assert_allclose(ours.ts.numpy(), ts, rtol=0, atol=2e-8)
        np.testing.assert_allclose(ours.ys.numpy(), ys.reshape(-1, len(start)), rtol=1e-8, atol=1e-7)
    if theirs.status == 0:
        np.testing.assert_allclose(sol.ys[-1].numpy(), theirs.y[:, -1], atol=1e-8)
    elif theirs.t[-1] != span[0]:
        assert sol.ys[-1].isnan().all()


@settings(max_examples=15, deadline=None)
@given(
    level=st.floats(-0.95, 0.95),
    phase=st.floats(0.0, 6.28),
    count=st.integers(1, 5),
    direction=st.sampled_from([-1, 0, 1]),
    sign=st.sampled_from([-1.0, 1.0]),
)
def test_a_sine_passes_a_level_when_it_should(level, phase, count, direction, sign):
    """With several passings in a segment, all seen, in order, and none after the last that was asked for."""
    angles = [
        angle + 2 * math.pi * k
        for k in range(-6, 6)
        for angle, rises in ((math.asin(level), 1), (math.pi - math.asin(level), -1))
        if direction in (0, rises * sign)
    ]
    times = sorted(sign * (angle - phase) for angle in angles)
    assume(min(abs(t - end) for t in times for end in (0.0, 20.0)) > 1e-5)
    times = [t for t in times if 0 < t < 20][:count]
    end = times[-1] if len(times) == count else 21.0

    start = double(math.sin(phase), math.cos(phase))
    ts = torch.linspace(0.0, 20.0 * sign, 41, dtype=torch.float64)
    asked = event(lambda t, y: y[0] - level, count, direction)
    sol = ps.solve(ps.ODE(oscillator), start, ts, integrator=ps.Collocation(), events=[asked], **SHARP)
    torch.testing.assert_close(sol.events[0].ts * sign, double(*times), rtol=0.0, atol=1e-7)
    assert (sol.result is ps.Result.terminated) == (end < 20)
    assert sol.ys[ts.abs() > end].isnan().all()
    assert sol.ys[ts.abs() < end - 1e-6].isfinite().all()
    assert sol([10.0 * sign, 20.0 * sign]).isnan()[:, 0].tolist() == [end < 10, end < 20]
    assert torch.equal(sol.certificate.error.isnan(), sol.ys[:, 0].isnan())


def lorenz(t, y):
    a, b, c = y.unbind(-1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


LORENZ = double(1.0, 1.0, 1.0)


def test_events_are_of_the_last_march():
    """Errors grow, so that it is solved again; the events are those of the sharper solution."""
    given_ = {"integrator": ps.Collocation(), "events": [event(first, terminal=6)]}
    rough = ps.solve(ps.ODE(lorenz), LORENZ, (0.0, 25.0), rtol=1e-5, atol=1e-5, **given_)
    sharp = ps.solve(ps.ODE(lorenz), LORENZ, (0.0, 25.0), rtol=1e-9, atol=1e-9, **given_)
    assert any("solved again" in note for note in rough.notes)
    assert len(sharp.events[0].ts) == 6
    torch.testing.assert_close(rough.events[0].ts, sharp.events[0].ts, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(rough.events[0].ys, sharp.events[0].ys, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("later", [19.5, 99.0])
def test_an_event_that_moves_beyond_the_span_it_left_is_not_lost(later):
    """At 19.0 in the first march, where it ends that; later, or never, in the next."""
    marches = []

    def moving(t, y):
        if float(t) == 0.0:
            marches.append(t)
        return float(t) - (19.0 if len(marches) == 1 else later)

    moving.terminal = True
    ts = torch.linspace(0.0, 20.0, 21, dtype=torch.float64)
    given_ = {"integrator": ps.Collocation(), "rtol": 1e-5, "atol": 1e-5}
    sol = ps.solve(ps.ODE(lorenz), LORENZ, ts, events=moving, **given_)
    assert len(marches) > 1
    assert sol.events[0].ts.tolist() == pytest.approx([later] if later < 20 else [])
    assert sol.ys.isfinite().all(1).tolist() == (ts <= later).tolist()
    reference = ps.solve(ps.ODE(lorenz), LORENZ, ts, integrator=ps.Collocation(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sol.ys[ts <= later], reference.ys[ts <= later], rtol=1e-4, atol=1e-4)


def test_samples_of_a_batch_have_their_own_events_args_and_times():
    rate, level = double(1.0, 2.0, 0.5), double(3.0, 3.0, 30.0)
    ts = torch.linspace(0.0, 2.0, 5, dtype=torch.float64)[:, None] + double(0.0, 1.0, 2.0)
    reached = event(lambda t, y, rate, level: y["a"].sum() - 2 * level, terminal=True)
    sol = ps.solve(
        ps.ODE(lambda t, y, rate, level: {"a": rate[:, None] * y["a"]}), {"a": torch.ones(3, 2, dtype=torch.float64)},
        ts, args=(rate, level), batch_dims=1, integrator=ps.Collocation(), events=reached, **SHARP,
    )  # fmt: skip
    times = double(math.log(3.0), 1 + math.log(3.0) / 2)
    assert [len(sample.ts) for sample in sol.events[0]] == [1, 1, 0]
    torch.testing.assert_close(torch.cat([sample.ts for sample in sol.events[0]]), times, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(sol.events[0][1].ys["a"], torch.full((1, 2), 3.0, dtype=torch.float64))
    assert sol.events[0][2].ys["a"].shape == (0, 2)
    assert torch.equal(sol.ys["a"].isnan().any(-1), ts > torch.cat([times, double(99.0)]))


def test_single_precision_locates_to_its_own_tolerance():
    start = torch.tensor([0.0, 1.0])
    sol = ps.solve(
        ps.ODE(oscillator), start, (0.0, 9.0), integrator=ps.Collocation(), rtol=1e-5, atol=1e-6, events=first
    )
    expected = math.pi * torch.arange(3, dtype=torch.float64)  # the start among them
    torch.testing.assert_close(sol.events[0].ts, expected, rtol=0.0, atol=1e-4)
    assert sol.events[0].ys.dtype == torch.float32


def test_a_terminal_event_saves_the_rest():
    calls = []

    def drift(t, y):
        calls.append(t.max())
        return oscillator(t, y)

    given_ = {"integrator": ps.Collocation(), **SHARP}
    whole = ps.solve(ps.ODE(drift), double(0.1, 1.0), (0.0, 1000.0), **given_)
    short = ps.solve(ps.ODE(drift), double(0.1, 1.0), (0.0, 1000.0), events=event(first, terminal=True), **given_)
    assert short.stats.rounds < whole.stats.rounds / 5


@pytest.mark.parametrize(
    ("events", "error", "said"),
    [
        (3, TypeError, "expected a function or a list of functions, got int"),
        ([3], TypeError, "expected a function, got int"),
        (event(first, terminal="yes"), TypeError, "terminal.*got 'yes'"),
        (event(first, terminal=-1), ValueError, "terminal.*got -1"),
        (event(first, direction="up"), TypeError, "direction.*got 'up'"),
        (event(lambda t, y: y), TypeError, r"returns one number.*got shape \(2,\)"),
        (event(lambda t, y: None), TypeError, "returns one number.*got NoneType"),
    ],
)
def test_what_is_no_event_is_refused(events, error, said):
    with pytest.raises(error, match=f"^events: .*{said}"):
        ps.solve(ps.ODE(oscillator), double(0.0, 1.0), (0.0, 1.0), integrator=ps.Collocation(), events=events)


def test_fixed_steps_have_no_events():
    with pytest.raises(ValueError, match=r"^events: .*Collocation\(\)"):
        ps.solve(ps.ODE(oscillator), double(0.0, 1.0), (0.0, 1.0), integrator=ps.Euler(), events=first)
