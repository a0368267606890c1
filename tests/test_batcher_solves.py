"""Solves that share a model: what they return does not depend on the company, and how wide they are does."""

import itertools
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_batcher import LONG, Model, at_once, in_threads

import picardsolve as ps
from picardsolve.serving.load import Load

pytestmark = pytest.mark.timeout(120)
BETAS = ps.schedules.from_betas(torch.linspace(1e-4, 0.02, 1000))
TS = ps.grids.uniform(0.0, 3.0, 40)


def drift(t, y):
    return torch.sin(3 * y) - 0.5 * y + torch.cos(t)


def noise(x, t, shift=None):
    """Predicts noise, elementwise: its values do not depend on the batch."""
    out = torch.tanh(x) * (0.5 + t[:, None] / 2000)
    return out if shift is None else out + shift[:, None]


def ode(drift: Any, k: int, **given: Any) -> ps.Solution:
    y0 = torch.linspace(-1, 1, 3, dtype=torch.float64) + k
    return ps.solve(ps.ODE(drift), y0, TS, integrator=(ps.Euler(), ps.RK4())[k % 2], tol=10.0 ** -(4 + k % 3), **given)


def sde(drift: Any, k: int, **given: Any) -> ps.Solution:
    term, path = ps.SDE(drift, lambda t, y: 0.3 + 0 * y, noise="additive"), ps.BrownianPath(seed=k)
    y0 = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(2, 2) + k
    return ps.solve(term, y0, TS, integrator=ps.EulerMaruyama(), brownian=path, batch_dims=1, tol=1e-4, **given)


def image(network: Any, k: int, **given: Any) -> ps.Solution:
    """Samplers with and without noise, one of which remembers its last outputs; one or two images."""
    integrator = (ps.DDPM(), ps.DDIM(), ps.DPMSolver(2), ps.DDIM(eta=1.0))[k % 4]
    x = torch.randn(1 + k % 2, 3, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    cond = {"shift": torch.full((len(x),), 0.1 * k, dtype=torch.float64)} if k % 3 else None
    model, ts, path = ps.Denoiser(network, BETAS), ps.grids.uniform(999, -1, 40), ps.BrownianPath(seed=k)
    return ps.solve(model, x, ts, integrator=integrator, brownian=path, cond=cond, **given)


SOLVES = {ode: drift, sde: drift, image: noise}


@pytest.mark.parametrize("solve", SOLVES)
def test_with_a_fixed_window_nothing_depends_on_the_company(solve):
    windows = [12, 1, 7, 30]
    alone = [solve(SOLVES[solve], k, window=windows[k]) for k in range(4)]
    model = Model(SOLVES[solve])
    batcher = ps.Batcher(model, max_rows=20, max_wait=1.0)
    together = in_threads([lambda k=k: solve(batcher, k, window=windows[k]) for k in range(4)])
    assert batcher.rounds.merged > 0
    assert max(model.rows) <= 20
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.ys, other.ys)
        assert one.stats == other.stats
        assert torch.equal(one.certificate.error, other.certificate.error)


@pytest.mark.parametrize("solve", SOLVES)
@given(data=st.data())
def test_with_an_automatic_window_answers_are_within_the_tolerance_whatever_the_load(solve, data):
    """Widths that come and go as they like: windows, and single steps between them."""
    k = data.draw(st.integers(0, 7))
    widths = data.draw(st.lists(st.sampled_from([1, 1, 1, 2, 3, 8, 20]), min_size=1, max_size=12))
    exact = solve(SOLVES[solve], k, window=1)
    batcher = ps.Batcher(SOLVES[solve], max_rows=64)
    load = itertools.chain(*itertools.repeat([w for w in widths for _ in range(data.draw(st.integers(1, 6)))], 1000))
    batcher.load.width = lambda *_: next(load)
    solved = solve(batcher, k, window="auto")
    assert solved.result is ps.Result.converged
    far = (solved.ys - exact.ys).abs()
    if solve is image:
        far, tolerance = far.square().mean(-1).sqrt() / exact.ys.square().mean(-1).sqrt(), 1e-3
    else:
        far, tolerance = far / (1 + exact.ys.abs()), 1e-4 if solve is sde else 10.0 ** -(4 + k % 3)
    assert float(far.max()) <= 2 * tolerance
    assert float(solved.certificate.error.max()) < float("inf")


def test_single_steps_only_are_the_sequential_solvers():
    batcher = ps.Batcher(noise, max_rows=8)
    batcher.load.width = lambda *_: 1
    for k in range(4):
        solved, exact = image(batcher, k, window="auto"), image(noise, k, window=1)
        assert torch.equal(solved.ys, exact.ys)
        assert solved.stats.rounds == 40


@pytest.mark.parametrize("at", [0, 17, 39])
def test_a_step_that_is_not_finite_fails_its_own_request_only(at):
    def breaks(x, t, shift=None):
        return torch.where(((x.abs() < 50).all(-1) | (t > 999 - 25 * at))[:, None], noise(x, t), torch.nan)

    batcher = ps.Batcher(breaks, max_rows=64, max_wait=0.01)
    batcher.load.width = lambda *_: 1 if threading.get_ident() % 2 else 6
    ts = ps.grids.uniform(999, -1, 40)

    def solve(size):
        return ps.solve(
            ps.Denoiser(batcher, BETAS), torch.full((1, 3), size).double(), ts, integrator=ps.DDIM(), window="auto"
        )

    bad, good = in_threads([lambda: solve(1e3), lambda: solve(0.5)])
    assert isinstance(bad, ps.SolveError)
    assert good.result is ps.Result.converged


def test_collocation_and_the_sequential_solver_share_rounds_too():
    batcher = ps.Batcher(drift, max_rows=100, max_wait=1.0)
    y0, ts = torch.ones(3).double(), TS
    functions = [
        lambda: ps.solve(ps.ODE(batcher), y0, ts, integrator=ps.Collocation()),
        lambda: ps.sequential(ps.ODE(batcher), y0, ts, integrator=ps.RK4()),
        lambda: ps.odeint(batcher, y0, ts, options={"vectorized": True}),
    ]
    found = in_threads(functions)
    assert batcher.rounds.merged > 0
    expected = ps.odeint(drift, y0, ts, rtol=1e-10, atol=1e-12, options={"vectorized": True})
    for ys in (found[0].ys, found[1].ys, found[2]):
        torch.testing.assert_close(ys, expected, rtol=1e-3, atol=1e-3)


def test_a_request_may_be_given_in_the_place_of_the_model():
    batcher = ps.Batcher(drift, max_rows=100)
    with batcher.request() as model:
        solved = ode(model, 0, window=12)
        assert model.calls > 0
        assert model.rows == solved.stats.evaluations - 1  # but for the first call, in which parameters are looked for
    assert torch.equal(solved.ys, ode(drift, 0, window=12).ys)
    assert torch.equal(solved.certificate.recheck().error.isfinite(), torch.ones(41, dtype=torch.bool))


def test_gradients_go_through_a_batcher():
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(3).double().requires_grad_()

    def gradients(drift):
        sol = ps.solve(ps.ODE(drift), y0, TS, integrator=ps.RK4(), window=20, tol=1e-8)
        return torch.autograd.grad(sol.ys[-1].sum(), [y0, weight])

    def pull(t, y):
        return -weight * y

    torch.testing.assert_close(gradients(ps.Batcher(pull, max_rows=64)), gradients(pull))


def test_a_cancelled_solve_raises_and_leaves_the_others_alone():
    entered = threading.Event()

    def model(x, t, shift=None):
        entered.set()
        return noise(x, t, shift)

    batcher = ps.Batcher(model, max_rows=64, max_wait=0.05)
    with batcher.request() as victim:

        def cancel():
            assert entered.wait(100)
            victim.cancel()

        endless = itertools.repeat(0)

        def solve_on():
            for _ in endless:
                image(victim, 0, window=5)

        found = in_threads([solve_on, cancel, lambda: image(batcher, 2, window=5)])
    assert isinstance(found[0], ps.Cancelled)
    assert torch.equal(found[2].ys, image(noise, 2, window=5).ys)


# ---- widths follow the load


def learnt(fixed: float, of_a_row: float, accepted: float = 0.5, own: float = 0.0) -> Load:
    """A load that has seen calls of ``fixed + of_a_row * rows`` seconds, and windows that accept a share of steps."""
    load = Load(64)
    for rows in (1, 2, 4, 8, 16, 32, 64):
        for _ in range(3):
            load.called(rows, fixed + of_a_row * rows)
            load.between.note(rows, own)
            load.strides(100).note(rows, max(accepted * rows, 1))
    return load


@given(st.floats(0, 10), st.floats(0.01, 10), st.floats(0.2, 0.9), st.floats(0, 5), st.integers(1, 4))
def test_windows_shrink_towards_one_as_requests_queue(fixed, of_a_row, accepted, own, rows):
    load = learnt(fixed, of_a_row, accepted, own)
    widths = [load.width(count, rows, 40, 100) for count in range(1, 129)]
    assert all(1 <= width <= max(64 // (count * rows), 1) for count, width in enumerate(widths, 1))
    assert widths[0] <= 40
    assert set(widths[65:]) == {1}
    steps = [n / (n * own + fixed + of_a_row * n * rows * w) * max(accepted * w, 1) for n, w in enumerate(widths, 1)]
    singly = [n / (n * own + fixed + of_a_row * n * rows) for n in range(1, 129)]
    assert all(many >= one * 0.99 for many, one in zip(steps, singly, strict=True))


def test_a_request_by_itself_fills_the_idle_rows_where_they_cost_little():
    assert learnt(1.0, 0.001).width(1, 1, 100, 100) == 64
    assert learnt(1.0, 0.001).width(4, 1, 100, 100) == 16
    assert learnt(1.0, 0.001).width(16, 1, 100, 100) == 4


def test_where_rows_cost_what_a_call_does_nobody_gets_a_window():
    assert [learnt(0.0, 1.0).width(n, 1, 100, 100) for n in (1, 2, 16)] == [1, 1, 1]


def test_before_anything_is_known_rows_are_shared_evenly():
    assert [Load(64).width(n, 2, 40, 100) for n in (1, 2, 8, 64)] == [32, 16, 4, 1]


def test_the_company_that_widths_depend_on_is_that_under_way():
    batcher, inside = ps.Batcher(Model(), max_rows=64, max_wait=LONG), []

    def request(r):
        t, y = torch.ones(1, 1), torch.ones(1, 3)
        r(t, y)
        inside.append(batcher.company)
        r(t, y)

    at_once(batcher, [request] * 3)
    assert inside == [3, 3, 3]
    assert batcher.company == 1


def test_a_call_waits_as_long_as_company_saves_and_others_work():
    """A shared call saves the fixed part of one; before calls are known two milliseconds are waited."""
    assert learnt(1.0, 0.01).patience(4, [(4, 0.5)]) == pytest.approx(1.0 + 0.5)
    assert learnt(0.0, 1.0).patience(4, [(4, 0.0)]) == pytest.approx(0.0)
    assert Load(64).patience(4, [(4, 0.5)]) == 0.002
