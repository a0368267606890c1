"""Times: a solve that begins at a time stamp is the one that begins at zero, and functions see times as they are."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import picardsolve as ps
from picardsolve.integrations.scipy import ParallelCollocation

pytestmark = pytest.mark.usefixtures("nothing_is_decided_by_the_clock")

OFFSETS = [0.0, 1e3, 1.7e9]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SPAN = 10.0
GRID = torch.linspace(0, SPAN, 201, dtype=torch.float64)
REACHED = {torch.float32: 1e-5, torch.float64: 1e-7, torch.bfloat16: 0.2}


def forced(offset):
    """``dy/dt = cos(t - t0) - y / 10``, of one state or many."""

    def f(t, y):
        return torch.cos(t - offset).to(y.dtype) - 0.1 * y

    return f


def quiet(t, y):
    return torch.zeros_like(y)


def noise(offset):
    return lambda t, y: (0.1 * torch.cos(t - offset)).to(y.dtype) + 0 * y


class Equation(torch.nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, offset, g=None):
        super().__init__()
        self.f, self.g = forced(offset), g or noise(offset)


def on_grid(integrator, term=ps.ODE, **how):
    def solved(offset, y0):
        return ps.solve(term(forced(offset)), y0, GRID + offset, integrator=integrator, tol=0.0, **how).ys

    return solved


def semilinear(offset, y0):
    term = ps.SemilinearODE(-0.1 * torch.ones(2), lambda t, y: torch.cos(t - offset).to(y.dtype) + 0 * y)
    return ps.solve(term, y0, GRID + offset, integrator=ps.ETDRK2(), tol=0.0).ys


def collocation(offset, y0):
    given = {"integrator": ps.Collocation(), "rtol": REACHED[y0.dtype]}
    return ps.solve(ps.ODE(forced(offset)), y0, GRID[::40] + offset, **given).ys


def second_order(offset, y0):
    term = ps.SecondOrderODE(lambda t, q: torch.cos(t - offset).to(q.dtype) - q)
    return ps.solve(term, (y0, 0 * y0), GRID[::40] + offset, integrator=ps.Collocation(), rtol=REACHED[y0.dtype]).ys[0]


def dense(offset, y0):
    solution = ps.solve(
        ps.ODE(forced(offset)), y0, [offset, offset + SPAN], integrator=ps.Collocation(), rtol=REACHED[y0.dtype]
    )
    return solution(torch.linspace(0.5, 9.5, 7, dtype=torch.float64) + offset)


def stochastic(integrator):
    """Without noise: the path itself is another at another time."""

    def solved(offset, y0):
        term = ps.SDE(forced(offset), quiet)
        return ps.solve(term, y0[None], GRID + offset, integrator=integrator, batch_dims=1, tol=0.0).ys

    return solved


SOLVES = {
    **{f"solve, {i}": on_grid(i) for i in (ps.Euler(), ps.Heun(), ps.RK4(), ps.BackwardEuler())},
    "Parareal": on_grid(ps.Euler(), iteration=ps.Parareal(blocks=4)),
    "Newton": on_grid(ps.Euler(), iteration=ps.Newton()),
    "sequential": lambda o, y: ps.sequential(ps.ODE(forced(o)), y, GRID + o, integrator=ps.RK4()).ys,
    "lifted": lambda o, y: ps.solve(ps.ODE(forced(o), False), y, GRID + o, integrator=ps.RK4(), tol=0.0).ys,
    "semilinear": semilinear,
    "collocation": collocation,
    "second order": second_order,
    "dense": dense,
    "odeint": lambda o, y: ps.odeint(forced(o), y, GRID[::40] + o),
    "odeint, a list": lambda o, y: ps.odeint(forced(o), y, (GRID[::40] + o).tolist()),
    "odeint, fixed": lambda o, y: ps.odeint(forced(o), y, GRID[::40] + o, method="rk4", options={"step_size": 0.05}),
    **{f"SDE, {i}": stochastic(i) for i in (ps.EulerMaruyama(), ps.StochasticHeun(), ps.SRID2(), ps.Milstein())},
    "sdeint": lambda o, y: ps.sdeint(Equation(o, quiet), y[None], GRID[::40] + o, dt=0.05, method="euler"),
    "sdeint, a list": lambda o, y: ps.sdeint(Equation(o, quiet), y[None], [o, o + SPAN], dt=0.05, method="srk")[-1:],
}


# backward Euler does not settle on a drift in half precision, wherever time begins
CASES = [(name, dtype) for name in SOLVES for dtype in DTYPES if "Backward" not in name or dtype != torch.bfloat16]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_solve_does_not_depend_on_when_it_begins(name, dtype):
    """To what float64 shows of a time at 1.7e9, 2.4e-7, and the rounding of the state."""
    y0 = torch.tensor([1.0, -0.5], dtype=dtype)
    first, *shifted = (SOLVES[name](offset, y0).double() for offset in OFFSETS)
    for other in shifted:
        torch.testing.assert_close(other, first, rtol=0, atol=2e-5 + 4 * torch.finfo(dtype).eps)


def test_torchsdes_own_step_in_single_precision():
    """Against the closed form: sin(10), up to Euler's own error."""
    ts = torch.tensor([1.7e9, 1.7e9 + SPAN], dtype=torch.float64)
    drift = ps.SDE(lambda t, y: torch.cos(t - 1.7e9).to(y.dtype) + 0 * y, quiet)
    ys = ps.solve(drift, torch.zeros(2, 1), ps.grids.uniform(*ts.tolist(), 1000), integrator=ps.Euler(), batch_dims=1)
    assert abs(float(ys.ys[-1, 0]) - math.sin(10)) < 0.02


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_events_see_times_as_they_are(offset, dtype):
    y0, ts = torch.zeros(2, dtype=dtype), torch.tensor([offset, offset + 0.1], dtype=torch.float64)
    at, states = ps.odeint(forced(offset), y0, ts, event_fn=lambda t, y: t - (offset + 5.0))
    assert abs(float(at) - offset - 5) < 1e-5
    expected = ps.odeint(forced(0.0), y0, torch.tensor([0.0, 5.0], dtype=torch.float64))
    torch.testing.assert_close(states[-1], expected[-1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("integrator", [ps.Collocation(), ps.RK4()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_do_not_depend_on_when_it_begins(integrator, dtype):
    found = []
    for offset in OFFSETS:
        k, y0 = torch.tensor(0.1, dtype=dtype, requires_grad=True), torch.zeros(2, dtype=dtype, requires_grad=True)
        ts = (GRID + offset).requires_grad_(isinstance(integrator, ps.Collocation))

        def f(t, y, offset=offset, k=k):
            return torch.cos(t - offset).to(y.dtype) - k * y

        ys = ps.solve(ps.ODE(f), y0, ts, integrator=integrator, rtol=1e-5, atol=1e-6).ys
        found.append(torch.autograd.grad(ys.sum() / len(ts), [k, y0, *([ts] if ts.requires_grad else [])]))
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("vectorized", [True, False])
def test_the_solver_of_scipy_too(vectorized):
    for offset in OFFSETS:
        how = {"method": ParallelCollocation, "vectorized": vectorized, "rtol": 1e-6, "atol": 1e-8}
        ys = solve_ivp(lambda t, y, o=offset: np.cos(t - o) + 0 * y, (offset, offset + SPAN), [0.0, 1.0], **how).y
        assert np.abs(ys[:, -1] - [math.sin(SPAN), 1 + math.sin(SPAN)]).max() < 1e-6


def embedded(offset, network):
    """Times go into a network beside the state, as in most continuous normalizing flows."""

    def f(t, y):
        return network(torch.cat([y, (t - offset).expand(*y.shape[:-1], 1)], -1))

    return f


@pytest.mark.parametrize("takes", ["rows", "state"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("integrator", [ps.Collocation(), ps.Euler()])
def test_a_network_that_takes_times_in_the_states_dtype_only(takes, dtype, integrator):
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2).to(dtype)
    term = ps.ODE(embedded(0.0, network), takes == "rows")
    y0, ts = torch.ones(2, dtype=dtype), torch.linspace(0, 1, 5)
    found = ps.solve(term, y0, ts, integrator=integrator, rtol=REACHED[dtype]).ys
    exact = ps.ODE(embedded(0.0, torch.nn.Linear(3, 2).double()), takes == "rows")
    exact.drift.__closure__[0].cell_contents.load_state_dict(network.state_dict())
    expected = ps.solve(exact, y0.double(), ts, integrator=integrator).ys
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps)


def test_where_it_takes_too_few_digits_it_is_told():
    network = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"drift: takes times in torch.float32.*moves them by.*subtract a time"):
        ps.solve(ps.ODE(embedded(0.0, network)), torch.ones(2), GRID + 1.7e9, integrator=ps.Euler())
    with pytest.warns(ps.ConvergenceWarning, match="drift: takes times in torch.float32.*up to 6e-05"):
        ps.solve(ps.ODE(embedded(0.0, network)), torch.ones(2), GRID + 1e3, integrator=ps.Euler())


def test_a_step_that_is_lost_beside_the_time_is_refused():
    ts = torch.tensor([1.7e9, 1.7e9 + 1024])
    with pytest.raises(ValueError, match=r"dt: .*ts.double"):
        ps.sdeint(Equation(0.0), torch.ones(1, 1), ts, dt=0.01, method="euler")


@pytest.mark.parametrize("offset", OFFSETS)
def test_increments_at_large_times_add_up_and_have_their_variance(offset):
    path, n = ps.BrownianPath(3), 4000
    whole = path.increment(offset, offset + 1, (n,), torch.float64)
    parts = [path.increment(offset + a, offset + b, (n,), torch.float64) for a, b in ((0, 0.25), (0.25, 1))]
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=0, atol=1e-9)
    assert abs(float(whole.var()) - 1) < 5 * (2 / n) ** 0.5
    assert abs(float(parts[0].var()) - 0.25) < 5 * 0.25 * (2 / n) ** 0.5


def test_fast_forcing_far_within_the_span_in_single_precision():
    """At t = 1000 single precision shows a time to 3e-5 only."""
    for ts in (torch.tensor([0.0, 1000.0]), torch.linspace(0, 1000, 100_001)):
        integrator = ps.Collocation() if len(ts) == 2 else ps.RK4()
        term = ps.ODE(lambda t, y: (2 * torch.cos(2 * t)).to(y.dtype) + 0 * y)
        grid = ts.double()
        window = None if isinstance(integrator, ps.Collocation) else 512
        y = ps.solve(term, torch.zeros(1), grid, integrator=integrator, window=window, save="last").ys[-1]
        assert abs(float(y) - math.sin(2000)) < 2e-4
