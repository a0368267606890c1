"""Functions as users write them: those that torch.func.vmap cannot lift run, or one sentence says what to do."""

import pytest
import torch
import torchdiffeq
import torchsde
from cases import generator, randn

import picardsolve as ps
from picardsolve.integrations.torchsde import sdeint

BATCH = 4
Z = randn(generator(0), BATCH, 2)
STATE = Z, torch.zeros(BATCH, 1, dtype=torch.float64)
TS = torch.linspace(0, 1, 11, dtype=torch.float64)
SHARP = {"rtol": 1e-8, "atol": 1e-9}
ONE_BY_ONE = "ignore:drift. called for one time after the other:picardsolve.diagnostics.ConvergenceWarning"


class Flow(torch.nn.Module):
    """FFJORD: the state is asked for gradients inside, the divergence exact or by Hutchinson's estimate."""

    def __init__(self, probe):
        super().__init__()
        torch.manual_seed(0)
        layers = torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)
        self.net, self.probe = torch.nn.Sequential(*layers).double(), probe

    def forward(self, t, states):
        z = states[0]
        with torch.set_grad_enabled(True):
            z.requires_grad_(True)
            dz = self.net(torch.cat([z, t * torch.ones_like(z[..., :1])], -1))
            if self.probe is None:
                parts = [torch.autograd.grad(dz[..., i].sum(), z, create_graph=True)[0][..., i] for i in range(2)]
                return dz, -sum(parts)[..., None]
            (pulled,) = torch.autograd.grad(dz, z, self.probe.expand_as(z), create_graph=True)
            return dz, -(pulled * self.probe).sum(-1)[..., None]


def loss(ys):
    return ys[0][-1].sin().sum() + ys[1][-1].sum()


@pytest.mark.filterwarnings(ONE_BY_ONE)
@pytest.mark.parametrize("probe", [None, randn(generator(1), BATCH, 2)])
@pytest.mark.parametrize("method", [None, "rk4"])
@pytest.mark.parametrize("vectorized", [False, True])
def test_a_continuous_normalizing_flow_is_torchdiffeqs(probe, method, vectorized):
    flow, found = Flow(probe), []
    how = {"method": "rk4", "options": {"step_size": 0.1 if method else 0.01}}
    for call in (
        lambda: torchdiffeq.odeint(flow, STATE, TS, **how),
        lambda: ps.odeint(flow, STATE, TS, method=method, options={"vectorized": vectorized}, **SHARP),
    ):
        flow.zero_grad()
        ys = call()
        loss(ys).backward()
        found.append([*(leaf.detach() for leaf in ys), *(parameter.grad for parameter in flow.net.parameters())])
        with torch.no_grad():
            assert not any(leaf.requires_grad for leaf in call())
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


NORM = torch.nn.BatchNorm1d(2).double()


def filled(t, y):
    out = torch.zeros(y.shape, dtype=y.dtype)
    out[0], out[1:] = -y[0], y[:1].sin()
    return out


FLOW = Flow(None)
RUN = {
    "the usual flow": lambda t, y: FLOW(t, (y, None))[0],
    "batch norm": lambda t, y: NORM(y).sin(),
    "writes into new memory": filled,
    "numpy": lambda t, y: torch.from_numpy(-y.detach().numpy()),
    "a print": lambda t, y: (print(end=""), -y)[1],
}


@pytest.mark.filterwarnings(ONE_BY_ONE)
@pytest.mark.parametrize("name", RUN)
@pytest.mark.parametrize("method", [None, "rk4"])
def test_what_runs_is_torchdiffeqs(name, method):
    how = {"method": "rk4", "options": {"step_size": 0.1 if method else 0.01}}
    expected = torchdiffeq.odeint(RUN[name], Z, TS, **how).detach()
    found = ps.odeint(RUN[name], Z, TS, method=method, **SHARP).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_that_nothing_is_gained_is_said_once():
    with pytest.warns(
        ps.ConvergenceWarning, match=r"drift: called for one time.*options=\{'vectorized': True\}"
    ) as said:
        ps.odeint(filled, Z, TS)
    assert len(said) == 1


class Equation(torch.nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, f):
        super().__init__()
        self.f = f

    def g(self, t, y):
        return 0.1 * torch.cos(y)


@pytest.mark.filterwarnings(ONE_BY_ONE)
@pytest.mark.parametrize("name", [*RUN, "a branch", "an item"])
def test_of_torchsdes_objects_branches_run_too(name):
    more = {"a branch": lambda t, y: -y if y.sum() > 0 else y, "an item": lambda t, y: -y * float(t)}
    sde = Equation({**RUN, **more}[name])
    bm = torchsde.BrownianInterval(0.0, 1.0, (BATCH, 2), dtype=torch.float64, entropy=1)
    how = {"bm": bm, "dt": 0.05, "method": "euler"}
    theirs, ours = torchsde.sdeint(sde, Z, TS, **how), sdeint(sde, Z, TS, **how, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=0, atol=1e-9)


DROPOUT = torch.nn.Dropout(0.5)
RANDOM = {
    "dropout": lambda t, y: DROPOUT(y),
    "noise of its own": lambda t, y: -y + torch.randn_like(y),
    "noise, and what vmap cannot lift": lambda t, y: filled(t, y) + torch.randn_like(y),
}
CALLS = {
    "odeint": lambda f: ps.odeint(f, Z, TS),
    "odeint, rk4": lambda f: ps.odeint(f, Z, TS, method="rk4"),
    "odeint, many": lambda f: ps.odeint(f, Z, TS, options={"vectorized": True}),
    "solve": lambda f: ps.solve(ps.ODE(f), Z, TS, integrator=ps.Euler()),
    "an SDE": lambda f: ps.solve(ps.SDE(f, lambda t, y: 0 * y), Z, TS, integrator=ps.EulerMaruyama(), batch_dims=1),
    "sdeint": lambda f: ps.sdeint(Equation(f), Z, TS, dt=0.05),
    "many samples of one number": lambda f: ps.solve(ps.ODE(f), Z[:, :1], TS, integrator=ps.RK4(), batch_dims=1),
}


@pytest.mark.filterwarnings(ONE_BY_ONE)
@pytest.mark.parametrize("name", ["dropout", "noise of its own"])
@pytest.mark.parametrize("call", CALLS)
def test_what_is_random_is_refused_as_such(name, call):
    with pytest.raises(ValueError, match=r"^drift: it is random.*\.eval\(\)"):
        CALLS[call](RANDOM[name])


@pytest.mark.parametrize("integrator", [ps.DDIM(), ps.DDPM(), ps.DPMSolver(2)])
def test_a_model_with_dropout_is_refused_as_random(integrator):
    model = ps.Denoiser(lambda x, t: 0.1 * DROPOUT(x), ps.schedules.EDM())
    with pytest.raises(ValueError, match=r"^model: it is random.*\.eval\(\)"):
        ps.solve(model, Z, ps.grids.karras(10.0, 0.1, 20), integrator=integrator)


def test_a_drift_that_seeds_its_own_random_numbers_is_not_random():
    def drift(t, y):
        torch.manual_seed(5)
        return torch.randn(y.shape[1:], dtype=y.dtype) - y

    expected = ps.sequential(ps.ODE(drift), Z, TS, integrator=ps.Euler()).ys
    torch.testing.assert_close(ps.solve(ps.ODE(drift), Z, TS, integrator=ps.Euler(), tol=0.0).ys, expected)


@pytest.mark.parametrize("call", ["odeint", "odeint, rk4", "sdeint"])
def test_what_is_random_and_called_one_by_one_is_refused_as_such(call):
    with pytest.raises(ValueError, match=r"^drift: it is random"):
        CALLS[call](RANDOM["noise, and what vmap cannot lift"])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("f", [lambda y: -y, lambda t, y, k: -k * y, lambda: 1])
def test_a_wrong_signature_is_said_to_be_one(call, f):
    with pytest.raises(
        TypeError, match=r"^drift: it is called with t, y, and its arguments are .*write it as f\(t, y\)"
    ):
        CALLS[call](f)


def test_a_wrong_signature_with_arguments():
    with pytest.raises(TypeError, match=r"called with t, y and 1 more from args.*f\(t, y, \*args\)"):
        ps.solve(ps.ODE(lambda t, y: -y), Z, TS, integrator=ps.Euler(), args=(2.0,))


@pytest.mark.parametrize("call", ["odeint", "odeint, rk4"])
def test_an_error_of_the_function_itself_is_its_own(call):
    with pytest.raises(KeyError, match="rate"):
        CALLS[call](lambda t, y: {}["rate"] * y)


@pytest.mark.parametrize("call", ["odeint", "odeint, rk4"])
def test_what_is_advised_exists_in_the_call(call):
    with pytest.raises(ValueError, match=r"options=\{'vectorized': True\}"):
        CALLS[call](lambda t, y: -y if y.sum() > 0 else y)
    with pytest.raises(ValueError, match=r"leave options\['vectorized'\] out"):
        CALLS["odeint, many"](lambda t, y: y[:, :, 0] @ y[:, :, 0])
