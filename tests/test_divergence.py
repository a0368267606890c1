"""`divergence`: traces against the whole Jacobian, log densities against closed forms and torchdiffeq, refusals."""

import math

import pytest
import torch
import torchdiffeq
from cases import generator, randn, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

import picardsolve as ps

T = torch.linspace(0, 1, 5, dtype=torch.float64)
ZERO = torch.tensor(0.0, dtype=torch.float64)
SHARP = {"rtol": 1e-7, "atol": 1e-8}
laws = st.sampled_from(["rademacher", "gaussian"])


def network(seed, shape, dtype=torch.float64):
    """``f(t, y)`` of states of a shape, with any leading dimensions, and a scale for each state."""
    gen, size = generator(seed), math.prod(shape)
    inner, outer = (randn(gen, *sizes, dtype=dtype) for sizes in ((size, 8), (8, size)))

    def f(t, y, scale=None):
        flat = y.reshape(*y.shape[: y.dim() - len(shape)], size)
        rate = (torch.tanh(flat @ inner) @ outer).reshape(y.shape) * torch.cos(t)
        return rate if scale is None else rate * scale.reshape(-1, *[1] * (y.dim() - 1))

    return f


def jacobian(f, t, y):
    """``(n, n)`` of one sample."""
    by_one = torch.autograd.functional.jacobian(lambda y: f(t, y), y)
    return by_one.reshape(y.numel(), y.numel())


@given(
    seed=seeds,
    shape=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    lead=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    kept=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_exact_trace_is_that_of_autograds_jacobian(seed, shape, lead, kept, dtype):
    f, y, t = network(seed, shape, dtype), randn(generator(seed + 1), *lead, *shape, dtype=dtype), torch.tensor(0.3)
    logp = torch.zeros((*lead, *[1] * kept), dtype=dtype)
    rate, change = ps.divergence(f)(t, (y, logp))
    torch.testing.assert_close(rate, f(t, y))
    assert change.shape == logp.shape
    assert change.dtype == dtype
    traces = [jacobian(f, t, one).trace() for one in y.reshape(-1, *shape)]
    torch.testing.assert_close(change.flatten(), -torch.stack(traces), rtol=1e-4, atol=1e-4)


@settings(max_examples=8)
@given(seed=seeds, law=laws)
def test_the_mean_over_vectors_is_the_trace(seed, law):
    """Within six standard errors: v.Jv has the variance 2 |S|^2, without the diagonal's share where v is +-1."""
    count, f, y = 4000, network(seed, (3,)), randn(generator(seed), 2, 3)
    _, change = ps.divergence(f, probes=count, seed=seed % 1000, law=law)(ZERO, (y, y[:, 0]))
    for found, one in zip(-change, y, strict=True):
        whole = jacobian(f, ZERO, one)
        symmetric = (whole + whole.T) / 2
        variance = 2 * symmetric.square().sum() - (2 * whole.diagonal().square().sum() if law == "rademacher" else 0)
        assert abs(found - whole.trace()) < 6 * (variance / count).sqrt() + 1e-12


def test_one_vector_of_signs_is_enough_where_numbers_do_not_mix():
    y = randn(generator(0), 4, 5)
    found = [ps.divergence(lambda t, y: torch.sin(y), **how)(ZERO, (y, y[:, 0]))[1] for how in ({}, {"probes": 1})]
    torch.testing.assert_close(*found)


@given(seed=seeds, law=laws, probes=st.integers(1, 3))
def test_vectors_are_the_same_at_all_times_and_whatever_the_company(seed, law, probes):
    f, y, l = network(seed, (3,)), randn(generator(seed), 1, 3).expand(5, 3), torch.zeros(5, dtype=torch.float64)
    constant = ps.divergence(lambda t, y: f(ZERO, y), probes=probes, law=law)
    _, change = constant(ZERO, (y, l))
    assert len(set(change.tolist())) > 1  # samples in the same state have vectors of their own
    torch.testing.assert_close(constant(ZERO + 7, (y, l))[1], change, rtol=0, atol=0)
    torch.testing.assert_close(constant(ZERO, (y[:2], l[:2]))[1], change[:2])
    rows = torch.stack([y, 2 * y]), torch.stack([l, l])
    torch.testing.assert_close(constant(T[:2].reshape(2, 1, 1), rows)[1][0], change)  # and many times at once
    for vectorized in (True, False):
        sol = ps.solve(ps.ODE(constant, vectorized), (y, l), [0.0, 1e-6], integrator=ps.Euler(), batch_dims=1)
        torch.testing.assert_close(sol.ys[1][1] / 1e-6, change)
    other = ps.divergence(lambda t, y: f(ZERO, y), probes=probes, seed=1, law=law)
    assert not torch.equal(other(ZERO, (y, l))[1], change)


@settings(max_examples=4)
@given(seed=seeds, probes=st.sampled_from([None, 1]))
def test_gradients_go_through_the_trace(seed, probes):
    gen = generator(seed)
    inputs = [randn(gen, *shape).requires_grad_() for shape in ((2, 3), (3, 3), (2, 1))]

    def change(y, weight, scale):
        flow = ps.divergence(lambda t, y, scale: scale * torch.tanh(y @ weight) * t, probes=probes)
        return flow(ZERO + 0.7, (y, y[:, 0]), scale)

    assert torch.autograd.gradcheck(change, inputs)
    assert torch.autograd.gradgradcheck(change, inputs)


@pytest.mark.parametrize("integrator", [ps.Collocation(), ps.RK4()])
@pytest.mark.parametrize(("iteration", "vectorized"), [(None, True), (ps.Newton(), False)])
def test_the_log_density_of_a_gaussian_in_a_linear_flow(integrator, iteration, vectorized):
    """``x = exp(A) z`` is ``N(0, exp(A) exp(A)^T)``."""
    a, x = randn(generator(0), 2, 2), randn(generator(1), 3, 2)
    back = torch.linspace(1, 0, 2 if integrator.adaptive else 61).double()
    term = ps.ODE(ps.divergence(lambda t, y: y @ a.T), vectorized)
    how = {"integrator": integrator, "iteration": iteration, "batch_dims": 1, **SHARP}
    z, logp = ps.solve(term, (x, torch.zeros(3).double()), back, **how).ys
    base = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    grown = torch.linalg.matrix_exp(a)
    expected = torch.distributions.MultivariateNormal(torch.zeros(2).double(), grown @ grown.T).log_prob(x)
    torch.testing.assert_close(base.log_prob(z[-1]) - logp[-1], expected, rtol=1e-5, atol=1e-5)


WEIGHTS = [randn(generator(seed), *shape).requires_grad_() for seed, shape in ((2, (3, 8)), (3, (8, 3)))]
X, PACE = randn(generator(4), 4, 3).requires_grad_(), randn(generator(5), 4).requires_grad_()


def flowing(t, y):
    return torch.tanh(y @ WEIGHTS[0]) @ WEIGHTS[1] * torch.cos(t)


def paced(t, y, pace):
    return flowing(t, y) * (pace if t.dim() == 0 else pace[:, None])


def loss_and_gradients(states, by):
    loss = states[0][-1].sin().sum() + (states[1][-1] * torch.arange(1.0, 5.0)).sum()
    return [loss.detach(), *torch.autograd.grad(loss, by)]


@pytest.mark.parametrize(("probes", "vectorized"), [(None, False), (2, False), (2, True)])
@pytest.mark.parametrize("method", [None, "rk4"])
def test_solutions_and_gradients_are_torchdiffeqs(probes, vectorized, method):
    start, flow = (X, torch.zeros(4).double()), ps.divergence(flowing, probes=probes)
    theirs = loss_and_gradients(torchdiffeq.odeint(flow, start, T, **SHARP), (X, *WEIGHTS))
    options = {"vectorized": vectorized} | ({"step_size": 0.05} if method else {})
    ours = ps.odeint(flow, start, T, method=method, options=options, **SHARP)
    torch.testing.assert_close(loss_and_gradients(ours, (X, *WEIGHTS)), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("probes", "vectorized"), [(None, True), (2, False), (2, True)])
@pytest.mark.parametrize("integrator", [ps.Collocation(), ps.RK4()])
def test_samples_with_conditions_of_their_own_are_torchdiffeqs(probes, vectorized, integrator):
    start, flow, by = (X, torch.zeros(4).double()), ps.divergence(paced, probes=probes), (X, PACE, *WEIGHTS)
    whole = ps.divergence(lambda t, y: flowing(t, y) * PACE[:, None], probes=probes)
    theirs = loss_and_gradients(torchdiffeq.odeint(whole, start, T, **SHARP), by)
    ts = T if integrator.adaptive else torch.linspace(0, 1, 21).double()
    given = {"integrator": integrator, "args": (PACE,), "batch_dims": 1, **SHARP}
    ours = ps.solve(ps.ODE(flow, vectorized), start, ts, **given).ys
    torch.testing.assert_close(loss_and_gradients(ours, by), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("integrator", [ps.Collocation(), ps.Dopri5()])
def test_an_event_gets_the_arguments_of_the_solve(integrator):
    given = {"integrator": integrator, "args": (PACE.detach(),), "batch_dims": 1}
    level = 0.1

    def event(t, state, pace):
        assert pace.shape == ()
        return state[1] ** 2 - level**2

    flow = ps.divergence(lambda t, y, pace: pace.reshape(-1, 1) * y, probes=1)
    sol = ps.solve(ps.ODE(flow), (X.detach(), torch.zeros(4).double()), [0.0, 1.0], events=event, **given)
    expected = level / (3 * PACE.detach().abs())
    for own, when in zip(sol.events[0], expected, strict=True):
        torch.testing.assert_close(own.ts[-1:] if when < 1 else own.ts, when[None][when[None] < 1], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("how", "tangents"), [({}, 5), ({"probes": 3}, 3)])
def test_the_drift_is_called_once_whatever_the_size(how, tangents):
    calls = []

    def drift(t, y):
        calls.append(y.shape)
        return torch.sin(y)

    flow, y = ps.divergence(drift, **how), randn(generator(0), 7, 5)
    flow(ZERO, (y, y[:, 0]))
    calls.clear()  # the first call has looked whether samples depend on each other
    flow(ZERO, (y, y[:, 0]))
    assert calls == [(7, 5)]


def test_a_flow_is_solved_in_inference_mode_and_trained_afterwards():
    flow, start = ps.divergence(flowing, probes=1), (X.detach(), torch.zeros(4).double())
    with torch.inference_mode():
        found = ps.odeint(flow, start, T)[1] + 0
    again = ps.odeint(flow, (X, start[1]), T)[1]
    torch.testing.assert_close(again.detach(), found + 0)
    again[-1].sum().backward(inputs=WEIGHTS)


def test_what_first_calls_keep_does_not_matter():
    """Vectors that were drawn inside a transform serve outside of it."""
    flow, y = ps.divergence(flowing, probes=2), randn(generator(0), 4, 3)
    fresh = ps.divergence(flowing, probes=2)(ZERO, (y, y[:, 0]))[1]
    inside = torch.func.grad(lambda y: flow(ZERO, (y, y[:, 0]))[1].sum())(y)
    torch.testing.assert_close(flow(ZERO, (y, y[:, 0]))[1], fresh)
    (outside,) = torch.autograd.grad(flow(ZERO, (leaf := y.clone().requires_grad_(), y[:, 0]))[1].sum(), leaf)
    torch.testing.assert_close(inside, outside)


class Watching(torch.nn.Module):
    """Samples look at their mean."""

    def forward(self, t, y):
        return torch.sin(y) - y.mean(-2, keepdim=True)


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("how", [{}, {"probes": 2}])
def test_samples_that_depend_on_each_other_are_refused_or_one_system(vectorized, how):
    y, options = randn(generator(0), 4, 3), {"vectorized": vectorized}
    with pytest.raises(ValueError, match="drift: its value at one sample changes with another"):
        ps.odeint(ps.divergence(Watching(), **how), (y, torch.zeros(4).double()), T, options=options)
    _, change = ps.divergence(Watching())(ZERO, (y, ZERO))
    torch.testing.assert_close(-change, jacobian(Watching(), ZERO, y).trace())


Y, LOGP = torch.ones(4, 3), torch.zeros(4)
REFUSED = {
    "y0: expected a tuple": lambda: ps.odeint(ps.divergence(torch.mul), Y, T),
    "y0: expected .y, logp. where logp has one number": lambda: ps.odeint(ps.divergence(torch.mul), (Y, Y[0]), T),
    "y0: expected real tensors": lambda: ps.odeint(ps.divergence(torch.mul), (Y + 0j, LOGP + 0j), T),
    "drift: expected to return shape .4, 3., that of y, got .4,.": lambda: ps.odeint(
        ps.divergence(lambda t, y: y[:, 0]), (Y, LOGP), T
    ),
    "drift: torch.func.jvp and vmap": lambda: ps.odeint(ps.divergence(energetic), (Y, LOGP), T),
    "drift: expected a function": lambda: ps.divergence(3),
    "probes: expected an integer >= 1": lambda: ps.divergence(torch.mul, probes=0),
    "seed: expected int": lambda: ps.divergence(torch.mul, seed=0.5),
    "law: expected one of": lambda: ps.divergence(torch.mul, law="uniform"),
}


def energetic(t, y):
    y = y.detach().requires_grad_()
    return torch.autograd.grad(y.sin().sum(), y)[0]


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_would_be_wrong_is_refused(sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        REFUSED[sentence]()


def test_an_error_of_the_drift_is_its_own():
    with pytest.raises(KeyError, match="mine"):
        ps.divergence(lambda t, y: {}["mine"])(ZERO, (Y, LOGP))
