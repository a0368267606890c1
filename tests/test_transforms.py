"""torch's transforms of functions: what goes through a solve is right, and the rest is refused in a sentence."""

import pytest
import torch
import torchdiffeq
from cases import generator, randn
from torch.autograd import forward_ad

import picardsolve as ps

W = randn(generator(0), 2, 2)
Y, Z = randn(generator(1), 2), randn(generator(2), 3, 2)
T = torch.linspace(0, 1, 5, dtype=torch.float64)
SHARP = {"rtol": 1e-9, "atol": 1e-10}
METHODS = (None, "rk4", "dopri5")
methods = pytest.mark.parametrize("method", METHODS)
vectorized = pytest.mark.parametrize("vectorized", [True, False])


def drift(t, y):
    return torch.sin(y @ W) + torch.cos(t)


def solved(y, method=None, t=T, func=drift, **options):
    return ps.odeint(func, y, t, method=method, options=options, **SHARP)


def loss(ys):
    return (ys[-1] + ys[1]).sin().sum()


def jacobian(y, method=None):
    """One cotangent at a time, outside of any transform."""
    return torch.autograd.functional.jacobian(lambda y: solved(y, method), y)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@methods
@vectorized
def test_vmap_solves_samples(method, vectorized):
    """Along any dimension, beside states that are not batched, and in a batch of batches."""
    expected = torch.stack([solved(y, method) for y in Z])
    close(torch.func.vmap(lambda y: solved(y, method, vectorized=vectorized))(Z), expected)
    close(
        torch.func.vmap(lambda y: solved(y, method, vectorized=vectorized), in_dims=1, out_dims=2)(Z.T)[..., 0],
        expected[0],
    )
    twice = torch.func.vmap(torch.func.vmap(lambda y: solved(y, method)))(Z[None])
    close(twice, expected[None])

    def pair(t, y):
        return -y[1], y[0].sum() * torch.ones_like(y[1])

    both = torch.func.vmap(lambda y: solved((y, Y), method, func=pair))(Z)
    for i, y in enumerate(Z):
        close(tuple(part[i] for part in both), solved((y, Y), method, func=pair))


def test_vmap_solves_all_samples_at_once():
    calls = []

    def counted(t, y):
        calls.append(len(y))
        return drift(t, y)

    torch.func.vmap(lambda y: solved(y, "rk4", func=counted, vectorized=True))(Z)
    rounds = len(calls)
    calls.clear()
    solved(Z[0], "rk4", func=counted, vectorized=True)
    assert rounds < 2 * len(calls)


def test_vmap_over_times():
    starts = torch.stack([T, 2 * T - 1])
    expected = torch.stack([solved(Y, t=t) for t in starts])
    close(torch.func.vmap(lambda t: solved(Y, t=t))(starts), expected)


@methods
def test_jacobians_and_gradients(method):
    def of(y):
        return loss(solved(y, method))

    expected = jacobian(Y, method)
    leaf = Y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(of(leaf), leaf)
    close(torch.func.jacrev(lambda y: solved(y, method))(Y), expected)
    close(torch.func.grad(of)(Y), gradient)
    close(torch.func.vjp(lambda y: solved(y, method), Y)[1](torch.ones(5, 2).double())[0], expected.sum((0, 1)))
    close(
        torch.func.vmap(torch.func.jacrev(lambda y: solved(y, method)))(Z),
        torch.stack([jacobian(y, method) for y in Z]),
    )
    close(torch.func.vmap(torch.func.grad(of))(Z), torch.stack([torch.func.grad(of)(y) for y in Z]))


def test_gradients_by_times():
    expected = torch.autograd.functional.jacobian(lambda t: solved(Y, t=t), T)
    close(torch.func.jacrev(lambda t: solved(Y, t=t))(T), expected)
    both = torch.func.jacrev(lambda y, t: solved(y, t=t), argnums=(0, 1))(Y, T)
    close(both, (jacobian(Y), expected))
    starts = torch.stack([T, 2 * T - 1])
    close(torch.func.vmap(torch.func.jacrev(lambda t: solved(Y, t=t)))(starts)[0], expected)


@methods
def test_parameters_get_their_gradients_behind_a_vmap(method):
    """Though the transform does not see them."""
    found = []
    for call in (lambda run: torch.func.vmap(run)(Z), lambda run: torch.stack([run(y) for y in Z])):
        network = torch.nn.Linear(2, 2).double()
        with torch.no_grad():
            network.weight.copy_(W), network.bias.zero_()
        loss(call(lambda y, net=network: solved(y, method, func=lambda t, y: net(y).tanh()))).backward()
        found.append((network.weight.grad, network.bias.grad))
    close(*found)


def test_a_jacobian_of_a_solve_with_parameters():
    """Per sample, though the network's parameters require gradients."""
    network = torch.nn.Linear(2, 2).double()
    run = torch.func.jacrev(lambda y: solved(y, func=lambda t, y: network(y).tanh()))
    close(torch.func.vmap(run)(Z).detach(), torch.stack([run(y) for y in Z]).detach())


def by_weight(call):
    return lambda: call(lambda w: solved(Y, func=lambda t, y: torch.sin(y @ w)))


def dual(value, run):
    with forward_ad.dual_level():
        return run(forward_ad.make_dual(value, torch.ones_like(value)))


def twice(method):
    leaf = Y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(solved(leaf, method)), leaf, create_graph=True)
    return torch.autograd.grad(gradient.sum(), leaf)


FORWARD, CLOSED, ALONE = "no forward-mode derivatives", "the drift closes over a tensor", "picardsolve.odeint can"
REFUSED = {
    "jacfwd": (FORWARD, lambda method: torch.func.jacfwd(lambda y: solved(y, method))(Y)),
    "jvp": (FORWARD, lambda method: torch.func.jvp(lambda y: solved(y, method), (Y,), (Y,))),
    "hessian": (FORWARD, lambda method: torch.func.hessian(lambda y: loss(solved(y, method)))(Y)),
    "jacrev twice": (
        "first derivatives only",
        lambda method: torch.func.jacrev(torch.func.jacrev(lambda y: solved(y, method)))(Y),
    ),
    "a dual state": (FORWARD, lambda method: dual(Y, lambda y: solved(y, method))),
    "a dual weight": (FORWARD, lambda method: dual(W, lambda w: solved(Y, method, func=lambda t, y: torch.sin(y @ w)))),
    "functional, forward": (
        FORWARD,
        lambda method: torch.autograd.functional.jacobian(
            lambda y: solved(y, method), Y, strategy="forward-mode", vectorize=True
        ),
    ),
    "functional, vectorised": (
        "one cotangent at a time",
        lambda method: torch.autograd.functional.jacobian(lambda y: solved(y, method), Y, vectorize=True),
    ),
    "a weight, jacrev": (CLOSED, lambda method: by_weight(torch.func.jacrev)()(W)),
    "a weight, vmap": (CLOSED, lambda method: by_weight(torch.func.vmap)()(W[None])),
    "solve": (
        ALONE,
        lambda method: torch.func.vmap(lambda y: ps.solve(ps.ODE(drift), y, T, integrator=ps.RK4()).ys)(Z),
    ),
    "full output": (
        "full_output, mesh, devices: not inside",
        lambda method: torch.func.vmap(lambda y: solved(y, method, full_output=True))(Z),
    ),
}


@pytest.mark.parametrize("method", [None, "rk4"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_wrong_is_refused(name, method):
    sentence, call = REFUSED[name]
    with pytest.raises(RuntimeError, match=sentence):
        call(method)


def test_second_derivatives_are_refused_or_those_of_recorded_steps():
    for method in (None, "rk4"):
        with pytest.raises(RuntimeError, match=r"first derivatives only.*Dopri5"):
            twice(method)
    leaf = Y.clone().requires_grad_()
    theirs = loss(torchdiffeq.odeint(drift, leaf, T, method="rk4", options={"step_size": 1 / 64}))
    (gradient,) = torch.autograd.grad(theirs, leaf, create_graph=True)
    close(twice("dopri5"), torch.autograd.grad(gradient.sum(), leaf))


def test_a_fixed_grid_does_not_vary():
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        with pytest.raises(RuntimeError, match="cannot transform the times of 'rk4'"):
            transform(lambda t: solved(Y, "rk4", t=t))(T)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo's own
@methods
@vectorized
def test_compiled_drifts(method, vectorized):
    compiled = torch.compile(drift, backend="eager")
    leaf, other = (Y.clone().requires_grad_() for _ in range(2))
    found, expected = solved(leaf, method, func=compiled, vectorized=vectorized), solved(other, method)
    close(found, expected)
    close(torch.autograd.grad(loss(found), leaf), torch.autograd.grad(loss(expected), other))
    with torch.inference_mode():
        close(solved(Y, method, func=compiled, vectorized=vectorized), expected.detach())
