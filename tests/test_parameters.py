"""Gradients by parameters that only some calls of a drift use, wherever it has them from."""

import functools
import sys
import types
import weakref

import pytest
import torch
import torchdiffeq
import torchsde
from cases import generator, randn

import picardsolve as ps
from picardsolve.problem.parameters import reachable

Y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
TS = torch.linspace(0, 2, 41, dtype=torch.float64)
EXPERTS = torch.nn.ModuleList()  # a global, filled by each test
ELSEWHERE = types.ModuleType("elsewhere")


def experts(count=3):
    torch.manual_seed(0)
    return torch.nn.ModuleList([torch.nn.Linear(2, 2).double() for _ in range(count)])


def chosen(nets, t, y):
    """One expert up to t = 1, another from there on, the last never; of one state and time."""
    return torch.tanh(nets[0 if float(t) < 1 else 1](y))


def by_masks(nets, t, y):
    """Of many states; an expert without rows is not called."""
    out = torch.zeros_like(y)
    for expert in (0, 1):
        rows = (t.reshape(len(y)) < 1) == (expert == 0)
        if rows.any():
            out[rows] = torch.tanh(nets[expert](y[rows]))
    return out


def of_globals(t, y):
    return by_masks(EXPERTS, t, y)


def of_a_python_module(t, y):
    return by_masks(ELSEWHERE.nets, t, y)


class Method:
    def __init__(self, nets):
        self.held = {"nets": [nets]}

    def drift(self, t, y):
        return self.helper(t, y)

    def helper(self, t, y):
        return by_masks(self.held["nets"][0], t, y)

    __call__ = drift


class Slots:
    __slots__ = ("nets",)

    def __init__(self, nets):
        self.nets = nets

    def __call__(self, t, y):
        return by_masks(self.nets, t, y)


class Network(torch.nn.Module):
    def __init__(self, nets):
        super().__init__()
        self.nets = nets

    def forward(self, t, y):
        return by_masks(self.nets, t, y)


def nested(nets):
    def inner(t, y):
        return by_masks(nets, t, y)

    def outer(t, y):
        return inner(t, y)

    return outer


def of_tensors(nets):
    """No module: the tensors themselves, in a list."""
    tensors = [(net.weight, net.bias) for net in nets]

    def drift(t, y):
        return by_masks([lambda y, w=w, b=b: torch.nn.functional.linear(y, w, b) for w, b in tensors], t, y)

    return drift


def computed(nets):
    """Tensors that were computed from the parameters before."""
    tensors = [(1.0 * net.weight, 1.0 * net.bias) for net in nets]
    return lambda t, y: by_masks([lambda y, w=w, b=b: torch.nn.functional.linear(y, w, b) for w, b in tensors], t, y)


def of_a_class(nets):
    class Holder:
        experts = nets

        def __call__(self, t, y):
            return by_masks(self.experts, t, y)

    return Holder()


HOLDERS = {
    "a closure": lambda nets: lambda t, y: by_masks(nets, t, y),
    "a nested closure": nested,
    "a partial function": lambda nets: functools.partial(by_masks, nets),
    "a default": lambda nets: lambda t, y, nets=nets: by_masks(nets, t, y),
    "a global": lambda nets: of_globals,
    "a python module": lambda nets: of_a_python_module,
    "a method": lambda nets: Method(nets).drift,
    "an object": Method,
    "slots": Slots,
    "a class": of_a_class,
    "a module": Network,
    "a module's method": lambda nets: Network(nets).forward,
    "tensors": of_tensors,
    "computed tensors": computed,
}
SOLVES = {
    "collocation": lambda f, y: ps.solve(ps.ODE(f), y, TS[::20], integrator=ps.Collocation(max_step=0.1), tol=1e-6).ys,
    "odeint": lambda f, y: ps.odeint(f, y, TS[::20], rtol=1e-6, options={"vectorized": True, "max_step": 0.1}),
    "odeint, rk4": lambda f, y: ps.odeint(f, y, TS, method="rk4", rtol=1e-11, atol=1e-12, options={"vectorized": True}),
    "Euler": lambda f, y: ps.solve(ps.ODE(f), y, TS, integrator=ps.Euler(), tol=1e-10).ys,
    "SDE": lambda f, y: (
        ps.solve(ps.SDE(f, lambda t, y: 0 * y), y[None], TS, integrator=ps.EulerMaruyama(), batch_dims=1, tol=1e-10).ys
    ),
}
METHODS = {"odeint, rk4": "rk4", "Euler": "euler", "SDE": "euler"}


def gradients(nets, ys):
    nets.zero_grad(set_to_none=True)
    ys[-1].sum().backward()
    return [parameter.grad for parameter in nets.parameters()]


def assert_the_same(found, expected, tolerance):
    assert [part is None for part in found] == [part is None for part in expected]
    for ours, theirs in zip(found, expected, strict=True):
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("solve", SOLVES)
def test_experts_that_are_chosen_by_time_have_torchdiffeqs_gradients(holder, solve, monkeypatch):
    nets = experts()
    monkeypatch.setattr(sys.modules[__name__], "EXPERTS", nets)
    monkeypatch.setattr(ELSEWHERE, "nets", nets, raising=False)
    method, exact = METHODS.get(solve), {"method": "rk4", "options": {"step_size": 0.002}}
    how = exact if method is None else {"method": method}
    expected = gradients(nets, torchdiffeq.odeint(functools.partial(chosen, nets), Y0, TS, **how))
    assert [part is None for part in expected] == [False] * 4 + [True] * 2
    found = gradients(nets, SOLVES[solve](HOLDERS[holder](nets), Y0))
    assert_the_same(found, expected, 1e-8 if method else 3e-3)


@pytest.mark.parametrize("integrator", [ps.Euler(), ps.Collocation(max_step=0.1)])
def test_a_module_in_args(integrator):
    nets = experts()
    term = ps.ODE(lambda t, y, nets: by_masks(nets, t, y))
    given = gradients(nets, ps.solve(term, Y0, TS, integrator=integrator, tol=1e-6, args=(nets,)).ys)
    closed = gradients(nets, SOLVES["Euler" if integrator == ps.Euler() else "collocation"](Network(nets), Y0))
    assert_the_same(given, closed, 1e-5)


class Equation(torch.nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def __init__(self):
        super().__init__()
        self.nets, self.scale = experts(), torch.nn.Parameter(torch.tensor([0.1, 0.2], dtype=torch.float64))

    def f(self, t, y):
        return torch.where(t < 1, self.nets[0](y), self.nets[1](y)).tanh()

    def g(self, t, y):
        return torch.where(t < 0.5, 0.1, self.scale) * torch.cos(y)


def test_an_sdes_are_torchsdes():
    from picardsolve.integrations.torchsde import sdeint

    sde, y0, ts = Equation(), randn(generator(0), 3, 2), torch.tensor([0.0, 2.0], dtype=torch.float64)
    bm = torchsde.BrownianInterval(0.0, 2.0, (3, 2), dtype=torch.float64, entropy=1)
    how = {"bm": bm, "method": "euler", "dt": 0.05}
    expected = gradients(sde, torchsde.sdeint(sde, y0, ts, **how))
    assert_the_same(gradients(sde, sdeint(sde, y0, ts, rtol=1e-11, atol=1e-12, **how)), expected, 1e-8)


@pytest.mark.parametrize("solve", SOLVES)
def test_a_first_call_that_uses_no_parameter(solve):
    """Nothing then says that gradients are wanted, but what is in reach."""
    nets = experts()

    def drift(t, y):
        rows = t.reshape(len(y)) >= 1
        return torch.where(rows[:, None], nets[0](y), -y) if rows.any() else -y

    first = gradients(nets, SOLVES[solve](drift, Y0))
    always = gradients(nets, SOLVES[solve](lambda t, y: torch.where(t.reshape(len(y), 1) >= 1, nets[0](y), -y), Y0))
    assert_the_same(first, always, 1e-8)
    assert float(first[0].abs().max()) > 0.1


@pytest.mark.parametrize("solve", SOLVES)
def test_what_is_out_of_reach_is_told(solve):
    nets, y0 = experts(), Y0.clone().requires_grad_()
    hidden = weakref.ref(nets)  # which is not looked behind
    ys = SOLVES[solve](lambda t, y: by_masks(hidden(), t, y), y0)
    with pytest.raises(RuntimeError, match=r"^gradient: the drift depends on a tensor of shape .* pass it in args"):
        ys[-1].sum().backward()


@pytest.mark.parametrize("solve", SOLVES)
def test_leaves_that_a_drift_makes_for_itself_are_not_told(solve):
    """As `requires_grad_` on the time, or on the state."""
    k, y0 = torch.tensor(0.5, dtype=torch.float64, requires_grad=True), Y0.clone().requires_grad_()

    def drift(t, y):
        with torch.enable_grad():
            own = torch.zeros_like(y).requires_grad_()
            (slope,) = torch.autograd.grad((torch.sin(y + own)).sum(), own, create_graph=True)
            return -k * slope * (t.clone().requires_grad_() < 5)

    found = torch.autograd.grad(SOLVES[solve](drift, y0)[-1].sum(), [k, y0])
    expected = torch.autograd.grad(SOLVES[solve](lambda t, y: -k * torch.cos(y), y0)[-1].sum(), [k, y0])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solve", SOLVES)
def test_parameters_in_reach_may_change_if_they_are_not_used(solve):
    """As those of the other network of two that are trained in turn; not so what was used."""
    nets = experts()
    ys = SOLVES[solve](Network(nets), Y0)
    with torch.no_grad():
        nets[2].weight += 1
    assert nets[1].weight.grad is None
    ys[-1].sum().backward(retain_graph=True)
    assert nets[1].weight.grad is not None
    with torch.no_grad():
        nets[1].weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ys[-1].sum().backward()


@pytest.mark.parametrize("integrator", [ps.BackwardEuler(), ps.ETD1()])
def test_where_there_are_no_gradients_it_is_said(integrator):
    net = torch.nn.Linear(2, 2).double()
    term = ps.ODE(lambda t, y: net(y))
    if isinstance(integrator, ps.ETD1):
        term = ps.SemilinearODE(-torch.ones(2).double(), lambda t, y: net(y))
    ys = ps.solve(term, Y0, TS, integrator=integrator).ys
    with pytest.raises(RuntimeError, match=r"^gradient: not recorded for implicit"):
        (ys.sum() + net.weight.sum()).backward()


def test_an_assertion_that_pytest_has_rewritten_brings_no_strangers():
    """It reads pytest's own globals, from which everything in the session can be reached."""

    def drift(t, y):
        assert t.shape == (len(t), 1), "many times at once"
        return -y

    found = list(reachable(drift))
    assert len(found) < 10
    sol = ps.solve(ps.ODE(drift), torch.ones(2), ps.grids.uniform(0.0, 1.0, 10), integrator=ps.Euler())
    assert not sol.ys.requires_grad
