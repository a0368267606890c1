"""Gradients through collocation: against differences, torchdiffeq, and backpropagation through small steps."""

import itertools

import pytest
import torch
import torchdiffeq
from cases import drift_kinds, generator, randn, random_drift, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

import picardsolve as ps
from picardsolve.adjoint import by_collocation as adjoint

SHARP = {"integrator": ps.Collocation(), "rtol": 1e-12, "atol": 1e-13}
W = randn(generator(0), 3, 3).requires_grad_()


def leaf(*shape, seed=1, dtype=torch.float64):
    return (0.5 * torch.randn(shape, generator=generator(seed), dtype=dtype)).requires_grad_()


def times(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def solve(drift, y0, ts, *args, vectorized=True, **change):
    return ps.solve(ps.ODE(drift, vectorized), y0, ts, args=args, **{**SHARP, **change})


def forced(t, y, pace=1.0):
    """Not autonomous, closes over W; of one state or many."""
    return torch.sin(y @ W) * pace + torch.cos(2 * t)


def between(y, ts, w):
    solution = solve(forced, y, [0.0, 2.0])
    return solution(ts), solution.ys


def tree(first, second, ts, pace, w):
    def drift(t, y, pace):
        return {"b": torch.sin(y["a"]) * pace + t, "a": torch.tanh(y["b"] @ W)}

    return tuple(solve(drift, {"b": second, "a": first}, ts, pace, vectorized=False).ys.values())


def oscillator(q, v, k, iteration):
    term = ps.SecondOrderODE(lambda t, q: -k * torch.sin(q))
    return ps.solve(term, (q, v), [0.0, 1.0, 2.0], iteration=iteration, **SHARP).ys


def turned(y, w):
    return solve(lambda t, y: 1j * torch.sin(y * w), y, [0.0, 1.0]).ys


def ahead(y, ts, pace, w, **change):
    def drift(t, y, pace):
        return torch.sin(y @ W) * pace[:, None] + torch.cos(2 * t)

    return solve(drift, y, ts, pace, batch_dims=1, **change).ys


OWN_TIMES = torch.tensor([[0.0, 1.0], [0.5, 0.2], [1.3, -1.0]], dtype=torch.float64, requires_grad=True)
DIFFERENTIABLE = {
    "times, some at the start": (lambda y, t, w: solve(forced, y, t).ys, leaf(3), times(0.3, 0.7, 2.0), W),
    "time backward, a dict, args, lifted": (tree, leaf(3), leaf(3, seed=2), times(1.0, 0.4, -0.5), leaf(3, seed=3), W),
    "samples of their own times and args": (ahead, leaf(2, 3), OWN_TIMES, leaf(2), W),
    "second order, Newton": (lambda *given: oscillator(*given, ps.Newton()), leaf(2), leaf(2, seed=2), leaf(2)),
    "second order, Picard": (lambda *given: oscillator(*given, ps.Picard()), leaf(2), leaf(2, seed=2), leaf(2)),
    "between the times": (between, leaf(3), times(1.7, 0.3, 0.5), W),
    "lobatto": (
        lambda y, t, w: solve(forced, y, t, integrator=ps.Collocation(nodes="lobatto")).ys,
        *(leaf(3), times(0.0, 0.5, 2.0), W),
    ),
    "complex": (turned, leaf(2, dtype=torch.complex128), leaf(2, seed=2, dtype=torch.complex128)),
}


@pytest.mark.parametrize("case", DIFFERENTIABLE)
def test_gradients_are_those_of_differences(case):
    function, *inputs = DIFFERENTIABLE[case]
    assert torch.autograd.gradcheck(function, inputs, eps=1e-5, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 50, 150])
def test_chunks_change_nothing(rows):
    y0, pace, weights = leaf(2, 3), leaf(2), randn(generator(2), 3, 2, 3)
    whole, cut = (ahead(y0, OWN_TIMES, pace, W, max_batch=most) for most in (None, rows))
    by = [y0, OWN_TIMES, pace, W]
    assert_same(gradients(cut, by, weights), gradients(whole, by, weights), 1e-12)


def small_steps(drift, y0, ts, steps):
    """Classical Runge-Kutta, each interval in so many steps."""
    y, ys = y0, [y0]
    for begin, end in itertools.pairwise(ts):
        h = (end - begin) / steps
        for i in range(steps):
            t = begin + i * h
            k1 = drift(t, y)
            k2 = drift(t + h / 2, y + h / 2 * k1)
            k3 = drift(t + h / 2, y + h / 2 * k2)
            k4 = drift(t + h, y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        ys.append(y)
    return torch.stack(ys)


def gradients(ys, by, weights):
    return torch.autograd.grad((weights * torch.sin(ys)).sum(), by)


def assert_same(ours, theirs, tolerance):
    """Relative to the largest of each tensor's elements, or of all where that tensor's are all small."""
    largest = max(float(there.abs().max()) for there in theirs)
    for here, there in zip(ours, theirs, strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=tolerance * max(float(there.abs().max()), 0.1 * largest))


@settings(max_examples=12, deadline=None)
@given(
    seed=seeds,
    kind=drift_kinds,
    size=st.integers(1, 5),
    points=st.integers(2, 4),
    backward=st.booleans(),
    iteration=st.sampled_from([None, ps.Picard(), ps.Secant(), ps.Newton()]),
)
def test_gradients_are_those_of_backpropagation_through_small_steps(seed, kind, size, points, backward, iteration):
    """Runge-Kutta of order 4 with steps of 1/40 and drifts of Lipschitz constant at most 1.5, frequency at most 3."""
    net, gen = random_drift(kind, seed, (size,), torch.float64), generator(seed)
    gain = (1 + 0.1 * randn(gen, size)).requires_grad_()
    y0 = randn(gen, size).requires_grad_()
    ts = torch.linspace(0.2, 1.2, points, dtype=torch.float64)
    ts = (ts.flip(0) if backward else ts).requires_grad_()

    def drift(t, y):
        return gain * net(t, y)

    weights, by = randn(gen, points, size), [y0, ts, gain]
    ours = gradients(solve(drift, y0, ts, rtol=1e-9, atol=1e-10, iteration=iteration).ys, by, weights)
    theirs = gradients(small_steps(drift, y0, ts, 120 // points), by, weights)
    assert_same(ours, theirs, 1e-5)


def network(size, hidden, gain=1.0):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(size, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, size)).double()
    with torch.no_grad():
        net[0].weight *= gain
    return net


@pytest.mark.parametrize(
    ("size", "iteration"),
    [(2, None), (32, ps.Newton()), (32, ps.Secant()), (100, None)],
    ids=["small", "iterated upon Newton", "iterated", "large"],
)
def test_a_networks_gradients_are_torchdiffeqs(size, iteration):
    net, y0, ts = network(size, 16), leaf(size), times(0.0, 1.5, 4.0)
    by, weights = [y0, ts, *net.parameters()], randn(generator(2), 3, size)
    ours = gradients(solve(lambda t, y: net(y), y0, ts, rtol=1e-9, atol=1e-10, iteration=iteration).ys, by, weights)
    reference = torchdiffeq.odeint(lambda t, y: net(y), y0, ts, rtol=1e-10, atol=1e-11, method="dopri5")
    assert_same(ours, gradients(reference, by, weights), 1e-7)


def rotation(size):
    """A sum of states after one turn or so, what it depends on, and its gradients by the matrix exponential."""
    skew = randn(generator(3), size, size)
    skew = 6 * (skew - skew.T) / torch.linalg.matrix_norm(skew - skew.T, 2)
    y0, pace, weights = leaf(size), torch.ones((), dtype=torch.float64, requires_grad=True), randn(generator(4), size)
    ours = solve(lambda t, y: pace * (y @ skew), y0, [0.0, 1.0], rtol=1e-9, atol=1e-10).ys[-1] @ weights
    closed = (y0 @ torch.matrix_exp(pace * skew)) @ weights
    return ours, (y0, pace), torch.autograd.grad(closed, (y0, pace))


def test_where_the_iteration_fails_jacobians_are_factorised(monkeypatch):
    monkeypatch.setattr(adjoint, "_DIRECTIONS", 1)  # too few for an equation that turns
    ours, by, expected = rotation(40)
    assert_same(torch.autograd.grad(ours, by), expected, 1e-8)


def test_an_iteration_that_fails_without_jacobians_is_said(monkeypatch):
    monkeypatch.setattr(adjoint, "_DIRECTIONS", 1)
    ours, by, _ = rotation(70)
    with pytest.raises(RuntimeError, match=r"between t = 0\.\d+ and 1 are too stiff .* pass Collocation\(max_step="):
        torch.autograd.grad(ours, by)


def test_what_is_computed_from_parameters_is_followed_to_them_and_kept():
    """A drift that closes over a tensor with a history of its own, which is used once more."""
    raw = leaf(3)
    pace = torch.exp(raw)
    y0 = leaf(3, seed=2)
    ours = solve(lambda t, y: -pace * y, y0, [0.0, 1.0]).ys[-1]
    closed = torch.exp(-torch.exp(raw)) * y0
    (by_ours,) = torch.autograd.grad((ours * pace).sum(), raw)
    (by_closed,) = torch.autograd.grad((closed * torch.exp(raw)).sum(), raw)
    torch.testing.assert_close(by_ours, by_closed, rtol=1e-9, atol=1e-9)


def test_single_precision():
    y0 = leaf(3, dtype=torch.float32)
    ys = solve(lambda t, y: -y, y0, [0.0, 1.0], rtol=1e-5, atol=1e-6).ys
    (by_start,) = torch.autograd.grad(ys[-1].sum(), y0)
    assert by_start.dtype == torch.float32
    torch.testing.assert_close(by_start, torch.full((3,), 1 / torch.e), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("drift", "expected"),
    [(lambda t, y: torch.zeros_like(y), 2.0), (lambda t, y: y.detach(), 2.0)],
    ids=["constant", "detached"],
)
def test_a_drift_without_derivatives_leaves_the_start(drift, expected):
    y0 = leaf(3)
    (by_start,) = torch.autograd.grad(solve(drift, y0, [0.0, 1.0]).ys.sum(), y0)
    torch.testing.assert_close(by_start, torch.full((3,), expected, dtype=torch.float64))


def test_nothing_is_recorded_where_nothing_asks_for_it():
    frozen, y0 = W.detach(), leaf(3).detach()
    assert not solve(lambda t, y: torch.sin(y @ frozen), y0, [0.0, 1.0]).ys.requires_grad
    with torch.no_grad():
        assert not solve(forced, leaf(3), times(0.0, 1.0)).ys.requires_grad


def test_recording_costs_no_drift_call():
    y0 = leaf(3)
    recorded = solve(forced, y0, [0.0, 1.0]).stats
    with torch.no_grad():
        assert solve(forced, y0, [0.0, 1.0]).stats == recorded


def test_parameters_changed_since_are_refused():
    net, y0 = network(2, 4), leaf(2)
    loss = solve(lambda t, y: net(y), y0, [0.0, 1.0]).ys.sum()
    with torch.no_grad():
        net[0].weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivatives_are_refused():
    """Of a linear loss, too, whose cotangent has no history."""
    y0 = leaf(2)
    ys = solve(lambda t, y: torch.sin(y), y0, [0.0, 1.0]).ys
    (once,) = torch.autograd.grad(ys.sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad((once + y0**2).sum(), y0)
