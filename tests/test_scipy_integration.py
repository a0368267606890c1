"""`ParallelCollocation` inside `solve_ivp`, against scipy's own solvers."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from picardsolve.integrations.scipy import ParallelCollocation

SHARP = {"rtol": 1e-11, "atol": 1e-12}
LESS = {"rtol": 1e-9, "atol": 1e-10}


def pendulum(t, y):
    return np.array([y[1], np.cos(t) - np.sin(y[0]) - 0.1 * y[1]])


def van_der_pol(t, y):
    return np.array([y[1], (1 - y[0] ** 2) * y[1] - y[0]])


def stiff(t, y):
    return np.array([y[1], 100 * (1 - y[0] ** 2) * y[1] - y[0]])


def ring(t, y):
    return -np.sin(y) + np.roll(y, 1, 0) / 2 - np.roll(y, -1, 0) / 2


def schroedinger(t, y):
    return -1j * np.array([y[0] + 0.5 * y[1] * np.cos(t), 0.5 * y[0] * np.cos(t) - y[1]])


def zero(t, y):
    return y[0]


PROBLEMS = {
    "driven": (pendulum, (0.0, 12.0), [1.0, 0.0], "DOP853"),
    "backward": (pendulum, (3.0, -4.0), [1.0, 0.0], "DOP853"),
    "stiff": (stiff, (0.0, 120.0), [2.0, 0.0], "Radau"),
    "without Jacobians": (ring, (0.0, 5.0), np.linspace(-1.0, 1.0, 80), "DOP853"),
    "complex": (schroedinger, (0.0, 6.0), [1.0 + 0j, 0.5j], "DOP853"),
}


@pytest.mark.parametrize(
    ("name", "vectorized"),
    [(name, lifted) for name in PROBLEMS for lifted in (True, False) if lifted or name != "stiff"],
)
def test_dense_output_and_chosen_times(name, vectorized):
    fun, span, y0, method = PROBLEMS[name]
    t = np.linspace(*span, 23)[1:]
    given_ = {"method": ParallelCollocation, "vectorized": vectorized, "rtol": 1e-8, "atol": 1e-9}
    ours = solve_ivp(fun, span, y0, t_eval=t, dense_output=True, **given_)
    theirs = solve_ivp(fun, span, y0, method, t_eval=t, **(LESS if name == "stiff" else SHARP))
    assert ours.success
    assert ours.t.tolist() == t.tolist()
    assert ours.y.dtype == theirs.y.dtype
    np.testing.assert_allclose(ours.y, theirs.y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours.sol(t), ours.y, rtol=1e-13, atol=1e-13)
    assert ours.sol(t[3]).shape == (len(y0),)


@settings(max_examples=10, deadline=None)
@given(end=st.floats(-0.8, 20.0), count=st.integers(1, 4), direction=st.sampled_from([-1, 0, 1]))
def test_events(end, count, direction):
    def crossing(t, y):
        return y[0]

    crossing.terminal, crossing.direction = count, direction
    y0 = [2.0, 0.1]
    given_ = {"events": [crossing, zero], "method": ParallelCollocation, "vectorized": True}
    ours = solve_ivp(van_der_pol, (0.0, end), y0, rtol=1e-9, atol=1e-10, **given_)
    theirs = solve_ivp(van_der_pol, (0.0, end), y0, "DOP853", events=[crossing, zero], **SHARP)
    assert ours.status == theirs.status
    assert ours.t[-1] == pytest.approx(theirs.t[-1], abs=1e-7)
    for mine, other, states in zip(ours.t_events, theirs.t_events, ours.y_events, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-7)
        np.testing.assert_allclose([state[0] for state in states], 0, atol=1e-7)


def test_far_fewer_calls_than_dop853_makes():
    ours = solve_ivp(van_der_pol, (0, 20), [2.0, 0.0], ParallelCollocation, vectorized=True, rtol=1e-9, atol=1e-11)
    calls = []
    solve_ivp(
        lambda t, y: (calls.append(t), van_der_pol(t, y))[1], (0, 20), [2.0, 0.0], "DOP853", rtol=1e-9, atol=1e-11
    )
    assert 20 * ours.nfev < len(calls)
    assert 0 < ours.njev == ours.nlu


def test_nfev_counts_calls():
    for vectorized in (True, False):
        calls = []

        def fun(t, y, calls=calls):
            calls.append(t)
            return pendulum(t, y)

        ours = solve_ivp(fun, (0, 3), [1.0, 0.0], ParallelCollocation, vectorized=vectorized)
        assert ours.nfev == len(calls)


def test_a_terminal_event_ends_what_would_end_badly():
    """The state has no value beyond t = 1."""

    def near(t, y):
        return y[0] - 1e3

    near.terminal = True
    ours = solve_ivp(lambda t, y: y**2, (0, 2), [1.0], ParallelCollocation, vectorized=True, events=near, rtol=1e-9)
    assert ours.status == 1
    assert ours.t[-1] == pytest.approx(1 - 1e-3, rel=1e-6)


@pytest.mark.parametrize(
    ("fun", "said"),
    [(lambda t, y: y**2, "step size"), (lambda t, y: np.sqrt(0.5 - t + 0 * y), "step size.*fun is not finite")],
)
def test_what_cannot_be_solved_ends_with_status_minus_one(fun, said):
    with np.errstate(all="ignore"):
        ours = solve_ivp(fun, (0, 2), [1.0], ParallelCollocation, vectorized=True)
    assert ours.status == -1
    assert not ours.success
    assert 0.4 < ours.t[-1] <= 1.001
    assert re.search(said, ours.message)


def test_a_function_that_mistakes_the_times_is_caught():
    def mixes(t, y):
        return y - np.mean(t)

    def branches(t, y):
        return y if t < 1 else -y

    with pytest.raises(ValueError, match="changes with the others"):
        solve_ivp(mixes, (0, 2), [1.0], ParallelCollocation, vectorized=True)
    with pytest.raises(ValueError, match=r"t of shape .*vectorized=False"):
        solve_ivp(branches, (0, 2), [1.0], ParallelCollocation, vectorized=True)
    with pytest.raises(ValueError, match="must return the shape of y"):
        solve_ivp(lambda t, y: y.sum(0), (0, 2), [1.0, 2.0], ParallelCollocation, vectorized=True)


def test_steps_and_arguments():
    ours = solve_ivp(lambda t, y: -y, (0, 2), [1.0], ParallelCollocation, max_step=0.25, first_step=0.1)
    assert np.diff(ours.t).max() <= 0.25 / 8 + 1e-12
    assert np.diff(ours.t)[0] == pytest.approx(0.1 / 8)
    with pytest.warns(UserWarning, match="jac: without effect"):
        solve_ivp(lambda t, y: -y, (0, 2), [1.0], ParallelCollocation, jac=[[-1.0]])
    with pytest.warns(UserWarning, match="rtol: .*too small"):
        solve_ivp(lambda t, y: -y, (0, 2), [1.0], ParallelCollocation, rtol=1e-18)
    with pytest.raises(ValueError, match=r"^iteration: "):
        solve_ivp(lambda t, y: -y, (0, 2), [1.0], ParallelCollocation, iteration="jacobi")
    assert solve_ivp(lambda t, y: -y, (1, 1), [1.0], ParallelCollocation).success
