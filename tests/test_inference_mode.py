"""Inference mode: every solve in it is the one outside of it, and what was made in it may be used outside."""

import pytest
import torch

import picardsolve as ps

Y = torch.linspace(0.5, 1.5, 6, dtype=torch.float64).reshape(3, 2)
pytestmark = pytest.mark.usefixtures("nothing_is_decided_by_the_clock")

TS = ps.grids.uniform(0.0, 1.0, 20)
LEVELS = ps.grids.karras(10.0, 0.1, 8)
MODEL = ps.Denoiser(lambda x, t: 0.1 * x, ps.schedules.EDM())
ODES = [ps.Euler(), ps.RK4(), ps.BackwardEuler(), ps.Collocation()]
SDES = [ps.EulerMaruyama(), ps.Milstein(), ps.SRID2(), ps.StochasticHeun(), ps.StochasticMidpoint()]
ITERATIONS = [ps.Picard(), ps.Newton(), ps.MultiSecant(), ps.Anderson(), ps.Parareal(), ps.Exponential()]


class Equation(torch.nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def f(self, t, y):
        return -self.rate * y

    def g(self, t, y):
        return 0.1 * torch.cos(y)


def decay(t, y, k=1.0):
    return -k * y


def level(t, y):
    return y.sum() - 4


SOLVES = {
    **{
        f"{i}, {v}": lambda y, i=i, v=v: ps.solve(ps.ODE(decay, v), y, TS, integrator=i, tol=1e-8).ys
        for i in ODES
        for v in (True, False)
    },
    **{
        f"{i}": lambda y, i=i: ps.solve(ps.ODE(decay), y, TS, integrator=ps.Euler(), iteration=i).ys for i in ITERATIONS
    },
    **{
        f"{i}": lambda y, i=i: ps.solve(ps.SDE(decay, Equation().g), y, TS, integrator=i, batch_dims=1).ys for i in SDES
    },
    "semilinear": lambda y: (
        ps.solve(
            ps.SemilinearODE(-torch.ones(2).double(), lambda t, y: y.sin()), y[0], TS, integrator=ps.ETDRK4(), tol=0.0
        ).ys
    ),
    "sequential": lambda y: ps.sequential(ps.ODE(decay), y, TS, integrator=ps.RK4()).ys,
    "odeint": lambda y: ps.odeint(decay, y, TS),
    "odeint, an event": lambda y: ps.odeint(decay, y, TS[:2], event_fn=level)[0],
    "events": lambda y: ps.solve(ps.ODE(decay), y, TS[[0, -1]], integrator=ps.Collocation(), events=level).events[0].ts,
    "dense": lambda y: ps.solve(ps.ODE(decay), y, TS, integrator=ps.Collocation())(0.3),
    "sdeint": lambda y: ps.sdeint(Equation(), y, TS[[0, -1]], dt=0.05),
    "sdeint, milstein": lambda y: ps.sdeint(Equation(), y, TS[[0, -1]], dt=0.05, method="milstein"),
    "a sampler": lambda y: ps.solve(MODEL, y, LEVELS, integrator=ps.DDIM()).ys,
    "a noisy sampler": lambda y: ps.solve(MODEL, y, LEVELS, integrator=ps.DPMSolver(2, sde=True)).ys,
}


@pytest.mark.parametrize("name", SOLVES)
def test_it_is_the_solve_outside(name):
    with torch.no_grad():
        expected = SOLVES[name](Y)
    with torch.inference_mode():
        found = SOLVES[name](Y.clone())
        ours = found + 0  # which lets no_grad's be compared
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SOLVES)
def test_a_state_that_was_made_in_it_may_be_used_outside(name):
    with torch.inference_mode():
        y0 = Y.clone()
    torch.testing.assert_close(SOLVES[name](y0).detach(), SOLVES[name](Y).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("integrator", [ps.Euler(), ps.Collocation()])
@pytest.mark.parametrize("vectorized", [True, False])
def test_gradients_with_times_states_and_arguments_that_were_made_in_it(integrator, vectorized):
    with torch.inference_mode():
        made = Y.clone(), TS.clone(), torch.tensor(2.0, dtype=torch.float64)
    found = []
    for y0, ts, k in (made, (Y, TS, torch.tensor(2.0, dtype=torch.float64))):
        rate = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        term = ps.ODE(lambda t, y, k, rate=rate: -k * rate * y, vectorized)
        ps.solve(term, y0, ts, integrator=integrator, args=(k,)).ys.sum().backward()
        found.append(rate.grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("integrator", [ps.Euler(), ps.BackwardEuler(), ps.Collocation()])
@pytest.mark.parametrize("vectorized", [True, False])
def test_a_network_that_was_made_in_it(integrator, vectorized):
    with torch.inference_mode():
        torch.manual_seed(0)
        network = torch.nn.Linear(2, 2).double()
        term = ps.ODE(lambda t, y: network(y), vectorized)
        expected = ps.solve(term, Y, TS, integrator=integrator).ys + 0
    found = ps.solve(term, Y, TS, integrator=integrator).ys.detach()
    torch.testing.assert_close(found, expected + 0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_drift_that_writes_into_its_argument_changes_nothing_else(vectorized):
    with torch.inference_mode():
        found = ps.solve(ps.ODE(lambda t, y: y.neg_(), vectorized), Y.clone(), TS, integrator=ps.Euler(), tol=0.0).ys
        expected = ps.sequential(ps.ODE(decay), Y, TS, integrator=ps.Euler()).ys
        torch.testing.assert_close(found, expected)
