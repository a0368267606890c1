"""`odeint` against torchdiffeq: the same values to rounding on the same fixed grid."""

import pytest
import torch
import torchdiffeq
from hypothesis import given, settings
from hypothesis import strategies as st

import picardsolve as ps

METHODS = ["euler", "midpoint", "heun2", "rk4"]
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


# adaptive: torchdiffeq's tolerance is kept, not its steps
ADAPTIVE = [None, "dopri5", "picard", "secant", "newton"]
SHARP = {"rtol": 1e-10, "atol": 1e-12}
ONE = torch.tensor(1.0, dtype=torch.float64)


@settings(max_examples=15, deadline=None)
@given(t=times(), method=st.sampled_from(ADAPTIVE), vectorized=st.booleans(), tolerance=st.sampled_from([1e-5, 1e-9]))
def test_adaptive_values_are_the_equations(t, method, vectorized, tolerance):
    options = {"vectorized": vectorized}
    ours = ps.odeint(pendulum, Y0, t, method=method, options=options, rtol=tolerance, atol=tolerance)
    assert torch.equal(ours[0], Y0)
    theirs = torchdiffeq.odeint(pendulum, Y0, t, method="dopri8", options={"step_t": t[1:]}, **SHARP)
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=5 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_the_defaults_are_adaptive_and_within_reach(dtype, shape):
    y0, t = torch.full(shape, 2.0, dtype=dtype), torch.linspace(1.0, -1.0, 7, dtype=dtype)
    ours = ps.odeint(lambda t, y: -t * y, y0, t)
    assert ours.dtype == dtype
    expected = 2 * torch.exp((1 - t.double() ** 2) / 2).reshape(7, *[1] * len(shape)).expand(7, *shape)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-7, atol=0.0)


def test_tuples_and_complex_numbers():
    def coupled(t, y):
        a, b = y
        return 1j * a + b.sum(), -b * t

    y0 = (torch.tensor(1.0 + 0j, dtype=torch.complex128), torch.ones(2, 3, dtype=torch.complex128))
    ours = ps.odeint(coupled, y0, T, **SHARP)
    theirs = torchdiffeq.odeint(coupled, y0, T, method="dopri8", options={"step_t": T[1:]}, **SHARP)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)


def test_tolerances_of_components_act_on_them_alone():
    """What is allowed of a component is its own tolerance; the worst component's is what the certificate shows."""
    full = {"options": {"full_output": True}}
    for loose in (0, 1):
        atol = torch.tensor([1e-10, 1e-10], dtype=torch.float64)
        atol[loose] = 1e-1
        exact = ps.odeint(pendulum, Y0, T, rtol=1e-12, atol=1e-12)
        ours, sol = ps.odeint(pendulum, Y0, T, rtol=0.0, atol=atol, **full)
        assert ((ours - exact).abs() <= 10 * atol).all()
        assert {1e-10, 1e-1} >= {float(f"{value:.2g}") for value in sol.certificate.allowed.tolist()}


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


ONE, PAIR = torch.ones(2, 3).double(), (Y0, torch.ones(3).double())


@pytest.mark.parametrize(
    ("y0", "asked", "meant"),
    [
        (Y0, {"atol": doubles(1e-9, 1e-3)}, {"atol": doubles(1e-9, 1e-3)}),
        (Y0, {"rtol": doubles(1e-9, 1e-3)}, {"rtol": doubles(1e-9, 1e-3)}),
        (ONE, {"atol": doubles(1e-9, 1e-6, 1e-3)}, {"atol": doubles(1e-9, 1e-6, 1e-3).expand(2, 3)}),
        (ONE, {"atol": doubles(1e-9, 1e-3)[:, None]}, {"atol": doubles(1e-9, 1e-3)[:, None].expand(2, 3)}),
        (PAIR, {"rtol": (1e-8, 1e-4)}, {"rtol": (1e-8, 1e-4)}),
        (PAIR, {"atol": doubles(1e-9, 1e-3)}, {"atol": (doubles(1e-9, 1e-9), doubles(1e-3, 1e-3, 1e-3))}),
        (PAIR, {"atol": (1e-9, doubles(1e-1, 1e-2, 1e-3))}, {"atol": (1e-9, doubles(1e-1, 1e-2, 1e-3))}),
    ],
)
@pytest.mark.usefixtures("nothing_is_decided_by_the_clock")
def test_tolerances_broadcast_as_in_torchdiffeq(y0, asked, meant):
    """Which takes these very arguments; `solve` has one value for each component, or for each part."""

    def decay(t, y):
        return tuple(-part for part in y) if isinstance(y, tuple) else -y

    usual = {"rtol": 1e-5, "atol": 1e-7}
    ours = ps.odeint(decay, y0, T, **usual | asked)
    same = ps.solve(ps.ODE(decay, vectorized=False), y0, T, integrator=ps.Adaptive(), **usual | meant).ys
    theirs = torchdiffeq.odeint(decay, y0, T, **usual | asked)
    for mine, other, reference in zip(
        *((x if isinstance(x, tuple) else (x,)) for x in (ours, same, theirs)), strict=True
    ):
        assert torch.equal(mine, other)
        torch.testing.assert_close(mine, reference, rtol=1e-2, atol=1e-1)


@pytest.mark.parametrize("atol", [torch.ones(3), (1e-9, 1e-9, 1e-9), torch.tensor([1e-9, -1.0])])
def test_tolerances_that_do_not_fit_are_refused(atol):
    with pytest.raises(ValueError, match=r"^atol: "):
        ps.odeint(pendulum, Y0, T, atol=atol)


def test_a_default_that_growth_puts_out_of_reach_is_loosened_with_a_warning():
    def lorenz(t, y):
        a, b, c = y[..., 0], y[..., 1], y[..., 2]
        return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)

    y0, t = torch.ones(3), torch.tensor([0.0, 14.0])
    with pytest.raises(ps.SolveError, match="what can be reached"):
        ps.odeint(lorenz, y0, t, rtol=1e-5)
    with pytest.warns(ps.ConvergenceWarning, match="within rtol=7.6e-04"):
        ys = ps.odeint(lorenz, y0, t)
    torch.testing.assert_close(ys[-1].double(), ps.odeint(lorenz, y0.double(), t)[-1], rtol=1e-3, atol=1e-2)


def test_torchdiffeqs_step_control_is_ignored_with_a_warning():
    with pytest.warns(UserWarning, match="'norm', 'safety' steer torchdiffeq's own steps"):
        ours = ps.odeint(pendulum, Y0, T, method="bosh3", options={"safety": 0.5, "norm": torch.max, "max_step": 0.5})
    torch.testing.assert_close(ours, ps.odeint(pendulum, Y0, T), rtol=1e-7, atol=1e-7)


def test_adaptive_options_reach_the_solve():
    options = {
        "nodes": "chebyshev",
        "order": 9,
        "in_flight": 2,
        "max_step": 0.5,
        "first_step": 0.1,
        "full_output": True,
    }
    states, solution = ps.odeint(pendulum, Y0, T, method="secant", options=options)
    assert solution.notes[0] == "secant iteration on 10 chebyshev nodes"
    assert solution.stats.steps >= 4
    assert torch.equal(states, solution.ys)
    with pytest.raises(ps.SolveError, match="limit of rounds"):
        ps.odeint(pendulum, Y0, T, options={"max_rounds": 3})


def test_what_vmap_cannot_lift_is_said_plainly():
    with pytest.raises(
        ValueError, match=r"could not be lifted by torch.func.vmap \(no `if` on values.*vectorized=True"
    ):
        ps.odeint(lambda t, y: -y if y.sum() > 0 else y, Y0, T)


def falls(t, y):
    """Position and velocity under gravity, as a tuple or a tensor."""
    if isinstance(y, tuple):
        return y[1], torch.full_like(y[1], -9.81)
    return torch.stack([y[1], torch.full_like(y[1], -9.81)])


EVENTS = {
    "one element": (Y0, 0.0, 1.0, lambda t, y: y[0]),
    "backward": (Y0, 0.0, -1.0, lambda t, y: y[0]),
    "the first of several elements": (Y0, 0.0, 1.0, lambda t, y: torch.stack([y[0], y[1] + 1.0, t - 5.0])),
    "long after the second time": (Y0, 1.0, 1.001, lambda t, y: y[0] + 20.0),
    "a tuple": ((Y0[:1], Y0[1:]), 0.0, 1.0, lambda t, y: y[0]),
    "at the start": (Y0, 0.0, 1.0, lambda t, y: y[0] - 1.0),
}


@pytest.mark.parametrize("name", EVENTS)
def test_events_are_torchdiffeqs(name):
    y0, begin, end, event_fn = EVENTS[name]
    t = torch.tensor([begin, end], dtype=torch.float64)
    at, states = ps.odeint(falls, y0, t, event_fn=event_fn, **SHARP)
    their_at, their_states = torchdiffeq.odeint(falls, y0, t, event_fn=event_fn, method="dopri8", **SHARP)
    assert at.shape == ()
    assert at.dtype == t.dtype
    torch.testing.assert_close(at, their_at, rtol=0.0, atol=1e-8)
    flat = (states, their_states) if isinstance(y0, tuple) else ((states,), (their_states,))
    for ours, theirs in zip(*flat, strict=True):
        assert ours.shape[0] == 2
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-7)


def test_torchdiffeqs_own_event_call_takes_our_solver_gradients_included():
    def landing(height, speed, t0):
        return t0 + (speed + (speed**2 + 2 * 9.81 * height) ** 0.5) / 9.81

    start = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64, requires_grad=True)  # height, speed, time
    at, states = torchdiffeq.odeint_event(
        falls, start[:2], start[2], event_fn=lambda t, y: y[0], odeint_interface=ps.odeint
    )
    expected = landing(*start)
    torch.testing.assert_close(at, expected, rtol=0.0, atol=1e-8)
    assert float(states[-1, 0].detach()) == pytest.approx(0.0, abs=1e-8)
    (ours,), (theirs,) = torch.autograd.grad(at, start), torch.autograd.grad(expected, start)
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-7)


def test_gradients_are_torchdiffeqs():
    network = torch.nn.Linear(2, 2).double()
    y0, t = Y0.clone().requires_grad_(), T.clone().requires_grad_()
    inputs, found = (y0, t, *network.parameters()), []
    for solver, given_ in ((ps.odeint, {}), (torchdiffeq.odeint, {"method": "dopri8", "options": {"step_t": T[1:]}})):
        ys = solver(lambda t, y: torch.tanh(network(y)) * t.cos(), y0, t, **SHARP, **given_)
        found.append(torch.autograd.grad((ys * torch.arange(18.0).reshape(9, 2)).sum(), inputs))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_an_event_that_never_happens_is_an_error():
    with pytest.raises(ps.SolveError, match=r"^event_fn: no element changed its sign up to t = 1e\+09"):
        ps.odeint(lambda t, y: 0 * y, Y0, torch.tensor([0.0, 1.0]), event_fn=lambda t, y: y[0])


@pytest.mark.parametrize("method", METHODS)
def test_times_of_a_fixed_grid_have_no_gradient_and_say_so(method):
    t = torch.linspace(0, 1, 5, requires_grad=True)
    start = torch.ones(2, requires_grad=True)
    ys = ps.odeint(lambda t, y: -y, start, t, method=method)
    with pytest.raises(RuntimeError, match=f"^gradient: not recorded with respect to t on the grid of '{method}'"):
        ys.sum().backward()
    ps.odeint(lambda t, y: -y, start, t.detach(), method=method).sum().backward()
    assert start.grad is not None


def test_times_of_an_adaptive_method_have_gradients():
    for method in (None, "newton", "dopri5"):
        t = torch.linspace(0, 1, 5, dtype=torch.float64).requires_grad_()
        ys = ps.odeint(lambda t, y: -y, torch.ones(1, dtype=torch.float64), t, method=method)
        ys[-1].sum().backward()
        assert t.grad is not None
        torch.testing.assert_close(
            t.grad[[0, -1]], torch.tensor([1.0, -1.0]).double() * torch.tensor(-1.0).double().exp()
        )
