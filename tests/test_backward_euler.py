"""Backward Euler: windows of equations against the same ones solved step by step, and against closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import Case, assert_close, generator, ode_cases, randn, seeds, wild, windows
from hypothesis import given, settings
from hypothesis import strategies as st

import picardsolve as ps

BE = ps.BackwardEuler()
STOPS = st.sampled_from(["increment", "residual", "error"])


def van_der_pol(mu: float):
    return lambda t, y: torch.stack([y[..., 1], mu * (1 - y[..., 0] ** 2) * y[..., 1] - y[..., 0]], -1)


def robertson(t, y):
    a, b, c = y.unbind(-1)
    slow, mixed, fast = 0.04 * a, 1e4 * b * c, 3e7 * b**2
    return torch.stack([mixed - slow, slow - mixed - fast, fast], -1)


@st.composite
def cases(draw, **how) -> Case:
    """Steps of ``h L <= 3/4``, so that every step has one solution, and multiplies an error by at most 4."""
    case = draw(ode_cases(max_span=0.5, **how))
    return replace(
        case, ts=case.ts[:8], integrator=BE, growth=4.0, term=replace(case.term, vectorized=draw(st.booleans()))
    )


def rounding(case: Case, ys: torch.Tensor) -> float:
    """What a correction that is left out may be, of each step and of either solver."""
    units = 8 * case.growth * (3 + 1.5 * case.y0.numel()) + 40
    return 2 * case.growth * case.steps * units * torch.finfo(ys.dtype).eps * (1 + float(ys.abs().max()))


# ---- the sequential answer


@settings(max_examples=15)
@given(st.data())
def test_a_window_gives_the_sequential_answer(data):
    """To rounding at tolerance 0, else to the tolerance; and more steps in a round never take more rounds than one."""
    case, guess = data.draw(cases()), data.draw(st.sampled_from([None, ps.FrozenOutput(), ps.Polynomial(2), wild]))
    how = {"window": data.draw(windows), "stop": data.draw(STOPS), "max_batch": data.draw(st.sampled_from([None, 7]))}
    tol = data.draw(st.sampled_from([0, 0, 1e-3]))
    sol, ref = case.solve(tol=tol, guess=guess, **how), case.sequential()
    assert sol.result is ref.result is ps.Result.converged
    allowed = tol * (1 + float(ref.ys.abs().max())) * math.sqrt(case.y0.numel())
    assert_close(sol.ys, ref.ys, rounding(case, ref.ys) + allowed)
    assert sol.stats.rounds <= (ref.stats.rounds if guess is None else 100 * case.steps)


@settings(max_examples=8)
@given(st.data())
def test_a_window_of_one_is_the_sequential_solver(data):
    case = data.draw(cases(dtypes=(torch.float64,), batches=(0, 1)))
    sol, ref = case.solve(tol=0, window=1), case.sequential()
    assert torch.equal(sol.ys, ref.ys)
    assert sol.stats.rounds == ref.stats.rounds >= 2 * case.steps  # one round finds nothing left to correct


@settings(max_examples=10)
@given(seeds, st.integers(3, 40), st.sampled_from([1.0, 1e3, 1e6]), windows)
def test_a_linear_problem_is_its_matrix_and_takes_one_update(seed, steps, stiffness, window):
    """Against numpy's solution of each equation; one round solves a window, the next finds nothing to correct."""
    vectors = torch.linalg.qr(randn(generator(seed), 4, 4))[0]
    matrix = vectors @ torch.diag(-torch.tensor([0.1, 1.0, stiffness, stiffness / 3], dtype=torch.float64)) @ vectors.T
    force, y0, ts = randn(generator(seed + 1), 4), randn(generator(seed + 2), 4), ps.grids.uniform(0, 1, steps)
    sol = ps.solve(
        ps.ODE(lambda t, y: y @ matrix.T + t * force), y0, ts, integrator=BE, window=window, tol=1e-9, stop="increment"
    )
    expected, h = [y0.numpy()], 1 / steps
    for t in ts[1:].tolist():
        expected.append(np.linalg.solve(np.eye(4) - h * matrix.numpy(), expected[-1] + h * t * force.numpy()))
    assert_close(sol.ys, torch.from_numpy(np.stack(expected)), 1e-9 * (1 + float(y0.abs().max())))
    assert sol.stats.rounds <= 1 + math.ceil(steps / window) * (2 if window < steps else 1)


@pytest.mark.parametrize("stiffness", [1.0, 1e5])
def test_order(stiffness):
    """Prothero & Robinson's y' = -k (y - cos t) - sin t, whose solution is cos t."""
    errors, steps = [], [64, 128, 256, 512]
    for n in steps:
        ts = ps.grids.uniform(0, 2, n)
        term = ps.ODE(lambda t, y: -stiffness * (y - torch.cos(t)) - torch.sin(t))
        ys = ps.solve(term, torch.ones(1, dtype=torch.float64), ts, integrator=BE, window=n, tol=1e-12).ys
        errors.append(float((ys[:, 0] - ts.cos()).abs().max()))
    assert errors[-1] > 1e-9
    assert abs(-np.polyfit(np.log2(steps), np.log2(errors), 1)[0] - BE.order) <= 0.1


# ---- stiff problems, and how many rounds they take

STIFF = {
    "Van der Pol, mu = 1000": (van_der_pol(1e3), [2.0, 0.0], torch.linspace(0, 800, 2001).double(), 8),
    "Robertson": (
        robertson,
        [1.0, 0.0, 0.0],
        torch.cat([torch.zeros(1), torch.logspace(-6, 5, 1000, dtype=torch.float64)]),
        28,
    ),
}


@pytest.mark.parametrize("name", STIFF)
def test_stiff_problems_in_few_rounds(name):
    """What Newton's method would still correct, of each equation by itself, is within the tolerance."""
    drift, start, ts, most = STIFF[name]
    y0, ts = torch.tensor(start, dtype=torch.float64), ts.double()
    sol = ps.solve(ps.ODE(drift), y0, ts, integrator=BE, window=len(ts) - 1, tol=1e-8)
    assert sol.stats.rounds <= most
    x, z, h = sol.ys[:-1], sol.ys[1:], ts.diff()[:, None]
    jacobian = torch.vmap(torch.func.jacrev(lambda y: drift(None, y)))(z)
    matrix, missing = torch.eye(len(y0)) - h[..., None] * jacobian, x - z + h * drift(None, z)
    correction = np.linalg.solve(matrix.numpy(), missing[..., None].numpy())
    assert np.abs(correction).max() <= 1e-8


def test_a_window_that_diverges_goes_on_from_what_did_not():
    """Through the jumps of a relaxation oscillator; the whole of it in one window."""
    y0, ts = torch.tensor([2.0, 0.0], dtype=torch.float64), torch.linspace(0, 12, 361).double()
    sol, ref = (
        solver(ps.ODE(van_der_pol(10.0)), y0, ts, integrator=BE, **how)
        for solver, how in ((ps.solve, {"window": 360, "tol": 1e-9}), (ps.sequential, {}))
    )
    assert sol.stats.rounds <= ref.stats.rounds / 10
    assert_close(sol.ys, ref.ys, 1e-8)


def test_a_solution_on_a_branch_that_repels_is_refused():
    """y' = 2 y in steps of 1: backward Euler's is -y. Van der Pol's jump in steps of 2: some beyond the fold."""
    one, pair = torch.ones(1, dtype=torch.float64), torch.tensor([1.2, -0.0027], dtype=torch.float64)
    growing = ps.ODE(lambda t, y: 2 * y), one, torch.arange(4.0)
    jumping = ps.ODE(van_der_pol(1e3)), pair, torch.arange(0.0, 200, 2)
    for term, y0, ts in (growing, jumping):
        for solver, how in ((ps.sequential, {}), *((ps.solve, {"window": w, "tol": 1e-8}) for w in (7, 100))):
            with pytest.raises(ps.SolveError, match="take smaller steps"):
                solver(term, y0, ts.double(), integrator=BE, **how)


# ---- samples


@settings(max_examples=10)
@given(st.data())
def test_a_sample_that_fails_disturbs_no_other(data):
    """Nor does a sample's answer depend on its company."""
    case = data.draw(cases(dtypes=(torch.float64,), batches=(3,)))
    sick, fails = data.draw(st.integers(0, 2)), data.draw(st.integers(0, case.steps - 1))
    limit = torch.full((3,), torch.inf, dtype=torch.float64)
    limit[sick] = (case.ts[fails + 1] - case.ts[0]).abs()
    inner, start = case.term.drift, case.ts[0]

    def drift(t, y, limit):
        bad = (t - start).abs() >= limit.reshape(t.shape)
        return inner(t, y) + torch.where(bad, torch.nan, 0.0)

    whole = replace(case, term=ps.ODE(drift), given={"args": (limit,)})
    how = {"window": data.draw(windows), "tol": data.draw(st.sampled_from([0, 1e-6])), "stop": data.draw(STOPS)}
    sol, ref = whole.solve(throw=False, **how), whole.sequential(throw=False)
    assert sol.result is ref.result is ps.Result.nonfinite
    assert torch.equal(sol.ys.isnan(), ref.ys.isnan())
    assert torch.equal(sol.ys[: fails + 1].isnan(), torch.zeros_like(sol.ys[: fails + 1], dtype=torch.bool))
    assert sol.ys[fails + 1 :, sick].isnan().all()
    for sample in {0, 1, 2} - {sick}:
        alone = replace(case, y0=case.y0[sample : sample + 1]).solve(**how).ys[:, 0]
        assert_close(sol.ys[:, sample], alone, rounding(case, alone))
    with pytest.raises(ps.SolveError) as caught:
        whole.solve(**how)
    assert caught.value.step == fails


# ---- what is said of the result


@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-9])
def test_certificates(tol):
    y0, ts = torch.tensor([2.0, 0.0], dtype=torch.float64), torch.linspace(0, 2, 41).double()
    sol = ps.solve(ps.ODE(van_der_pol(10.0)), y0, ts, integrator=BE, window=40, tol=tol)
    verified = sol.certificate.verify()
    assert verified.holds
    assert float(sol.certificate.error.max()) <= 10 * tol
    assert torch.equal(verified.reference.ys, ps.sequential(ps.ODE(van_der_pol(10.0)), y0, ts, integrator=BE).ys)


def test_a_certified_bound_needs_a_step_with_a_solution():
    """y' = -1000 y: the two-sided constant says nothing of steps of 0.1, the one-sided one that they contract."""
    y0, ts = torch.ones(2, dtype=torch.float64), ps.grids.uniform(0, 2, 20)
    sol = ps.solve(ps.ODE(lambda t, y: -1000 * y + torch.sin(y)), y0, ts, integrator=BE, window=20, tol=1e-2)
    with pytest.raises(ValueError, match="lipschitz: expected below 1 / h, got 100 / h"):
        sol.certificate.certified(1001.0)
    proven = sol.certificate.certified(1001.0, -999.0)
    true = sol.certificate.verify().error
    assert bool((true <= proven.bound).all())
    assert float(proven.bound.max()) <= 2e-2


# ---- refusals


def called(t, y):
    raise AssertionError("the drift was called")


@pytest.mark.parametrize(
    "iteration",
    [
        *(ps.Picard(), ps.Jacobi(), ps.Exponential(), ps.Secant(), ps.MultiSecant(), ps.Anderson(), ps.Parareal()),
        *(ps.Newton("diagonal"), ps.Newton("hutchinson")),
    ],
)
def test_other_iterations_are_refused_by_name(iteration):
    with pytest.raises(TypeError) as caught:
        ps.solve(ps.ODE(called), torch.ones(2), [0.0, 0.1, 0.2], integrator=BE, iteration=iteration)
    assert str(caught.value).startswith(
        f"iteration: an implicit integrator is iterated by Newton() with the whole Jacobian, got {iteration!r}; pass "
    )


@pytest.mark.parametrize(
    ("term", "size", "error", "message"),
    [
        (ps.ODE(called), 65, ValueError, "integrator: BackwardEuler keeps Jacobians of states of at most 64 numbers"),
        (ps.SDE(called, called), 2, TypeError, "integrator: BackwardEuler takes an ODE, got SDE; pass Euler()"),
    ],
)
def test_what_it_cannot_solve_is_refused_before_any_work(term, size, error, message):
    for solver in (ps.solve, ps.sequential):
        with pytest.raises(error) as caught:
            solver(term, torch.ones(size), [0.0, 0.1], integrator=BE)
        assert str(caught.value).startswith(message)


def test_analyze_refuses_it():
    with pytest.raises(TypeError, match=r"^integrator: analyze forecasts Picard .* not what BackwardEuler\(\)"):
        ps.analyze(ps.ODE(called), torch.ones(2), [0.0, 0.1], integrator=BE)
