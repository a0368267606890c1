"""`odeint` against torchdiffeq: the same values to rounding on the same fixed grid."""

import pytest
import torch
import torchdiffeq
from hypothesis import given, settings
from hypothesis import strategies as st

import picardsolve as ps

METHODS = ["euler", "heun2", "rk4"]
EXACT = {"rtol": 0.0, "atol": 0.0}  # the sequential answer itself, whatever the number of rounds
ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-14}

methods = st.sampled_from(METHODS)
dtypes = st.sampled_from([torch.float32, torch.float64])


def pendulum(t, y):
    """Of one state and one time, or of many: state (angle, velocity) in the last dimension."""
    angle, velocity = y[..., 0], y[..., 1]
    return torch.stack([velocity, torch.cos(t.reshape(angle.shape)) - torch.sin(angle) - 0.1 * velocity], -1)


Y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
T = torch.linspace(0.0, 2.0, 9, dtype=torch.float64)


def same(ours, theirs, dtype=torch.float64):
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=20 * ROUNDING[dtype])


@st.composite
def times(draw):
    """Times at a least distance, increasing or decreasing, beginning anywhere."""
    steps = draw(st.lists(st.floats(0.01, 0.3), min_size=1, max_size=12))
    t = draw(st.floats(-2.0, 2.0)) + torch.tensor([0.0, *steps], dtype=torch.float64).cumsum(0)
    return t.flip(0) if draw(st.booleans()) else t


@settings(max_examples=40, deadline=None)
@given(t=times(), method=methods, dtype=dtypes, vectorized=st.booleans(), window=st.integers(1, 16))
def test_the_values_are_torchdiffeqs(t, method, dtype, vectorized, window):
    y0, t = Y0.to(dtype), t.to(dtype)
    options = {"vectorized": vectorized, "window": window}
    ours = ps.odeint(pendulum, y0, t, method=method, options=options, **EXACT)
    theirs = torchdiffeq.odeint(pendulum, y0, t, method=method)
    assert ours.dtype == dtype
    assert torch.equal(ours[0], y0)
    same(ours, theirs, dtype)


@settings(max_examples=15, deadline=None)
@given(t=times(), method=methods)
def test_the_default_tolerances_are_close_to_torchdiffeq(t, method):
    ours = ps.odeint(pendulum, Y0, t, method=method)
    torch.testing.assert_close(ours, torchdiffeq.odeint(pendulum, Y0, t, method=method), rtol=1e-6, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(pieces=st.integers(0, 4), method=methods, backward=st.booleans(), vectorized=st.booleans())
def test_step_size_refines_the_grid_but_not_the_result(pieces, method, backward, vectorized):
    """Steps that are powers of two, so that torchdiffeq's grid meets the times and interpolates nothing."""
    t, step = (T.flip(0) if backward else T), 0.25 / 2**pieces
    options = {"step_size": step, "vectorized": vectorized}
    ours = ps.odeint(pendulum, Y0, t, method=method, options=options, **EXACT)
    theirs = torchdiffeq.odeint(pendulum, Y0, t, method=method, options={"step_size": step})
    assert ours.shape == (9, 2)
    same(ours, theirs)


def test_step_size_cuts_uneven_intervals_into_equal_steps_no_longer():
    seen = []

    def drift(t, y):
        seen.extend(t.flatten().tolist())
        return pendulum(t, y)

    t = torch.tensor([0.0, 0.25, 1.0, 1.0625], dtype=torch.float64)
    options = {"vectorized": True, "step_size": 0.2}
    ours = ps.odeint(drift, Y0, t, method="euler", options=options, **EXACT)
    grid = torch.tensor([0, 0.125, 0.25, 0.4375, 0.625, 0.8125, 1.0, 1.0625], dtype=torch.float64)
    assert sorted(set(seen)) == grid[:-1].tolist()
    same(ours, torchdiffeq.odeint(pendulum, Y0, grid, method="euler")[[0, 2, 6, 7]])


@pytest.mark.parametrize("method", METHODS)
def test_a_step_size_longer_than_every_interval_changes_nothing(method):
    wide = ps.odeint(pendulum, Y0, T, method=method, options={"step_size": 5.0}, **EXACT)
    assert torch.equal(wide, ps.odeint(pendulum, Y0, T, method=method, **EXACT))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("options", [{}, {"step_size": 0.125}])
def test_a_tuple_of_states_of_different_shapes(method, backward, options):
    def coupled(t, y):
        matrix, scalar = y
        return matrix.tanh() * scalar - t, -scalar + matrix.sum() * t.cos()

    y0 = (torch.arange(6.0, dtype=torch.float64).reshape(2, 3) / 6, torch.tensor(0.5, dtype=torch.float64))
    t = T.flip(0) if backward else T
    ours = ps.odeint(coupled, y0, t, method=method, options=options, **EXACT)
    theirs = torchdiffeq.odeint(coupled, y0, t, method=method, options=options)
    assert isinstance(ours, tuple)
    for mine, other, start in zip(ours, theirs, y0, strict=True):
        assert mine.shape == (9, *start.shape)
        assert torch.equal(mine[0], start)
        same(mine, other)


@pytest.mark.parametrize("method", METHODS)
def test_a_vectorized_tuple(method):
    def swap(t, y):
        return t * y[1], -t * y[0]

    y0 = (Y0, 2 * Y0)
    ours = ps.odeint(swap, y0, T, method=method, options={"vectorized": True}, **EXACT)
    same(ours, torchdiffeq.odeint(swap, y0, T, method=method))


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 2), (2, 1, 3)])
@pytest.mark.parametrize("vectorized", [False, True])
def test_a_state_of_any_shape_is_one_system(shape, vectorized):
    y0 = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    options = {"vectorized": vectorized}
    ours = ps.odeint(lambda t, y: t - y.sin(), y0, T, method="rk4", options=options, **EXACT)
    assert ours.shape == (9, *shape)
    same(ours, torchdiffeq.odeint(lambda t, y: t - y.sin(), y0, T, method="rk4"))


@pytest.mark.parametrize("vectorized", [False, True])
def test_what_the_function_is_called_with(vectorized):
    seen = []

    def drift(t, y):
        seen.append((tuple(t.shape), tuple(y.shape)))
        return -y

    ps.odeint(drift, torch.ones(3, 2), T, method="euler", options={"vectorized": vectorized, "window": 4})
    if vectorized:
        assert all(t == (y[0], 1, 1) and y[1:] == (3, 2) for t, y in seen)
        assert max(y[0] for _, y in seen) >= 4
    else:
        assert set(seen) == {((), (3, 2))}  # what vmap shows: one state and a 0-d time


def test_the_options_reach_the_solve(capfd):
    rows = []

    def drift(t, y):
        rows.append(len(y))
        return pendulum(t, y)

    options = {"vectorized": True, "window": 6, "max_batch": 2, "progress": True}
    options |= {"iteration": ps.Jacobi(), "guess": ps.Copy()}
    given_options = dict(options)
    ours = ps.odeint(drift, Y0, T, method="rk4", options=options, **EXACT)
    same(ours, torchdiffeq.odeint(pendulum, Y0, T, method="rk4"))
    assert options == given_options  # the caller's dict is left alone
    assert max(rows) == 2
    assert "8/8" in capfd.readouterr().err


def test_fewer_calls_than_torchdiffeq():
    def count(solver, **given_):
        calls = []
        solver(lambda t, y: (calls.append(None), pendulum(t, y))[1], Y0, fine, method="rk4", **given_)
        return len(calls)

    fine = torch.linspace(0.0, 2.0, 129, dtype=torch.float64)
    ours = count(ps.odeint, options={"vectorized": True, "window": 128})
    assert count(torchdiffeq.odeint) == 4 * 128
    assert ours < 4 * 128 / 5


def test_a_network_is_a_drift():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    theirs = torchdiffeq.odeint(lambda t, y: network(y), Y0, T, method="rk4").detach()
    for vectorized in (False, True):
        options = {"vectorized": vectorized}
        ours = ps.odeint(lambda t, y: network(y), Y0, T, method="rk4", options=options, **EXACT)
        same(ours.detach(), theirs)


def test_times_may_be_a_list():
    assert torch.equal(
        ps.odeint(pendulum, Y0, T.tolist(), method="rk4", **EXACT), ps.odeint(pendulum, Y0, T, method="rk4", **EXACT)
    )
