"""Semilinear ODEs: exponential integrators against closed forms, and windows of them against the sequential solver."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from cases import (
    SINGLE_OR_DOUBLE,
    Case,
    assert_close,
    generator,
    grids,
    guesses,
    iterations,
    randn,
    random_drift,
    seeds,
    windows,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import picardsolve as ps
from picardsolve.problem.linear import Diagonal, Linear, Matrix, scalar_phi

STAGES = {ps.ETD1: 1, ps.ETDRK2: 2, ps.ETDRK4: 4}
ETD = [ps.ETD1(), ps.ETDRK2(), ps.ETDRK4()]


def wave_numbers(n: int) -> torch.Tensor:
    return n * torch.fft.fftfreq(n, dtype=torch.float64)


@st.composite
def linear_parts(draw) -> tuple[object, tuple[int, ...]]:
    """A dissipative linear part of any kind, up to stiff, and the shape of its states."""
    gen, stiffness = generator(draw(seeds)), draw(st.sampled_from([1.0, 1e3]))
    kind = draw(st.sampled_from(["diagonal", "matrix", "diffusion", "transport", "plane"]))
    if kind == "diagonal":
        return -stiffness * torch.rand(2, 3, generator=gen, dtype=torch.float64), (2, 3)
    if kind == "matrix":
        skew = randn(gen, 3, 3)
        return skew - skew.T - stiffness * torch.diag(torch.rand(3, generator=gen, dtype=torch.float64)), (3,)
    k = wave_numbers(5)
    if kind == "plane":
        return ps.Fourier(-stiffness / 8 * (wave_numbers(4)[:, None] ** 2 + k**2)), (2, 4, 5)
    return ps.Fourier(-stiffness / 4 * k**2 - (3j * k if kind == "transport" else 0)), (5,)


@st.composite
def cases(draw) -> Case:
    (linear, shape), seed, batch = draw(linear_parts()), draw(seeds), draw(st.sampled_from([0, 1, 3]))
    kind, dtype = draw(st.sampled_from(["affine", "mlp", "nonautonomous"])), draw(st.sampled_from(SINGLE_OR_DOUBLE))
    ts = draw(grids(max_span=1.0, increasing=True, max_steps=10))
    full = (batch, *shape) if batch else shape
    return Case(
        name=f"{linear} {kind} {dtype} {full} seed {seed} steps {len(ts) - 1}",
        term=ps.SemilinearODE(linear, random_drift(kind, seed, shape, dtype), draw(st.booleans())),
        y0=randn(generator(seed + 1), *full, dtype=dtype),
        ts=ts,
        integrator=draw(st.sampled_from(ETD)),
        growth=40,
        weight=float(ts[-1] - ts[0]),
        batch_dims=int(batch > 0),
    )


# ---- the sequential answer


@settings(max_examples=30)
@given(st.data())
def test_a_window_gives_the_sequential_answer(data):
    case = data.draw(cases())
    how = {"window": data.draw(windows), "guess": data.draw(guesses(ps.ODE(torch.sin)))}
    how |= {
        "iteration": data.draw(st.one_of(st.none(), iterations)),
        "max_batch": data.draw(st.sampled_from([None, 3])),
    }
    sol, ref = case.solve(tol=0, stop=data.draw(st.sampled_from(["increment", "error"])), **how), case.sequential()
    assert sol.result is ref.result is ps.Result.converged
    assert_close(sol.ys, ref.ys, case.rounding(ref.ys))
    stages = STAGES[type(case.integrator)]
    assert sol.stats.rounds <= case.steps * stages
    assert ref.stats.rounds == case.steps * stages


@settings(max_examples=15)
@given(st.data())
def test_the_exponential_iteration_is_the_step_with_its_outputs_held(data):
    """Of a constant N that is all there is: one round solves the window, from any guess, however stiff."""
    (linear, shape), seed, ts = data.draw(linear_parts()), data.draw(seeds), data.draw(grids(increasing=True))
    force, y0 = randn(generator(seed), *shape), randn(generator(seed + 1), *shape)
    term = ps.SemilinearODE(linear, lambda t, y: force.expand(y.shape))
    how = {"integrator": data.draw(st.sampled_from(ETD)), "rtol": 0, "atol": 1e-10, "stop": "increment"}
    sol = ps.solve(term, y0, ts, window=99, guess=ps.Copy(), **how)
    assert len(sol.history) <= 2
    assert_close(sol.ys, ps.sequential(term, y0, ts, integrator=how["integrator"]).ys, 1e-9)


@settings(max_examples=15)
@given(st.data())
def test_a_sample_that_fails_disturbs_no_other(data):
    case = data.draw(cases().filter(lambda case: case.batch_dims and len(case.y0) == 3))
    inner, sick, fails = case.term.nonlinear, data.draw(st.integers(0, 2)), data.draw(st.integers(0, case.steps - 1))
    limit = torch.full((3,), torch.inf, dtype=torch.float64)
    limit[sick] = case.ts[fails] - 1e-6

    def spoiled(t, y, limit):
        return inner(t, y) + torch.where(t >= limit.reshape(t.shape), torch.nan, 0.0).to(y)

    how = {"window": data.draw(windows), "tol": 0, "throw": False}
    term = replace(case.term, nonlinear=spoiled, vectorized=True)
    sol, well = replace(case, term=term, given={"args": (limit,)}).solve(**how), case.solve(**how)
    others = [s for s in range(3) if s != sick]
    assert_close(sol.ys[:, others], well.ys[:, others], case.rounding(well.ys))
    assert sol.result is ps.Result.nonfinite
    assert sol.ys[fails + 1 :, sick].isnan().flatten(1).any(1).all()


# ---- the linear part


@given(st.floats(-6, 3), st.floats(-math.pi, math.pi))
def test_phi_functions(size, angle):
    """Against the first row of the exponential of ``[[z, 1, ...], [0, 0, 1, ...], ...]``, by `scipy.linalg.expm`."""
    z = complex(10.0**size * math.cos(angle), 10.0**size * math.sin(angle))
    z = complex(-abs(z.real), z.imag)
    chain = np.diag([1.0 + 0j] * 3, 1)
    chain[0, 0] = z
    expected = scipy.linalg.expm(chain)[0]
    found = [
        float(abs(p - e)) for p, e in zip(scalar_phi(torch.tensor(z, dtype=torch.complex128), 3), expected, strict=True)
    ]
    assert max(found) <= 1e-13 * (1 + abs(z))  # expm loses as many digits as z has


@settings(max_examples=25)
@given(linear_parts(), seeds, st.sampled_from(SINGLE_OR_DOUBLE))
def test_every_kind_is_its_matrix(part, seed, dtype):
    """Applied, exponentiated and in a recurrence, against the matrix that its columns make."""
    given_, shape = part
    operator: Linear = ps.SemilinearODE(given_, torch.sin).operator
    size, unit = math.prod(shape), torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    dense = operator.apply(unit).reshape(size, size).T
    h = torch.tensor([0.01, 0.3], dtype=torch.float64)
    tables, dense_tables = operator.phi(h, 3, shape), Matrix(dense).phi(h, 3, (size,))
    c, at = randn(generator(seed), 7, 2, *shape), torch.tensor([0, 1, 1, 0, 1, 0, 0])[:, None]
    slack = 1e-9 if dtype == torch.float64 else 1e-4

    def cast(table):
        return table.to(dtype.to_complex() if table.is_complex() else dtype)

    for table, full in zip(tables, dense_tables, strict=True):
        expected = (full[at] @ c.reshape(7, 2, size, 1))[..., 0]
        found = operator.combined([(cast(table)[at], c.to(dtype))]).reshape(7, 2, size)
        assert_close(found.double(), expected, slack * (1 + float(expected.abs().max())))
        norms = torch.linalg.matrix_norm(full, 2)
        assert torch.allclose(operator.norm(table), norms, rtol=1e-6)
    change, states = torch.zeros(2, size, dtype=torch.float64), []
    for row, factor in zip(c.reshape(7, 2, size), dense_tables[0][at], strict=True):
        change = (factor @ change[..., None])[..., 0] + row
        states.append(change)
    found = operator.recur(cast(tables[0])[at], c.to(dtype)).reshape(7, 2, size).double()
    assert_close(found, torch.stack(states), slack * (1 + float(torch.stack(states).abs().max())))


# ---- order, and what is solved


@pytest.mark.parametrize("integrator", ETD)
@pytest.mark.parametrize("kind", ["diagonal", "matrix", "Fourier"])
def test_order(integrator, kind):
    """Logistic growth with its linear part apart, y' = a y - b y^2; the heat equation forced to u = exp(-2t) cos x."""
    y0, errors, steps = torch.full((1,), 0.2, dtype=torch.float64), [], [16, 32, 64, 128]
    for n in steps:
        ts = ps.grids.uniform(0, 2, n)
        if kind == "Fourier":
            grid = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8

            def exact(t, grid=grid):
                return torch.exp(-2 * t) * torch.cos(grid)

            term = ps.SemilinearODE(
                ps.Fourier(-(wave_numbers(8) ** 2)), lambda t, u, exact=exact: u**2 - exact(t) ** 2 - exact(t)
            )
            start, expected = torch.cos(grid), exact(ts[:, None])
        else:
            linear = torch.ones(1).double() if kind == "diagonal" else torch.ones(1, 1).double()
            term = ps.SemilinearODE(linear, lambda t, y: -(y**2))
            start, expected = y0, (1 / (1 + 4 * torch.exp(-ts)))[:, None]
        ys = ps.solve(term, start, ts, integrator=integrator, window=n, rtol=0, atol=1e-14).ys
        errors.append(float((ys - expected).abs().max()))
    assert errors[-1] > 1e-12
    assert abs(-np.polyfit(np.log2(steps), np.log2(errors), 1)[0] - integrator.order) <= 0.3


@settings(max_examples=15)
@given(st.data())
def test_other_integrators_solve_the_sum(data):
    (linear, shape), seed, ts = data.draw(linear_parts()), data.draw(seeds), data.draw(grids(max_steps=5))
    term = ps.SemilinearODE(linear, random_drift("mlp", seed, shape, torch.float64), data.draw(st.booleans()))
    plain = ps.ODE(lambda t, y: term.operator.apply(y) + random_drift("mlp", seed, shape, torch.float64)(t, y))
    y0, integrator = randn(generator(seed), *shape), data.draw(st.sampled_from([ps.Euler(), ps.RK4()]))
    sums = [ps.sequential(each, y0, ts, integrator=integrator).ys for each in (term, plain)]
    assert_close(*sums, 1e-12 * (1 + float(sums[1].abs().max())))


@pytest.mark.parametrize(("end", "steps", "most"), [(1, 200, 10), (4, 800, 19)])
def test_allen_cahn_in_few_rounds(end, steps, most):
    """To 1e-8 from numpy's exponential Euler."""
    k, x = wave_numbers(64), 2 * math.pi * torch.arange(64, dtype=torch.float64) / 64
    u0 = 0.5 * torch.sin(x) + 0.3 * torch.cos(3 * x) + 0.1 * randn(generator(0), 64)
    term, ts = ps.SemilinearODE(ps.Fourier(-(k**2)), lambda t, u: u - u**3), ps.grids.uniform(0, end, steps)
    sol = ps.solve(term, u0, ts, integrator=ps.ETD1(), window=steps, tol=1e-8)
    h, squares, u = end / steps, k.numpy() ** 2, u0.numpy()
    decay, slope = np.exp(-h * squares), np.where(squares > 0, -np.expm1(-h * squares) / np.maximum(squares, 1), h)
    for found in sol.ys[1:].numpy():
        u = np.fft.ifft(decay * np.fft.fft(u) + slope * np.fft.fft(u - u**3)).real
        assert np.abs(found - u).max() <= 2e-8  # tol (1 + |u|)
    assert len(sol.history) <= most
    picard = ps.solve(
        term,
        u0,
        ts,
        integrator=ps.ETD1(),
        window=steps,
        iteration=ps.Picard(),
        tol=1e-8,
        max_rounds=3 * most,
        throw=False,
    )
    assert picard.result is ps.Result.max_rounds


def test_certified_bounds_hold():
    """|N'| <= 1, and the heat equation contracts."""
    k, u0 = wave_numbers(16), randn(generator(0), 16)
    term = ps.SemilinearODE(ps.Fourier(-(k**2)), lambda t, u: torch.sin(u))
    for integrator in ETD:
        sol = ps.solve(term, u0, ps.grids.uniform(0, 1, 20), integrator=integrator, window=20, tol=1e-4)
        proven, true = sol.certificate.certified(1.0), sol.certificate.verify().error
        assert bool((true <= proven.bound).all())
        assert float(proven.bound.max()) <= 1e-2


# ---- refusals


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ps.SemilinearODE("L", torch.sin), TypeError, "linear: expected a floating-point tensor"),
        (lambda: ps.SemilinearODE(torch.eye(2), 3), TypeError, "nonlinear: expected a function, got int."),
        (lambda: ps.SemilinearODE(torch.tensor([torch.nan]), torch.sin), ValueError, "linear: expected finite"),
        (lambda: ps.Fourier([1.0]), TypeError, "symbol: expected a floating-point or complex tensor, got list"),
        (lambda: ps.Fourier(torch.tensor(1.0)), ValueError, "symbol: expected one value for each Fourier mode"),
        (
            lambda: ps.Fourier(1j * wave_numbers(4)),
            ValueError,
            "symbol: expected at -k the conjugate of its value at k",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("linear", "y0", "error", "message"),
    [
        (torch.ones(3), torch.ones(4), ValueError, "linear: expected one value for each of the state's numbers"),
        (torch.eye(3), torch.ones(3, 3), ValueError, "linear: expected a square matrix of the size of a state"),
        (ps.Fourier(torch.ones(4)), torch.ones(4, 5), ValueError, "linear: expected a symbol of the shape"),
        (torch.ones(2), (torch.ones(1), torch.ones(1)), TypeError, "y0: expected a single tensor for a SemilinearODE"),
    ],
)
def test_what_does_not_fit_the_state(linear, y0, error, message):
    def called(t, y):
        raise AssertionError("called")

    for integrator in (ps.ETD1(), ps.Euler()):
        with pytest.raises(error) as caught:
            ps.solve(ps.SemilinearODE(linear, called), y0, [0.0, 1.0], integrator=integrator)
        assert str(caught.value).startswith(message)
    square = ps.SemilinearODE(Diagonal(-torch.ones(3, 3)), lambda t, y: 0 * y)
    last = ps.solve(square, torch.ones(3, 3), [0.0, 1.0], integrator=ps.ETD1()).ys[-1]
    assert torch.allclose(last, torch.full((3, 3), math.exp(-1)))


def test_analyze_measures_exponential_steps():
    """What is iterated otherwise than by Picard is measured alike."""
    term, y0 = ps.SemilinearODE(-torch.ones(2, dtype=torch.float64), lambda t, y: torch.sin(y)), torch.ones(2).double()
    ts, how = ps.grids.uniform(0, 2, 200), {"integrator": ps.ETD1(), "tol": 1e-6}
    found = ps.analyze(term, y0, ts, **how)
    assert {row.width for row in found.table if row.reliable} >= {8, 32}
    for row in found.table:
        if row.reliable:
            rounds = ps.solve(term, y0, ts, window=row.width, **how).stats.rounds
            assert rounds / 2 <= row.rounds <= 2 * rounds


def test_an_ode_is_refused():
    with pytest.raises(TypeError, match=r"^integrator: ETD1 takes a SemilinearODE, got ODE; pass picardsolve\.Semi"):
        ps.solve(ps.ODE(torch.sin), torch.ones(2), [0.0, 1.0], integrator=ps.ETD1())
