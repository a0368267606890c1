"""Newton iterations against Jacobians that are known, what they cost, and what they refuse."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import (
    assert_close,
    denoiser_cases,
    generator,
    grids,
    ode_cases,
    randn,
    random_drift,
    sde_cases,
    seeds,
)
from hypothesis import given
from hypothesis import strategies as st

import picardsolve as ps
from picardsolve.fixed_point.iterations import Iteration, Picard
from picardsolve.fixed_point.stopping import Increment
from picardsolve.fixed_point.window import Settings, Window
from picardsolve.integrators import Chain
from picardsolve.integrators.base import Rows
from picardsolve.problem.problem import Problem
from picardsolve.problem.recurrence import matrix_sweep
from picardsolve.problem.state import Layout
from picardsolve.problem.tolerances import Tolerance

ANY = st.one_of(
    ode_cases((torch.float64,)), sde_cases(dtypes=(torch.float64,)), denoiser_cases(dtypes=(torch.float64,))
)


class Spy(Iteration):
    """Picard, which keeps the differentiated steps."""

    def directions(self, size, rounds):
        return torch.eye(size)

    def sweep(self, steps, x, scratch, memory):
        if steps.derivatives is not None:
            self.derivatives, self.x = steps.derivatives.clone(), x[:-1].clone()
        return Picard().sweep(steps, x, scratch, memory)


def chain_of(case) -> tuple[Chain, torch.Tensor]:
    layout = Layout.of(case.y0, case.batch_dims)
    args = {} if isinstance(case.term, ps.Denoiser) else ()
    problem = Problem(case.term, layout, case.ts, args, ps.BrownianPath(case.seed))
    return case.integrator.chain(problem), layout.pack(case.y0)


@given(st.data())
def test_derivatives_are_those_of_the_steps(data):
    """Against central differences of the images, earlier outputs held fixed; lifted drifts likewise."""
    case = data.draw(ANY.filter(lambda case: case.steps > 2))
    if not isinstance(case.term, ps.Denoiser) and data.draw(st.booleans()):
        case = replace(case, term=replace(case.term, vectorized=False))
    chain, y0 = chain_of(case)
    spy, step = Spy(), 1e-5
    window = Window(chain, y0, Settings(case.steps, spy, ps.Copy(), Increment(Tolerance())))
    window.tell(chain.evaluate(window.ask()))
    width, batch, size = spy.x.shape
    n, sample = (index.ravel() for index in np.indices((width, batch)))
    noise = chain.increments(n, sample).reshape(width, batch, -1) if chain.noise_size else None

    def images(x):
        out = chain.evaluate(Rows(n, sample, x.flatten(0, 1))).reshape(width, 1, batch, -1)
        past = out.new_zeros(chain.memory, *out.shape[2:])
        own = (None if noise is None else noise[j : j + 1] for j in range(width))
        steps = (chain.steps(np.array([[j]]), x[j : j + 1], torch.cat([past, out[j]]), z) for j, z in enumerate(own))
        return torch.cat([step.images() for step in steps])

    for i in range(size):
        shift = torch.zeros(size, dtype=torch.float64)
        shift[i] = step
        expected = (images(spy.x + shift) - images(spy.x - shift)) / (2 * step)
        assert_close(spy.derivatives[:, :, i], expected, 1e-5 * (1 + float(expected.abs().max())))


@given(seeds, st.integers(2, 30), st.integers(1, 3), st.integers(1, 12))
def test_the_matrix_sweep_is_the_formula(seed, steps, batch, size):
    """Narrow and wide; behind states that did not change bit for bit the images, whatever overflows further on."""
    gen = generator(seed)
    images, x = randn(gen, steps, batch, size), randn(gen, steps + 1, batch, size)
    factor = randn(gen, steps, batch, size, size) / math.sqrt(size)
    fixed = seed % (steps + 1)
    x[1 : fixed + 1] = images[:fixed]
    y, change, residual = matrix_sweep(images.clone(), factor, x)
    state = x[0]
    for n, image in enumerate(images):
        state = image + torch.einsum("bij,bj->bi", factor[n], state - x[n])
        assert torch.allclose(y[n], state, rtol=1e-9, atol=1e-9)
        assert torch.allclose(change[n], state - x[n + 1], rtol=1e-9, atol=1e-9)
        assert torch.allclose(residual[n], (image - x[n + 1]).square().mean(-1).sqrt())
    for scale in (1.0, 1e200):
        y, change, _ = matrix_sweep(images.clone(), scale * factor, x)
        assert torch.equal(y[: fixed + 1], images[: fixed + 1])
        assert bool((change[:fixed] == 0).all())


# ---- how fast


@given(st.data(), st.sampled_from([ps.Euler(), ps.Heun(), ps.RK4()]))
def test_a_linear_problem_takes_one_update(data, integrator):
    """A round to solve it, and one that finds no change; both after the opening step of the window."""
    seed, ts = data.draw(seeds), data.draw(grids(min_steps=3))
    square, force = randn(generator(seed), 5, 5) / 5, randn(generator(seed + 1), 5)
    term, y0 = ps.ODE(lambda t, y: y @ square + t * force), randn(generator(seed + 2), 5)
    sol = ps.solve(
        term, y0, ts, integrator=integrator, iteration=ps.Newton(), window=99, rtol=0, atol=1e-10, stop="increment"
    )
    ref = ps.sequential(term, y0, ts, integrator=integrator)
    assert len(sol.history) <= 3
    assert_close(sol.ys, ref.ys, 1e-9)


@given(
    st.floats(-1.0, 1.0), st.floats(0.1, 1.0), st.integers(3, 30), seeds, st.sampled_from(["diagonal", "hutchinson"])
)
def test_geometric_brownian_motion_takes_one_update_with_the_diagonal(rate, volatility, steps, seed, jacobian):
    """dY = rate Y dt + volatility Y dW, and no step's slope beyond the clip."""
    term, ts = ps.SDE(lambda t, y: rate * y, lambda t, y: volatility * y), ps.grids.uniform(0, 1, steps)
    y0, how = 1 + torch.rand(6, generator=generator(seed), dtype=torch.float64), {"brownian": ps.BrownianPath(seed)}
    how["integrator"] = ps.EulerMaruyama()
    increments = ps.sequential(ps.SDE(lambda t, y: 0 * y, lambda t, y: 0 * y + 1), y0, ts, **how).ys.diff(dim=0)
    if float((1 + rate / steps + volatility * increments).abs().max()) > 2:
        return
    sol = ps.solve(
        term, y0, ts, iteration=ps.Newton(jacobian), window=steps, guess=ps.Copy(), tol=1e-8, stop="increment", **how
    )
    ref = ps.sequential(term, y0, ts, **how)
    assert len(sol.history) <= 2
    assert_close(sol.ys, ref.ys, 1e-7 * float(ref.ys.abs().max()))


@given(seeds, st.integers(6, 20))
def test_the_error_of_a_round_is_quadratic_in_the_last(seed, steps):
    """``|e'| <= C |e|^2``, ``C <= sum_n |Phi''| / 2 prod |Phi'|``; of sin(2 y), ``|f'| <= 2`` and ``|f''| <= 4``."""
    term, y0, ts = ps.ODE(lambda t, y: torch.sin(2 * y)), randn(generator(seed), 4), ps.grids.uniform(0, 1, steps)
    layout = Layout.of(y0, 0)
    chain = ps.Euler().chain(Problem(term, layout, ts, (), ps.BrownianPath(0)))
    window = Window(chain, layout.pack(y0), Settings(steps, ps.Newton(), ps.Copy(), Increment(Tolerance())))
    ref = ps.sequential(term, y0, ts, integrator=ps.Euler()).ys
    error = float((y0 - ref).abs().max())
    constant = math.exp(2) * 4 / 2  # sum of h max|f''| / 2 times the growth exp(max|f'|)
    while not window.done:
        window.tell(chain.evaluate(window.ask()))
        begin = int(window.begin[0])
        after = float((window.x[:, 0] - ref[begin : begin + len(window.x)]).abs().max())
        assert after <= constant * error**2 + 1e-14
        error = after


@given(seeds, st.integers(2, 12))
def test_full_damping_is_jacobi(seed, steps):
    term, y0, ts = ps.ODE(random_drift("mlp", seed, (3,), torch.float64)), randn(generator(seed), 3), None
    ts = ps.grids.uniform(0, 1, steps)
    sols = [
        ps.solve(term, y0, ts, integrator=ps.Euler(), iteration=iteration, window=steps, rtol=0, atol=1e-6)
        for iteration in (ps.Jacobi(), ps.Newton(damping=1.0), ps.Newton("diagonal", damping=1))
    ]
    for sol in sols[1:]:
        assert_close(sol.ys, sols[0].ys, 1e-14)
        assert sol.stats.rounds == sols[0].stats.rounds


# ---- what it costs


@given(st.data(), st.sampled_from(["dense", "diagonal", "hutchinson"]), st.sampled_from([None, 1, 7, 40]))
def test_evaluations_are_counted_with_the_tangents(data, jacobian, max_batch):
    case, seen = data.draw(ode_cases()), []
    drift, size = case.term.drift, math.prod(case.y0.shape[case.batch_dims :])
    case = replace(case, term=ps.ODE(lambda t, y: seen.append(len(t)) or drift(t, y)))
    sol = case.solve(tol=1e-3, iteration=ps.Newton(jacobian), window=8, max_batch=max_batch, stop="residual")
    each = 1 + (1 if jacobian == "hutchinson" else size)
    widths = [int(record.width.sum()) for record in sol.history]
    single = [int(record.width.max()) == 1 for record in sol.history]  # there no derivative is asked for
    asked = case.stages * sum(width * (1 if alone else each) for width, alone in zip(widths, single, strict=True))
    assert sol.stats.evaluations - asked in (0, 1, each)  # one row more asks whether the drift mixes its rows
    assert sol.stats.calls == len(seen)
    assert max_batch is None or max(seen) <= max(max_batch // each, 1) or any(single)
    assert max_batch is not None or sol.stats.calls == sol.stats.rounds


# ---- refusals


def refused(error, message, term=None, y0=None, **given_):
    term, y0 = term or ps.ODE(lambda t, y: -y), torch.ones(3) if y0 is None else y0
    with pytest.raises(error) as caught:
        ps.solve(term, y0, [0.0, 0.1, 0.2, 0.3], integrator=ps.Euler(), **given_)
    assert str(caught.value).startswith(message)


def test_a_large_dense_jacobian_is_refused_before_any_work():
    def drift(t, y):
        raise AssertionError("called")

    message = "jacobian: 'dense' takes states of at most 64 numbers, got 65; pass jacobian='diagonal' or 'hutchinson'."
    for guess in (ps.Copy(), ps.FrozenOutput()):
        refused(ValueError, message, ps.ODE(drift), torch.ones(65), iteration=ps.Newton(), guess=guess)


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return -y


def test_a_drift_without_derivatives_is_told_so():
    message = "drift: torch.func.jvp and vmap, which Newton needs, cannot differentiate it; pass another iteration"
    refused(ValueError, message, ps.ODE(lambda t, y: Opaque.apply(y)), iteration=ps.Newton())


def test_what_is_wrong_with_the_drift_itself_is_said_as_ever():
    def drift(t, y):
        return y[:2] if len(y) > 1 else y

    refused(ValueError, "drift: expected to return shape", ps.ODE(drift), iteration=ps.Newton())


def test_a_derivative_that_is_not_finite_does_no_harm():
    """The slope of a square root at zero is infinite: there the step falls back to Picard."""
    term, y0 = ps.ODE(lambda t, y: y.clamp(min=0).sqrt()), torch.tensor([0.0, 1.0], dtype=torch.float64)
    ts = ps.grids.uniform(0, 1, 12)
    ref = ps.sequential(term, y0, ts, integrator=ps.Euler()).ys
    for jacobian in ("dense", "diagonal", "hutchinson"):
        sol = ps.solve(term, y0, ts, integrator=ps.Euler(), iteration=ps.Newton(jacobian), window=12, tol=0)
        assert torch.equal(sol.ys, ref)


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        ({"jacobian": "full"}, ValueError, "jacobian: expected one of 'dense', 'diagonal', 'hutchinson', got 'full'."),
        ({"damping": 1.5}, ValueError, "damping: expected a number from 0 to 1, got 1.5."),
        ({"damping": "a"}, TypeError, "damping: expected a number from 0 to 1, got 'a'."),
        ({"seed": 0.5}, TypeError, "seed: expected an integer, got 0.5."),
    ],
)
def test_bad_arguments(given_, error, message):
    with pytest.raises(error) as caught:
        ps.Newton(**given_)
    assert str(caught.value) == message


@pytest.mark.parametrize("window", [32, 150])
def test_states_that_went_astray_are_not_taken(window):
    """Lorenz's equations by Euler: far down a window Newton's states pass 1e100, where sizes and ratios excuse them."""

    def lorenz(t, y):
        a, b, c = y.unbind(-1)
        return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)

    y0, ts = torch.tensor([1.0, 2.0, 20.0], dtype=torch.float64), ps.grids.uniform(0, 1.5, 150)
    how = {"integrator": ps.Euler(), "window": window, "tol": 1e-6}
    sol = ps.solve(ps.ODE(lorenz), y0, ts, iteration=ps.Newton(), **how)
    ref = ps.sequential(ps.ODE(lorenz), y0, ts, integrator=ps.Euler())
    assert_close(sol.ys, ref.ys, 1e-6 * (1 + float(ref.ys.abs().max())))
