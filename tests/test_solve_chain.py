"""Discrete chains: the answer of a Python loop, whatever the map does, and its gradients."""

import pytest
import torch
from cases import SINGLE_OR_DOUBLE, generator, randn, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

import picardsolve as ps

ITERATIONS = (None, None, ps.Newton("diagonal"), ps.Secant(), ps.Jacobi(), ps.Picard())
SMALL = {"contracting": 0.2, "oscillating": 0.9, "growing": 1.2, "expanding": 3.0}  # by the size of the weights


def looped(step, x0, steps, *args):
    """The states of a batch ``(B, D)``, one step after the other."""
    path = [x0]
    for n in range(steps):
        path.append(step(torch.full((len(x0),), n), path[-1], *args))
    return torch.stack(path)


def network(gen, size, steps, gain, dtype):
    """A recurrent network with inputs; rotations of a size near ``gain`` for odd seeds."""
    weight = gain * torch.linalg.qr(randn(gen, size, size))[0].to(dtype)
    inputs = randn(gen, steps, size).to(dtype)
    return lambda n, x: torch.sin(x @ weight + inputs[n])


def logistic(n, x):
    return 3.9 * x * (1 - x)


def metropolis(gen, size, steps):
    """Metropolis-adjusted Langevin moves in a double well, with the noise and the uniform numbers fixed."""
    noise, uniform, h = randn(gen, steps, size), torch.rand(steps, generator=gen, dtype=torch.float64), 0.3

    def energy(x):
        return (x**4 / 4 - x**2 / 2).sum(-1)

    def unlikely(to, x):
        return ((to - x + h * (x**3 - x)) ** 2).sum(-1) / (4 * h)

    def step(n, x):
        y = x - h * (x**3 - x) + (2 * h) ** 0.5 * noise[n]
        log_ratio = energy(x) - energy(y) + unlikely(y, x) - unlikely(x, y)
        return torch.where((uniform[n].log() < log_ratio)[:, None], y, x)

    return step


def distance(found, expected):
    """The largest of any state, as tolerances measure it."""
    return float(((found - expected) / (1 + expected.abs())).square().mean(-1).sqrt().max())


@pytest.mark.parametrize("kind", SMALL)
@settings(max_examples=8)
@given(data=st.data())
def test_it_is_the_loop(kind, data):
    gen, dtype = generator(data.draw(seeds)), data.draw(st.sampled_from(SINGLE_OR_DOUBLE))
    steps, size, batch = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    step = network(gen, size, steps, SMALL[kind], dtype)
    x0, tol = randn(gen, batch, size).to(dtype), data.draw(st.sampled_from([1e-3, 1e-5]))
    how = {"window": data.draw(st.sampled_from([None, 1, 2, 7])), "iteration": data.draw(st.sampled_from(ITERATIONS))}
    sol, ref = ps.solve_chain(step, x0, steps, batch_dims=1, tol=tol, throw=False, **how), looped(step, x0, steps)
    assert sol.ys.dtype == dtype
    assert sol.ts.tolist() == list(range(steps + 1))
    assert sol.result is ps.Result.converged
    assert distance(sol.ys, ref) <= tol


@settings(max_examples=8)
@given(seeds, st.integers(1, 40), st.integers(1, 3))
def test_after_so_many_rounds_so_many_states_are_exact(seed, steps, rounds):
    gen = generator(seed)
    step, x0 = network(gen, 3, steps, 3.0, torch.float64), randn(gen, 2, 3)
    sol = ps.solve_chain(step, x0, steps, batch_dims=1, tol=0, max_rounds=rounds, throw=False)
    known = min(rounds, steps) + 1
    torch.testing.assert_close(sol.ys[:known], looped(step, x0, steps)[:known], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", SINGLE_OR_DOUBLE)
def test_a_chaotic_chain_is_stepped_and_says_so(dtype):
    x0 = torch.tensor([[0.3], [0.4]], dtype=dtype)
    sol = ps.solve_chain(logistic, x0, 150, batch_dims=1)
    assert torch.equal(sol.ys, looped(logistic, x0, 150))
    assert sol.result is ps.Result.converged
    assert "one by one" in " ".join(sol.notes)
    calm = ps.solve_chain(lambda n, x: x / 2, x0, 150, batch_dims=1)
    assert not calm.notes
    assert calm.stats.rounds <= 4


def test_a_chaotic_sample_disturbs_no_other():
    x0, rate = torch.tensor([[0.3], [0.4]], dtype=torch.float64), torch.tensor([3.9, 2.5], dtype=torch.float64)
    both = ps.solve_chain(lambda n, x, r: r[:, None] * x * (1 - x), x0, 100, batch_dims=1, args=(rate,))
    alone = ps.solve_chain(lambda n, x, r: r[:, None] * x * (1 - x), x0[1:], 100, batch_dims=1, args=(rate[1:],))
    assert torch.equal(both.ys[:, 1:], alone.ys)
    assert torch.equal(both.ys[:, :1], looped(logistic, x0[:1], 100))


@settings(max_examples=3)
@given(seeds)
def test_steps_that_jump_are_not_trusted_to_slopes(seed):
    """An error estimate from slopes alone calls the chain right at the wrong side of a jump: 1.4 off at 1e-6."""
    step, x0 = metropolis(generator(seed), 2, 60), torch.ones(1, 2, dtype=torch.float64)
    for how in ({}, {"iteration": ps.Secant()}):
        sol = ps.solve_chain(step, x0, 60, batch_dims=1, tol=1e-6, **how)
        assert distance(sol.ys, looped(step, x0, 60)) < 1e-6


@settings(max_examples=4)
@given(seeds, st.integers(5, 30))
def test_a_sample_that_fails_disturbs_no_other(seed, steps):
    gen = generator(seed)
    inner, broken = network(gen, 2, steps, 0.5, torch.float64), steps // 2

    def step(n, x, bad):
        return torch.where((bad * (n >= broken))[:, None] > 0, torch.nan, inner(n, x))

    x0, bad = randn(gen, 3, 2), torch.tensor([0.0, 1.0, 0.0])
    sol = ps.solve_chain(step, x0, steps, batch_dims=1, args=(bad,), throw=False)
    alone = ps.solve_chain(step, x0[[0, 2]], steps, batch_dims=1, args=(bad[[0, 2]],))
    assert sol.result is ps.Result.nonfinite
    torch.testing.assert_close(sol.ys[:, [0, 2]], alone.ys, rtol=1e-12, atol=1e-12)
    assert bool(sol.ys[: broken + 1].isfinite().all())
    with pytest.raises(ps.SolveError, match=f"Step {broken} of sample 1"):
        ps.solve_chain(step, x0, steps, batch_dims=1, args=(bad,))


@pytest.mark.parametrize("size", [3, 70])
@settings(max_examples=4)
@given(seed=seeds, steps=st.integers(1, 40), gain=st.sampled_from([0.3, 0.9, 1.3]))
def test_gradients_are_those_of_the_loop(size, seed, steps, gain):
    gen = generator(seed)
    weight = (gain * torch.linalg.qr(randn(gen, size, size))[0]).requires_grad_()
    x0, scale = randn(gen, 2, size).requires_grad_(), torch.tensor([1.0, 0.5], dtype=torch.float64).requires_grad_()
    inputs, toward = randn(gen, steps, size), randn(gen, steps + 1, 2, size)

    def step(n, x, scale):
        return torch.tanh(x @ weight + scale[:, None] * inputs[n])

    sol = ps.solve_chain(step, x0, steps, batch_dims=1, args=(scale,), tol=1e-11)
    wanted = x0, scale, weight
    found = torch.autograd.grad((sol.ys * toward).sum(), wanted)
    expected = torch.autograd.grad((looped(step, x0, steps, scale) * toward).sum(), wanted)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


def test_gradients_through_a_step_that_vmap_cannot_go_back_through():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, cotangent):
            (x,) = ctx.saved_tensors
            return 2 * cotangent * float(x.mean() * 0 + 1) * x if cotangent.sum() == cotangent.sum() else None

    x0 = torch.tensor([0.4, 0.6], dtype=torch.float64, requires_grad=True)
    sol = ps.solve_chain(lambda n, x: 0.5 + 0.3 * Square.apply(x), x0, 30, iteration=ps.Secant(), tol=1e-12)
    expected = looped(lambda n, x: 0.5 + 0.3 * x**2, x0[None], 30)[-1].sum()
    torch.testing.assert_close(
        *(torch.autograd.grad(value, x0)[0] for value in (sol.ys[-1].sum(), expected)), rtol=1e-9, atol=1e-12
    )


def test_structures_lifting_and_complex_states():
    inputs, x0 = torch.linspace(0, 1, 20), {"a": torch.ones(2), "b": torch.zeros(3)}

    def cell(n, x):
        return {"a": torch.cos(x["a"] + inputs[n]), "b": 0.5 * x["b"] + x["a"].sum()}

    sol = ps.solve_chain(cell, x0, 20, vectorized=False)
    state = x0
    for n in range(20):
        state = cell(torch.tensor(n), state)
    for name, value in state.items():
        torch.testing.assert_close(sol.ys[name][-1], value, rtol=1e-5, atol=1e-5)
    turned = ps.solve_chain(lambda n, x: 0.9j * x, torch.ones(2, dtype=torch.complex128), 30)
    torch.testing.assert_close(turned.ys[-1], torch.full((2,), 0.9j**30, dtype=torch.complex128))


def test_the_certificate_has_measured_the_errors():
    gen = generator(3)
    step, x0 = network(gen, 3, 60, 1.0, torch.float64), randn(gen, 3)
    sol = ps.solve_chain(step, x0, 60, tol=1e-4, window=8)
    true = (sol.ys - looped(step, x0[None], 60)[:, 0]).square().mean(-1).sqrt()
    seen = true > 1e-13
    assert bool(seen.any())
    torch.testing.assert_close(sol.certificate.error[seen], true[seen], rtol=0.1, atol=1e-14)
    assert "taking every step once more" in str(sol.certificate)
    assert sol.certificate.verify().holds
    assert float(sol.certificate.recheck().error.max()) < 1e-4


def test_the_last_state_alone():
    step, x0 = network(generator(1), 3, 60, 0.9, torch.float64), torch.ones(3, dtype=torch.float64)
    last, whole = (ps.solve_chain(step, x0, 60, save=save) for save in ("last", "all"))
    assert torch.equal(last.ys[0], whole.ys[-1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_steps": 0}, r"^n_steps: expected an integer >= 1, got 0"),
        ({"x0": torch.ones(2, dtype=torch.int64)}, r"^x0: expected a floating"),
        ({"step": 3}, r"^step: expected a function"),
        ({"step": lambda n: n}, r"^step: it is called with"),
        ({"step": lambda n, x: x.sum()}, r"^step: expected to return shape"),
        ({"step": lambda n, x: x + torch.rand(()), "iteration": ps.Jacobi()}, r"^step: it is random"),
        ({"step": lambda n, x: x.add_(1)}, r"^step: "),
    ],
)
def test_what_cannot_be_a_chain_is_refused(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ps.solve_chain(**{"step": lambda n, x: x / 2, "x0": torch.ones(2), "n_steps": 5, **given})


def test_a_step_that_counts_its_calls_is_refused():
    calls = []

    def step(n, x):
        calls.append(n)
        return x / 2 + len(calls)

    with pytest.raises(ValueError, match=r"^step: it is random"):
        ps.solve_chain(step, torch.ones(2), 20, iteration=ps.Jacobi())
