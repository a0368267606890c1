"""The formulas of `picardsolve.theory`, against problems where they hold with equality, or brute force.

Where a formula is exact, versions of it with a factor, an exponent or an index that is off are shown to be rejected.
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from cases import generator, iterations, randn, random_grid, seeds, windows
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import picardsolve as ps
from picardsolve import theory
from picardsolve.fixed_point.stopping import Increment
from picardsolve.fixed_point.window import Settings, Window
from picardsolve.integrators import Chain
from picardsolve.problem.problem import Problem
from picardsolve.problem.state import Layout
from picardsolve.problem.tolerances import Tolerance

NAN, INF = float("nan"), float("inf")
UNIT = 2.0**-24  # roundoff of float32


def full_window(term, y0: torch.Tensor, ts: torch.Tensor, batch_dims: int = 0) -> tuple[Chain, Window]:
    """Picard on all steps at once, from a constant guess, until nothing changes."""
    layout = Layout.of(y0, batch_dims)
    chain = ps.Euler().chain(Problem(term, layout, ts, (), ps.BrownianPath(0)))
    start = y0 if batch_dims else y0[None]
    return chain, Window(chain, start, Settings(len(ts) - 1, ps.Picard(), ps.Copy(), Increment(Tolerance())))


def rounds_of(chain: Chain, window: Window, ref: torch.Tensor, most: int) -> list[torch.Tensor]:
    """The errors to the sequential states ``(N + 1, B, D)`` after each round."""
    errors, last = [], len(ref) - 1
    while not window.done and len(errors) < most:
        window.tell(chain.evaluate(window.ask()))
        state = torch.as_tensor(window.begin) + torch.arange(len(window.x))[:, None]
        sample = torch.arange(ref.shape[1]).expand_as(state)
        error, within = torch.zeros_like(ref), state <= last
        error[state[within], sample[within]] = (window.x - ref[state.clamp(max=last), sample])[within]
        errors.append(error)
    return errors


# ---- constants


@st.composite
def networks(draw):
    """A drift of rows with a Jacobian of its own each, and the rows."""
    rows, size, seed = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(seeds)
    weight, y = randn(generator(seed), size, size), randn(generator(seed + 1), rows, size)
    return (lambda x: torch.tanh(x) @ weight), y


def jacobians(f, y: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.func.jacrev(lambda x: f(x[None])[0])(row) for row in y])


def exact_norms(f, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    jacobian = jacobians(f, y)
    return torch.linalg.matrix_norm(jacobian, 2), torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2)[:, -1]


@given(networks(), seeds)
def test_norms_of_jacobians_are_exact_after_as_many_products_as_dimensions(network, seed):
    f, y = network
    spectral, logarithmic = exact_norms(f, y)
    scale = 1e-9 * spectral.max()
    assert torch.allclose(theory.spectral_norm(f, y, seed=seed), spectral, rtol=1e-9, atol=scale)
    assert torch.allclose(theory.logarithmic_norm(f, y, seed=seed), logarithmic, rtol=1e-9, atol=scale)


@given(networks(), seeds)
def test_norms_of_jacobians_are_approached_from_below(network, seed):
    f, y = network
    for norm, exact in zip((theory.spectral_norm, theory.logarithmic_norm), exact_norms(f, y), strict=True):
        values = [norm(f, y, iterations, seed) for iterations in range(1, y.shape[1] + 1)]
        slack = 1e-9 * exact_norms(f, y)[0]
        assert all((before <= after + slack).all() for before, after in itertools.pairwise([*values, exact]))


@given(seeds)
def test_one_product_is_a_rayleigh_quotient_and_not_the_norm(seed):
    """The bound is strict: a Krylov space of one direction does not hold the worst one."""
    y = randn(generator(seed), 2, 6)
    f = lambda x: x * torch.arange(1.0, 7, dtype=torch.float64)  # noqa: E731
    assert (theory.spectral_norm(f, y, 1, seed) < 6 * (1 - 1e-6)).all()
    assert (theory.logarithmic_norm(f, y, 1, seed) < 6 * (1 - 1e-6)).all()
    assert torch.allclose(theory.spectral_norm(f, y, 6, seed), torch.full((2,), 6.0, dtype=torch.float64))


@given(seeds, st.floats(-2, 2), st.floats(0.1, 2))
def test_two_products_are_enough_for_two_eigenvalues(seed, low, gap):
    """Of ``J^T J``, and of the symmetric part, whatever the skew part: the Krylov spaces are theirs, not those of J."""
    source, size = generator(seed), 6
    basis, other = (torch.linalg.qr(randn(source, size, size)).Q for _ in range(2))
    two = low + gap * (torch.arange(size) < 3).double()
    skew, y = randn(source, size, size), randn(source, 1, size)
    matrix = basis @ torch.diag(two) @ basis.T + skew - skew.T
    assert float(theory.logarithmic_norm(lambda x: x @ matrix.T, y, 2)) == pytest.approx(low + gap, abs=1e-9)
    matrix = basis @ torch.diag(two) @ other
    exact = pytest.approx(float(two.abs().max()), abs=1e-7)
    assert float(theory.spectral_norm(lambda x: x @ matrix.T, y, 2)) == exact


@given(networks(), st.data())
def test_norms_of_jacobians_do_not_depend_on_the_company(network, data):
    f, y = network
    row = data.draw(st.integers(0, len(y) - 1))
    company = torch.cat([y[:row], torch.full_like(y[:1], NAN), y[row:]])
    for norm in (theory.spectral_norm, theory.logarithmic_norm):
        together = norm(f, company)
        assert together[row].isnan()
        assert torch.allclose(torch.cat([together[:row], together[row + 1 :]]), norm(f, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rate", [-3.0, 0.0, 2.0])
def test_a_krylov_space_that_ends_early_adds_no_eigenvalue(rate):
    y = torch.ones(2, 5, dtype=torch.float64)
    assert theory.logarithmic_norm(lambda x: rate * x, y).tolist() == pytest.approx([rate] * 2, abs=1e-14)
    assert theory.spectral_norm(lambda x: rate * x, y).tolist() == pytest.approx([abs(rate)] * 2, abs=1e-14)


@given(seeds, st.integers(-100, 100))
def test_constants_scale_with_the_drift(seed, power):
    """By a power of two, in float32, to the bit: no square under- or overflows."""
    factor, source = 2.0**power, generator(seed)
    dx, df, weight = (randn(source, 4, 4, dtype=torch.float32) for _ in range(3))
    for sampled in (theory.sampled_lipschitz, theory.sampled_one_sided):
        assert sampled(dx, factor * df) == factor * sampled(dx, df)
        assert sampled(dx / factor, df) == factor * sampled(dx, df)
    f = lambda x: torch.sin(x) @ weight  # noqa: E731
    assert torch.equal(theory.spectral_norm(lambda x: factor * f(x), dx), factor * theory.spectral_norm(f, dx))


@given(seeds, st.integers(1, 6), st.integers(1, 3), st.integers(1, 5))
def test_sampled_constants_are_the_largest_quotients(seed, rows, samples, size):
    source = generator(seed)
    dx, df = randn(source, rows, samples, size), randn(source, rows, samples, size)
    quotients = torch.tensor(
        [
            [[float(b.norm() / a.norm()), float(a @ b / (a @ a))] for a, b in zip(*row, strict=True)]
            for row in zip(dx, df, strict=True)
        ],
        dtype=torch.float64,
    )
    lipschitz, one_sided = theory.sampled_lipschitz(dx, df), theory.sampled_one_sided(dx, df)
    assert torch.allclose(lipschitz, quotients[..., 0].amax(0), rtol=1e-12)
    assert torch.allclose(one_sided, quotients[..., 1].amax(0), rtol=1e-12, atol=1e-12)
    dx[0, 0], df[0, 0] = 0, 1  # a row that did not move tells nothing
    still = theory.sampled_lipschitz(dx, df), theory.sampled_one_sided(dx, df)
    rest = quotients[1:, 0].amax(0).tolist() if rows > 1 else [0, -INF]
    assert [float(still[0][0]), float(still[1][0])] == pytest.approx(rest, abs=1e-12)
    dx[0, 0] = NAN  # and one that is not a number only speaks of its sample
    assert theory.sampled_lipschitz(dx, df)[0].isnan()
    assert torch.equal(theory.sampled_lipschitz(dx, df)[1:], lipschitz[1:])


@given(seeds, st.integers(2, 6))
def test_sampled_constants_are_lower_bounds_that_linear_drifts_attain(seed, size):
    source = generator(seed)
    matrix, dx = randn(source, size, size), randn(source, 20, size)
    spectral, symmetric = torch.linalg.matrix_norm(matrix, 2), torch.linalg.eigh((matrix + matrix.T) / 2)
    assert theory.sampled_lipschitz(dx, dx @ matrix.T) < spectral
    assert theory.sampled_one_sided(dx, dx @ matrix.T) < symmetric.eigenvalues[-1]
    worst = torch.linalg.svd(matrix).Vh[:1]
    assert theory.sampled_lipschitz(worst, worst @ matrix.T) == pytest.approx(float(spectral), rel=1e-12)
    worst = symmetric.eigenvectors[:, -1:].T
    expected = pytest.approx(float(symmetric.eigenvalues[-1]), rel=1e-10, abs=1e-12)
    assert theory.sampled_one_sided(worst, worst @ matrix.T) == expected


# ---- bounds of Picard's error


def obeys(measured: list[float], law, rel: float = 1e-9) -> bool:
    """Whether ``law(k)`` is what was measured after round k, to 9 digits, above rounding."""
    return all(math.isclose(law(k), value, rel_tol=rel, abs_tol=1e-13) for k, value in enumerate(measured))


@given(st.floats(0.2, 3.0), st.floats(0.5, 2.0))
def test_factorial_bound_is_the_error_for_exponential_growth(rate, span):
    """Of ``e_k(t) = rate int_0^t e_{k-1}`` with polynomials, from ``e_0 = 1``: no formula in it."""
    error, measured = np.polynomial.Polynomial([1.0]), [1.0]
    for _ in range(12):
        error = rate * error.integ()
        measured.append(float(error(span)))
    growth = rate * span
    assert obeys(measured, lambda k: theory.factorial_bound(k, growth))
    assert not obeys(measured, lambda k: theory.factorial_bound(k, growth * (1 + 1e-6)))
    assert not obeys(measured, lambda k: theory.factorial_bound(k + 1, growth))
    assert not obeys(measured, lambda k: theory.factorial_bound(k, growth) / max(k, 1))


@given(st.integers(0, 60), st.fractions(Fraction(1, 100), 40))
def test_factorial_bound_in_exact_arithmetic(k, growth):
    exact = growth**k / math.factorial(k)
    assert theory.factorial_bound(k, float(growth)) == pytest.approx(float(exact), rel=1e-11)


@given(st.floats(0.2, 2.0), st.integers(2, 16), st.floats(0.1, 3.0))
def test_binomial_bound_is_the_error_for_exponential_growth(rate, steps, offset):
    """Of every state and round of a real window, from a guess that is off by a constant but for the initial state."""
    ts, ratio = ps.grids.uniform(0, 1, steps), rate / steps
    term, y0 = ps.ODE(lambda t, y: rate * y), torch.ones(1, dtype=torch.float64)
    ref = ps.sequential(term, y0, ts, integrator=ps.Euler()).ys[:, None]
    chain, window = full_window(term, y0, ts)
    window.x = ref + offset * (torch.arange(steps + 1) > 0)[:, None, None].to(ref)
    errors = [window.x - ref, *rounds_of(chain, window, ref, steps)]
    measured = [[float(error[n, 0, 0]) / offset for n in range(1, steps + 1)] for error in errors]

    def fits(law) -> bool:
        return all(
            math.isclose(law(k, n), value, rel_tol=1e-9, abs_tol=1e-12)
            for k, row in enumerate(measured)
            for n, value in enumerate(row, 1)
        )

    assert fits(lambda k, n: theory.binomial_bound(k, n, ratio))
    assert not fits(lambda k, n: theory.binomial_bound(k, n + 1, ratio))  # C(n, k): the initial state is exact
    assert not fits(lambda k, n: theory.binomial_bound(k + 1, n, ratio))
    assert not fits(lambda k, n: theory.binomial_bound(k, n, ratio * (1 + 1e-6)))
    assert not fits(lambda k, n: theory.factorial_bound(k, n * ratio))


@given(st.integers(0, 30), st.integers(1, 30), st.fractions(Fraction(1, 100), 3))
def test_binomial_bound_in_exact_arithmetic(k, steps, ratio):
    exact = math.comb(steps - 1, k) * ratio**k
    assert theory.binomial_bound(k, steps, float(ratio)) == pytest.approx(float(exact), rel=1e-11)
    assert theory.binomial_bound(k, steps, float(ratio)) <= theory.factorial_bound(k, float(steps * ratio)) * (1 + 1e-9)


@given(st.floats(0.2, 2.0), st.integers(3, 12), seeds)
def test_the_bounds_hold_on_any_grid(rate, steps, seed):
    """The error is an elementary symmetric polynomial of the steps but the first; both bounds are above."""
    ts, y0 = random_grid(seed, steps, 0.0, 1.0), torch.ones(1, dtype=torch.float64)
    term = ps.ODE(lambda t, y: rate * y)
    ref = ps.sequential(term, y0, ts, integrator=ps.Euler()).ys[:, None]
    chain, window = full_window(term, y0, ts)
    window.x = ref + (torch.arange(steps + 1) > 0)[:, None, None]
    ratios = (rate * ts.diff())[1:].tolist()
    symmetric = np.polynomial.polynomial.polyfromroots([-1 / a for a in ratios]) * math.prod(ratios)  # prod(1 + a z)
    for k, error in enumerate(rounds_of(chain, window, ref, steps), 1):
        exact = symmetric[k] if k < steps else 0.0
        assert float(error[-1, 0, 0]) == pytest.approx(exact, rel=1e-8, abs=1e-12)
        binomial = theory.binomial_bound(k, steps, sum(ratios) / len(ratios))
        assert exact <= binomial * (1 + 1e-9)
        assert binomial <= theory.factorial_bound(k, float(theory.contraction(ts.diff(), rate))) * (1 + 1e-9)


@given(seeds, st.integers(1, 9), st.integers(1, 3))
def test_contraction_is_the_sum_over_the_steps(seed, steps, samples):
    h = randn(generator(seed), steps)
    constants = torch.rand(steps, samples, generator=generator(seed + 1), dtype=torch.float64)
    expected = [sum(abs(float(h[n])) * float(constants[n, s]) for n in range(steps)) for s in range(samples)]
    assert theory.contraction(h, constants).tolist() == pytest.approx(expected, rel=1e-12)
    assert float(theory.contraction(h, constants[:, 0])) == pytest.approx(expected[0], rel=1e-12)
    assert float(theory.contraction(h, 0.7)) == pytest.approx(0.7 * float(h.abs().sum()), rel=1e-12)


# ---- multiplicative noise


@given(st.floats(0.1, 2.0), st.floats(0.1, 2.0), st.floats(0.2, 2.0), st.integers(0, 8))
def test_root_factorial_bound_is_its_recursion(drift, diffusion, span, k):
    """``M_{k+1}(n) = sum_{j<n} h (2 T L_f^2 + 2 4 L_g^2) M_k(j)``: 2 for a sum, T for Cauchy-Schwarz, 4 for Doob."""
    steps = 40
    moment = torch.ones(steps + 1, dtype=torch.float64)
    for _ in range(k):
        rate = 2 * (span * drift**2) + 2 * (4 * diffusion**2)
        moment = torch.cat([torch.zeros(1, dtype=torch.float64), (rate * span / steps * moment[:-1]).cumsum(0)])
    expected = float(moment[-1]) * steps**k / math.perm(steps, k)  # C(N, k) h^k becomes T^k / k! on a fine grid
    assert theory.root_factorial_bound(k, drift, diffusion, span) == pytest.approx(expected, rel=1e-9)


@given(st.floats(0.1, 2.0), st.floats(0.2, 2.0))
def test_root_factorial_bound_is_above_the_exact_moments(diffusion, span):
    """Of ``dy = g y dW``, by Ito's isometry: ``E|e^{k+1}_n|^2 = sum_{j<n} h g^2 E|e^k_j|^2``. No square root more."""
    steps, most = 1000, 45
    moment, exact = (torch.arange(steps + 1) > 0).double(), []
    for _ in range(most):
        moment = torch.cat([moment[:1] * 0, (diffusion**2 * span / steps * moment[:-1]).cumsum(0)])
        exact.append(float(moment[-1]))
    bound = [theory.root_factorial_bound(k, 0.0, diffusion, span) for k in range(1, most + 1)]
    growth = diffusion**2 * span

    def holds(bounds) -> bool:
        return all(value <= limit for value, limit in zip(exact, bounds, strict=True))

    assert holds(bound)
    assert not holds(limit / math.factorial(k) for k, limit in enumerate(bound, 1))  # an ODE's factorial is too small
    assert not holds((0.9 * growth) ** k / math.factorial(k) for k in range(1, most + 1))  # a factor of 8 is enough


@pytest.mark.parametrize(("drift", "diffusion"), [(0.5, 0.5), (1.0, 0.2), (-0.8, 0.7), (0.0, 1.0)])
def test_root_factorial_bound_holds_for_geometric_brownian_motion(drift, diffusion):
    samples, steps, span = 400, 40, 1.0  # the window may be at another place for each sample
    term = ps.SDE(lambda t, y: drift * y, lambda t, y: diffusion * y, noise="diagonal")
    y0, ts = torch.ones(samples, 1, dtype=torch.float64), ps.grids.uniform(0, span, steps)
    chain, window = full_window(term, y0, ts, batch_dims=1)
    path = ps.BrownianPath(0)
    ref = ps.sequential(term, y0, ts, integrator=ps.Euler(), brownian=path, batch_dims=1).ys
    largest = lambda error: float(error.square().amax(0).mean())  # noqa: E731
    first = largest(y0 - ref)
    measured = [largest(error) / first for error in rounds_of(chain, window, ref, 12)]
    assert all(
        value <= theory.root_factorial_bound(k, drift if drift > 0 else -drift, diffusion, span)
        for k, value in enumerate(measured, 1)
    )
    assert measured[0] > 0.01  # it does start from something


# ---- bounds from residuals


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-2, 2))
def test_step_lipschitz_is_the_slope_of_a_complex_linear_drift(real, imaginary, h):
    number = complex(real, imaginary)
    slope = abs(1 + h * number)
    mu = real if h >= 0 else -real
    assert float(theory.step_lipschitz(h, abs(number), mu)) == pytest.approx(slope, rel=1e-9, abs=1e-7)
    assert float(theory.step_lipschitz(h, abs(number))) == pytest.approx(1 + abs(h * number), rel=1e-12)


@given(seeds, st.integers(1, 5), st.floats(-1, 1))
def test_step_lipschitz_bounds_linear_steps(seed, size, h):
    matrix = randn(generator(seed), size, size)
    forward = matrix if h >= 0 else -matrix
    lipschitz, mu = torch.linalg.matrix_norm(matrix, 2), torch.linalg.eigvalsh((forward + forward.T) / 2)[-1]
    exact = torch.linalg.matrix_norm(torch.eye(size) + h * matrix, 2)
    sharper, plain = theory.step_lipschitz(h, lipschitz, mu), theory.step_lipschitz(h, lipschitz)
    assert exact <= sharper + 1e-12
    assert sharper <= plain + 1e-12


@given(seeds, st.integers(1, 20), st.integers(1, 3), st.floats(0, 2))
def test_propagated_bound_is_the_distance_where_all_residuals_point_one_way(seed, steps, samples, start):
    """Of ``x*_{n+1} = a_n x*_n`` and an X with the residuals r: every number is positive."""
    source = generator(seed)
    slopes, residuals = (2 * torch.rand(steps, samples, generator=source, dtype=torch.float64) for _ in range(2))
    exact, x = torch.ones(samples, dtype=torch.float64) + start, torch.ones(samples, dtype=torch.float64)
    distances = []
    for n in range(steps):
        exact, x = slopes[n] * exact, slopes[n] * x - residuals[n]
        distances.append(exact - x)
    scale = float(torch.stack(distances).max())
    bound = theory.propagated_bound(residuals, slopes, start)
    assert torch.allclose(bound, torch.stack(distances), rtol=1e-10, atol=1e-12 * scale)
    assert bound.shape == residuals.shape
    one = theory.propagated_bound(residuals[:, 0], slopes[:, 0], start)
    assert torch.allclose(one, bound[:, 0], rtol=1e-12)
    same = theory.propagated_bound(residuals, slopes[:, :1])
    assert torch.allclose(same, theory.propagated_bound(residuals, slopes[:, :1].expand(-1, samples)), rtol=1e-12)
    broken = torch.cat([residuals, residuals.new_full((steps, 1), NAN)], 1)
    assert torch.equal(theory.propagated_bound(broken, slopes[:, :1])[:, :samples], same)


@given(seeds, st.integers(1, 12), st.integers(1, 3), st.integers(1, 3))
def test_propagated_bound_of_a_multistep_method(seed, steps, samples, memory):
    gen = generator(seed)
    residuals, slopes, earlier = (
        randn(gen, steps, samples).abs(),
        randn(gen, steps).abs(),
        randn(gen, steps, memory).abs(),
    )
    errors = [torch.zeros(samples, dtype=torch.float64)]
    for n in range(steps):
        reached = [earlier[n, i] * errors[n - 1 - i] for i in range(memory) if n > i]
        errors.append(slopes[n] * errors[n] + sum(reached) + residuals[n])
    assert torch.allclose(theory.propagated_bound(residuals, slopes, earlier=earlier), torch.stack(errors[1:]))


@given(st.floats(1.5, 30), st.integers(2, 300), st.floats(-30, 0))
def test_propagated_bound_stays_a_bound_where_products_overflow(slope, steps, exponent):
    """Every number is one of float32; their exact sum may not be."""
    residuals = torch.zeros(steps)
    residuals[0] = 10**exponent
    exact, growing = [float(residuals[0])], float(torch.tensor(slope))
    while len(exact) < steps:
        exact.append(min(growing * exact[-1], 1e300))
    bound = theory.propagated_bound(residuals, slope).double()
    assert (bound >= torch.tensor(exact, dtype=torch.float64) * (1 - 1e-3)).all()
    assert bound[min(steps - 1, 20)] < INF


@given(st.floats(0.2, 3.0), st.floats(0.5, 2.0), st.integers(2, 20), st.integers(0, 5), seeds)
def test_propagated_bound_holds_for_iterates(lipschitz, span, steps, rounds, seed):
    """Of Picard on ``y' = L sin(y + phase)`` after some rounds, by its residuals alone."""
    phase, y0 = randn(generator(seed), 1), randn(generator(seed + 1), 1)
    term, ts = ps.ODE(lambda t, y: lipschitz * torch.sin(y + phase)), ps.grids.uniform(0, span, steps)
    ref, h = ps.sequential(term, y0, ts, integrator=ps.Euler()).ys, span / steps
    x = y0.expand(steps + 1, 1)
    for _ in range(rounds):
        x = torch.cat([y0[None], y0 + (h * lipschitz * torch.sin(x[:-1] + phase)).cumsum(0)])
    residuals = (x[:-1] + h * lipschitz * torch.sin(x[:-1] + phase) - x[1:]).abs()
    bound = theory.propagated_bound(residuals, theory.step_lipschitz(h, lipschitz))
    assert ((x[1:] - ref[1:]).abs() <= bound * (1 + 1e-9) + 1e-13 * math.exp(lipschitz * span)).all()


@given(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(0.01, 0.49))
def test_newton_kantorovich_is_exact_for_a_quadratic(beta, gamma, h):
    """``F(x) = eta / beta - x / beta + gamma x^2 / 2`` from 0: the roots, by numpy."""
    eta = h / (beta * gamma)
    near, far = sorted(np.roots([gamma / 2, -1 / beta, eta / beta]).real)
    number, radius = theory.newton_kantorovich(beta, eta, gamma)
    assert number == pytest.approx(h, rel=1e-12)
    assert radius == pytest.approx(near, rel=1e-9)
    assert (1 + math.sqrt(1 - 2 * number)) / (beta * gamma) == pytest.approx(far, rel=1e-9)
    assert theory.newton_kantorovich(beta, eta, 0.0) == (0.0, eta)  # linear: Newton's step
    assert theory.newton_kantorovich(beta, eta / h * 0.51, gamma)[1] == INF  # no real root


@given(st.floats(-1, 1), st.floats(-0.25, 0.25))
def test_newton_kantorovich_holds_for_the_exponential(x, offset):
    """``F(x) = e^x - c``, with the largest F'' on a ball that holds the radius, which is at most 2 eta."""
    c = math.exp(x + offset)
    beta, eta = math.exp(-x), abs(1 - c * math.exp(-x))
    h, radius = theory.newton_kantorovich(beta, eta, math.exp(x + 2 * eta))
    assume(h <= 0.5)
    assert abs(offset) <= radius * (1 + 1e-9) + 1e-15
    assert radius <= 2 * eta * (1 + 1e-12)


# ---- total variation


def exact_variation(distance: float) -> float:
    """Of two normal distributions whose means are so many standard deviations apart: ``2 Phi(d / 2) - 1``."""
    return math.erf(distance / math.sqrt(8))


@given(seeds, st.integers(1, 6), st.integers(1, 4), st.floats(-6, 2))
def test_total_variation_is_above_the_exact_one_and_close_for_small_residuals(seed, steps, size, exponent):
    """Constant residual vectors: the laws of whole paths are normal, and Euclidean distances apart."""
    source = generator(seed)
    shifts = 10**exponent * randn(source, steps, size)
    noise = 0.5 + torch.rand(steps, generator=source, dtype=torch.float64)
    exact = exact_variation(float((shifts / noise[:, None]).norm()))
    bound = float(theory.total_variation(shifts.norm(dim=1), noise))
    assert exact <= bound <= 1
    if bound < 1e-3:
        assert exact / bound == pytest.approx(math.sqrt(2 / math.pi), rel=1e-5)
        # half a root mean square over the state is below the exact value: it is the Euclidean norm that counts
        assert size == 1 or bound / math.sqrt(size) < exact


@given(st.floats(0, 2), st.floats(-2, 2), st.floats(0.5, 2))
def test_total_variation_of_residuals_that_depend_on_the_past(first, second, sigma):
    """Two steps, ``r_1 = second tanh(x_1)``: by quadrature of the joint densities."""
    grid = torch.linspace(-14, 14, 1401, dtype=torch.float64)
    x, y = grid[:, None], grid[None]
    density = lambda z: torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)  # noqa: E731
    law = density(x) * density((y - x) / sigma) / sigma
    other = density(x + first) * density((y - x + second * torch.tanh(x)) / sigma) / sigma
    cell = float(grid[1] - grid[0]) ** 2
    exact = float((law - other).abs().sum()) * cell / 2
    squares = float((density(grid + first) * (second * torch.tanh(grid)) ** 2).sum() * (grid[1] - grid[0]))
    residuals = torch.tensor([first, math.sqrt(squares)], dtype=torch.float64)
    noise = torch.tensor([1.0, sigma], dtype=torch.float64)
    assert exact <= float(theory.total_variation(residuals, noise)) + 1e-6


@given(seeds, st.integers(1, 5), st.integers(1, 6))
def test_total_variation_takes_the_mean_square_over_runs(seed, steps, runs):
    source = generator(seed)
    residuals, noise = 0.1 * randn(source, steps, runs).abs(), 1 + randn(source, steps).abs()
    means = [sum(float(r) ** 2 for r in row) / runs for row in residuals]
    expected = 0.5 * math.sqrt(sum(m / float(s) ** 2 for m, s in zip(means, noise, strict=True)))
    assert float(theory.total_variation(residuals, noise)) == pytest.approx(min(expected, 1), rel=1e-12)


def test_total_variation_at_its_ends():
    noise = torch.tensor([0.0, 1.0])
    assert theory.total_variation(torch.tensor([0.0, 1e-30]), noise) == pytest.approx(0.5e-30)  # no square underflows
    assert theory.total_variation(torch.tensor([1e-30, 0.0]), noise) == 1  # singular
    assert theory.total_variation(torch.zeros(2), noise) == 0
    assert theory.total_variation(torch.tensor([0.0, 50.0]), noise) == 1
    assert theory.total_variation(torch.tensor([0.0, NAN]), noise).isnan()


# ---- rounds

POWERS = {"factorial": 1.0, "root-factorial": 0.5, "geometric": 0.0}
laws = st.sampled_from(sorted(POWERS))


@given(laws, st.floats(-8, 3), st.floats(0.05, 15), st.floats(-12, -1), st.integers(0, 30))
def test_predicted_rounds_is_the_first_product_within_tolerance(law, exponent, number, goal, done):
    contraction = number if law != "geometric" else number / 16
    change, tolerance, k = 10**exponent, 10**goal, done
    product = change
    while product > tolerance:
        assume(abs(product / tolerance - 1) > 1e-9)  # rounding may decide
        product *= contraction / (k + 1) ** POWERS[law]
        k += 1
    assume(abs(product / tolerance - 1) > 1e-9)
    assert theory.predicted_rounds(change, contraction, tolerance, done, law) == k


def test_predicted_rounds_at_its_ends():
    assert theory.predicted_rounds(1.0, 5.0, 0.0) == INF
    assert theory.predicted_rounds(1.0, 1.0, 0.5, law="geometric") == INF
    assert theory.predicted_rounds(1.0, INF, 0.5) == INF
    assert theory.predicted_rounds(0.0, 5.0, 0.0, done=3) == 3
    assert theory.predicted_rounds(1.0, 0.0, 0.0, done=3) == 4
    assert theory.predicted_rounds(1.0, 1e100, 0.5, law="root-factorial") == INF


@given(st.floats(0.3, 3.0), st.integers(6, 60))
def test_fitted_contraction_on_a_real_solve(rate, steps):
    """Picard from a constant guess changes the last state by ``C(N, k) (rate / N)^k`` in round k."""
    y0, ts, ratio = torch.ones(1, dtype=torch.float64), ps.grids.uniform(0, 1, steps), rate / steps
    term, arguments = ps.ODE(lambda t, y: rate * y), {"window": steps, "guess": ps.Copy(), "stop": "increment"}
    solution = ps.solve(term, y0, ts, integrator=ps.Euler(), rtol=0, atol=1e-12, **arguments)
    changes = [float(record.increments[steps - 1 - int(record.begin), 0]) for record in solution.history[:5]]
    for k, (before, change) in enumerate(itertools.pairwise(changes), 2):
        fitted = theory.fitted_contraction(change, before, k)
        assert fitted == pytest.approx((steps - k + 1) * ratio, rel=1e-6)
        assert fitted != pytest.approx(theory.fitted_contraction(change, before, k + 1), rel=1e-6)
        assert fitted != pytest.approx(theory.fitted_contraction(change, before, k - 1), rel=1e-6)


@given(st.floats(0.3, 8.0), st.floats(-12, -3), st.integers(2, 30))
def test_fit_and_prediction_agree_on_exact_changes(number, goal, done):
    """Of ``Lambda^k / k!``, ``c^k / sqrt(k!)`` and ``q^k``: from whatever round, the true number of rounds."""
    for law, power in POWERS.items():
        base = number if law != "geometric" else number / 9
        changes = [base**k / math.factorial(k) ** power for k in range(160)]
        tolerance = 10**goal
        assume(all(abs(change / tolerance - 1) > 1e-6 for change in changes))
        fitted = theory.fitted_contraction(changes[done], changes[done - 1], done, law)
        assert fitted == pytest.approx(base, rel=1e-9)
        later = next((k for k in range(done, len(changes)) if changes[k] <= tolerance), None)
        if later is not None:
            assert theory.predicted_rounds(changes[done], fitted, tolerance, done, law) == later


@given(st.floats(0.1, 2.0), st.integers(20, 200))
def test_multiplicative_noise_obeys_the_root_factorial_law(diffusion, steps):
    """The exact moments of ``dy = g y dW`` from a constant guess: changes of ``sqrt(C(N, k)) (g sqrt(h))^k``."""
    step = diffusion**2 / steps
    moment, changes = torch.ones(steps + 1, dtype=torch.float64), []
    for _ in range(6):
        moment = torch.cat([moment[:1] * 0, (step * moment[:-1]).cumsum(0)])
        changes.append(math.sqrt(float(moment[-1])))
    for k, (before, change) in enumerate(itertools.pairwise(changes), 2):
        fitted = theory.fitted_contraction(change, before, k, "root-factorial")
        assert fitted == pytest.approx(math.sqrt((steps - k + 1) * step), rel=1e-9)


@given(st.integers(1, 30), windows, iterations, st.sampled_from([0.0, -1.0, 0.8]))
def test_no_solve_takes_fewer_rounds_or_evaluations(steps, width, iteration, rate):
    y0, ts = torch.ones(2, dtype=torch.float64), ps.grids.uniform(0, 1, steps)
    term, integrator = ps.ODE(lambda t, y: rate * y), ps.Euler()
    stats = ps.solve(term, y0, ts, integrator=integrator, iteration=iteration, window=width, tol=1e-3).stats
    assert stats.rounds >= -(-steps // width)
    assert stats.evaluations >= steps


@given(st.integers(1, 40), windows)
def test_the_least_rounds_are_reached_where_the_guess_is_right(steps, width):
    y0, ts = torch.ones(2, dtype=torch.float64), ps.grids.uniform(0, 1, steps)
    arguments = {"integrator": ps.Euler(), "guess": ps.Copy(), "stop": "increment"}
    stats = ps.solve(ps.ODE(lambda t, y: 0 * y), y0, ts, window=width, tol=1e-3, **arguments).stats
    assert stats.rounds == -(-steps // width)


@given(st.integers(2, 12), windows, st.sampled_from([ps.Picard(), ps.Secant(), ps.Jacobi(), ps.Anderson()]))
def test_a_drift_that_says_nothing_ahead_takes_every_round(steps, width, iteration):
    """A step to an unrelated state: one state a round is all there is to find, whatever the window."""
    ts = ps.grids.uniform(0, steps, steps)
    term = ps.ODE(lambda t, y: torch.frac(1e6 * torch.sin(1e4 * y)) - y)
    y0 = torch.tensor([0.3], dtype=torch.float64)
    stats = ps.solve(term, y0, ts, integrator=ps.Euler(), iteration=iteration, window=width, rtol=0, atol=1e-6).stats
    assert stats.rounds == steps


# ---- precision


@given(st.floats(0, 300))
def test_hump_is_the_largest_term(contraction):
    terms = [theory.factorial_bound(k, contraction) for k in range(400)]
    assert theory.hump(contraction) == pytest.approx(max(terms), rel=1e-12)
    if contraction >= 1:  # Stirling's formula
        stirling = math.exp(contraction) / math.sqrt(2 * math.pi * contraction)
        assert abs(theory.hump(contraction) / stirling - 1) <= 1.1 / contraction


@given(st.floats(-6, -1), st.floats(-16, -7), st.floats(-3, 3))
def test_largest_contraction_keeps_rounding_within_tolerance(tolerance, eps, scale):
    tolerance, eps, scale = 10**tolerance, 10**eps, 10**scale
    most = theory.largest_contraction(tolerance, eps, scale)
    if eps * scale >= tolerance:
        assert most == 0
        return
    assert eps * scale * math.exp(most) == pytest.approx(tolerance, rel=1e-9)
    assert eps * scale * theory.hump(most) <= tolerance
    # what the bound of the hump by e^Lambda gives away: half a logarithm
    wider = most + math.log(2 * math.pi * (most + 3)) / 2 + 1
    assert eps * scale * theory.hump(wider) > tolerance


@pytest.mark.parametrize("rate", [4.0, 7.0, 10.0, 12.0])
def test_rounding_follows_the_hump_and_goes_with_it(rate):
    """Picard on ``y' = -rate y`` in float32 and in float64: how far apart the last states are."""
    steps, most = 400, 60
    ts, states = ps.grids.uniform(0, 1, steps), {}
    for dtype in (torch.float32, torch.float64):
        y0 = torch.ones(1, dtype=dtype)
        chain, window = full_window(ps.ODE(lambda t, y: -rate * y), y0, ts)
        states[dtype] = rounds_of(chain, window, torch.zeros(steps + 1, 1, 1, dtype=dtype), most)
    apart = [
        float((single[-1].double() - double[-1]).abs())
        for single, double in zip(states[torch.float32], states[torch.float64], strict=False)
    ]
    estimate = UNIT * theory.hump(rate)
    assert estimate < max(apart) < steps * estimate
    assert apart[-1] < steps * UNIT  # no more than the sequential solver's: the states are at most 1


# ---- stability


@given(st.floats(-2, 2), st.floats(0.01, 0.3), st.integers(1, 20), st.booleans())
def test_lyapunov_exponent_of_a_linear_equation_is_that_of_the_method(rate, h, steps, backward):
    """``log R(z) / h`` with the stability function of the classical Runge-Kutta method."""
    times = h * torch.arange(steps + 1, dtype=torch.float64) * (-1 if backward else 1)
    z = rate * h * (-1 if backward else 1)
    expected = math.log(1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24) / h
    exponent = theory.lyapunov_exponent(lambda t, y: rate * y, torch.ones(steps + 1, 2, dtype=torch.float64), times)
    assert float(exponent) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.floats(0.05, 3.0), st.floats(0.5, 3.0))
def test_lyapunov_exponent_along_a_solution_that_is_known(y0, span):
    """Tangents of ``y' = y - y^3`` grow as ``f(y)``, and those of a rate that depends on time as its integral."""
    times = torch.linspace(0, span, 401, dtype=torch.float64)
    states = (1 + (y0**-2 - 1) * torch.exp(-2 * times)).rsqrt()[:, None]
    drift = lambda t, y: y - y**3  # noqa: E731
    assume(abs(y0 - 1) > 1e-3)
    expected = math.log(float(drift(0, states[-1]) / drift(0, states[0]))) / span
    assert float(theory.lyapunov_exponent(drift, states, times)) == pytest.approx(expected, abs=1e-6)
    # a rate that depends on time: its mean
    moving = theory.lyapunov_exponent(lambda t, y: torch.cos(3 * t) * y, states, times)
    assert float(moving) == pytest.approx(math.sin(3 * span) / (3 * span), abs=1e-8)


@given(st.floats(-1, 1), st.floats(0.5, 3), seeds)
def test_lyapunov_exponents_of_samples_do_not_mix(rate, frequency, seed):
    """A spiral grows at its rate, whatever the tangent; the sample beside it is not a number."""
    matrix = torch.tensor([[rate, -frequency], [frequency, rate]], dtype=torch.float64)
    states = randn(generator(seed), 200, 1, 2)
    times = 0.02 * torch.arange(200, dtype=torch.float64)
    drift = lambda t, y: y @ matrix.T + 0 * y.square()  # noqa: E731
    pair = torch.cat([states, torch.full_like(states, NAN)], 1)
    exponents = theory.lyapunov_exponent(drift, pair, times, seed)
    assert float(exponents[0]) == pytest.approx(rate, abs=1e-5)
    assert exponents[1].isnan()
    assert torch.equal(theory.lyapunov_exponent(drift, states[:, 0], times, seed), exponents[0])


@given(st.floats(0.5, 2.0), st.floats(-3.0, 0.0), seeds)
def test_lyapunov_exponent_is_the_largest(fast, slow, seed):
    rates, times = torch.tensor([slow, fast], dtype=torch.float64), torch.linspace(0, 60, 1201, dtype=torch.float64)
    exponent = float(theory.lyapunov_exponent(lambda t, y: rates * y, torch.zeros(1201, 2).double(), times, seed))
    assert fast - 12 / 60 < exponent < fast + 1e-3  # the first tangent may be e^-12 off the fast direction


def test_lyapunov_exponent_of_lorenz():
    """0.906 (Sprott 2003), of 64 trajectories of 100 time units on the attractor."""

    def flow(t, y):
        first, second, third = y.reshape(3, -1)
        return np.concatenate([10 * (second - first), first * (28 - third) - second, first * second - 8 / 3 * third])

    def drift(t, y):
        first, second, third = y.unbind(-1)
        return torch.stack([10 * (second - first), first * (28 - third) - second, first * second - 8 / 3 * third], -1)

    start = np.random.default_rng(0).standard_normal((3, 64)) * 8 + np.array([[0], [0], [25]])
    times = 0.02 * np.arange(5001)
    solution = solve_ivp(flow, (0, 120), start.ravel(), method="DOP853", rtol=1e-7, atol=1e-7, t_eval=20 + times)
    states = torch.tensor(solution.y.T.reshape(len(times), 3, 64)).transpose(1, 2)
    exponents = theory.lyapunov_exponent(drift, states, torch.tensor(times))
    assert float(exponents.mean()) == pytest.approx(0.906, rel=0.05)


@given(st.floats(0.01, 5), st.floats(-6, -1), st.floats(-16, -7))
def test_predictable_span_is_where_the_error_has_grown_to_the_tolerance(exponent, tolerance, eps):
    span = theory.predictable_span(exponent, 10**tolerance, 10**eps)
    assert 10**eps * math.exp(exponent * span) == pytest.approx(10**tolerance, rel=1e-9)
    assert theory.predictable_span(-exponent, 10**tolerance, 10**eps) == INF
    assert theory.predictable_span(exponent, 10**eps, 10**tolerance) == 0


@given(st.floats(-5, 300), st.floats(1e-3, 1.0), st.floats(0.1, 2.0))
def test_is_stiff_where_explicit_euler_explodes_on_a_contracting_problem(decay, h, start):
    """Prothero and Robinson's ``y' = lambda (y - g) + g'`` with a constant g."""
    expected = decay * h > 10
    assume(abs(decay * h - 10) > 1e-9)
    assert theory.is_stiff(h, abs(decay), -decay) is expected
    assert theory.is_stiff(-h, abs(decay), -decay) is expected
    assert not theory.is_stiff(h, 1e6, 0.0)
    assert [theory.is_stiff(h, bound / h, -1.0) for bound in (9.99, 10.01)] == [False, True]
    steps = torch.tensor([h, 2 * h], dtype=torch.float64)
    both = theory.is_stiff(steps, abs(decay), torch.tensor(-decay, dtype=torch.float64))
    assert both.tolist() == [theory.is_stiff(h, abs(decay), -decay), theory.is_stiff(2 * h, abs(decay), -decay)]
    if expected:  # a true solution falls, and Euler's grows by more than 9 a step
        y0, ts = torch.tensor([start], dtype=torch.float64), ps.grids.uniform(0, 4 * h, 4)
        ys = ps.sequential(ps.ODE(lambda t, y: -decay * y), y0, ts, integrator=ps.Euler()).ys
        assert float(ys[-1].abs()) > 9**4 * start


# ---- what is refused


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: theory.sampled_lipschitz(torch.ones(3, 2), torch.ones(3)), "dx, df"),
        (lambda: theory.sampled_one_sided(torch.ones(0, 2), torch.ones(0, 2)), "dx"),
        (lambda: theory.spectral_norm(lambda y: y, torch.ones(3)), "y"),
        (lambda: theory.spectral_norm(lambda y: y[:1], torch.ones(3, 2)), "f"),
        (lambda: theory.logarithmic_norm(lambda y: y, torch.ones(3, 2), iterations=0), "iterations"),
        (lambda: theory.contraction(torch.ones(3, 1), 1.0), "h"),
        (lambda: theory.contraction(torch.ones(3), torch.ones(2)), "lipschitz"),
        (lambda: theory.factorial_bound(-1, 1.0), "k"),
        (lambda: theory.factorial_bound(1, NAN), "contraction"),
        (lambda: theory.binomial_bound(1, 0, 1.0), "steps"),
        (lambda: theory.binomial_bound(1, 2, -1.0), "ratio"),
        (lambda: theory.root_factorial_bound(1, 1.0, 1.0, -1.0), "span"),
        (lambda: theory.propagated_bound(torch.ones(3), torch.ones(2)), "lipschitz"),
        (lambda: theory.propagated_bound(torch.ones(3, 1, 1), 1.0), "residuals"),
        (lambda: theory.newton_kantorovich(1.0, -1.0, 1.0), "eta"),
        (lambda: theory.total_variation(torch.ones(3), torch.ones(2)), "residuals, noise"),
        (lambda: theory.predicted_rounds(1.0, 1.0, -1.0), "tolerance"),
        (lambda: theory.predicted_rounds(1.0, 1.0, 1.0, law="linear"), "law"),
        (lambda: theory.fitted_contraction(1.0, 1.0, 0), "done"),
        (lambda: theory.hump(INF), "contraction"),
        (lambda: theory.largest_contraction(1e-3, 0.0), "eps, scale"),
        (lambda: theory.lyapunov_exponent(lambda t, y: y, torch.ones(1, 2), torch.ones(1)), "states, times"),
        (lambda: theory.predictable_span(1.0, 0.0, 1e-3), "tolerance, eps"),
    ],
)
def test_what_is_refused(call, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        call()
