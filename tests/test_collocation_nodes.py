"""The matrices of collocation against polynomials, whose integrals are known, and against scipy's quadratures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import Legendre
from scipy import interpolate, special

from picardsolve.collocation.accepted import Segments
from picardsolve.collocation.guide import Guide
from picardsolve.collocation.nodes import Nodes, nodes
from picardsolve.collocation.numpy_arrays import NumpyArrays
from picardsolve.collocation.path import Path

KINDS = ("radau", "lobatto", "chebyshev")
families = st.sampled_from(KINDS)
EXACT = 2e-13  # a thousand roundings: sums of up to 41 terms of size 1


@st.composite
def node_sets(draw) -> Nodes:
    return nodes(draw(families), draw(st.integers(4, 41)))


def polynomial(seed: int, degree: int) -> Legendre:
    """On [0, 1], with values of size 1."""
    coefficients = np.random.default_rng(seed).standard_normal(degree + 1)
    return Legendre(coefficients / np.abs(coefficients).sum(), domain=[0, 1])


def integral(p: Legendre, times: int = 1) -> Legendre:
    return p.integ(times, lbnd=0)


@pytest.mark.parametrize("n", [4, 5, 17, 25, 41])
def test_nodes_are_those_of_scipys_quadratures(n):
    radau = np.r_[(1 + special.roots_jacobi(n - 1, 1, 0)[0]) / 2, 1]
    lobatto = np.r_[0, (1 + special.roots_jacobi(n - 2, 1, 1)[0]) / 2, 1]
    chebyshev = np.sin(np.pi * np.arange(n) / (2 * n - 2)) ** 2
    for kind, points in zip(KINDS, (radau, lobatto, chebyshev), strict=True):
        np.testing.assert_allclose(nodes(kind, n).c, points, rtol=1e-12, atol=1e-15)


@given(node_sets(), st.integers(0, 2**32 - 1))
def test_polynomials_are_integrated_exactly(set_, seed):
    p, last = polynomial(seed, set_.n - 1), polynomial(seed, set_.n)
    np.testing.assert_allclose(set_.integrate @ p(set_.c), integral(p)(set_.c), atol=EXACT)
    lower = polynomial(seed, set_.n - 2)
    np.testing.assert_allclose(set_.twice @ lower(set_.c), integral(lower, 2)(set_.c), atol=EXACT)
    np.testing.assert_allclose(set_.integrate_check @ last(set_.check), integral(last)(set_.c), atol=EXACT)


@given(node_sets(), st.integers(0, 2**32 - 1))
def test_over_the_whole_segment_they_integrate_as_gauss_does(set_, seed):
    order = {"radau": 2 * set_.n - 2, "lobatto": 2 * set_.n - 3, "chebyshev": set_.n - 1}[set_.kind]
    p = polynomial(seed, order)
    assert abs(set_.integrate[-1] @ p(set_.c) - integral(p)(1)) < EXACT
    assert (set_.integrate[-1] > -1e-15).all()


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_segment_of_the_test_equation_is_a_pade_approximant(kind, n):
    """Hairer & Wanner IV, theorem 3.9 and table 5.13: (n - 1, n) of Radau IIA, (n - 1, n - 1) of Lobatto IIIA."""
    set_, below = nodes(kind, n), n if kind == "radau" else n - 1
    over, under = interpolate.pade(1 / special.factorial(np.arange(n + below)), below)
    for z in (-3.0, -0.5, 2j, 1 + 1j):
        y = np.linalg.solve(np.eye(n) - z * set_.integrate, np.ones(n))
        np.testing.assert_allclose(y[-1], over(z) / under(z), rtol=1e-9, atol=1e-15)


@given(st.integers(4, 41), st.floats(-6, 6), st.floats(0, 1))
def test_radau_damps_all_that_decays(n, exponent, slope):
    def growth(z: complex) -> float:
        return abs(np.linalg.solve(np.eye(n) - z * nodes("radau", n).integrate, np.ones(n))[-1])

    assert growth(-(10**exponent) * complex(slope, 1 - slope)) <= 1 + 1e-9
    assert growth(-1e9) < 1e-5


@given(node_sets(), st.integers(0, 2**32 - 1))
def test_interpolation_is_the_polynomial(set_, seed):
    p, x = polynomial(seed, len(set_.points) - 1), np.random.default_rng(seed).random(7)
    values = p(set_.points)
    np.testing.assert_allclose(set_.interpolate(x) @ values, p(x), atol=EXACT)
    np.testing.assert_allclose(set_.to_check @ values, p(set_.check), atol=EXACT)
    assert np.array_equal(set_.interpolate(set_.points), np.eye(len(set_.points)))


@given(node_sets(), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_extrapolation_is_the_polynomial_through_the_last_points(set_, seed, count):
    p, x = polynomial(seed, count - 1), 1 + np.random.default_rng(seed).random(5)
    matrix = set_.extrapolate(x, count)
    assert (np.abs(matrix @ p(set_.points[-count:]) - p(x)) <= EXACT * np.abs(matrix).sum(-1)).all()


@given(node_sets(), st.integers(0, 2**32 - 1))
def test_last_terms_are_legendre_coefficients(set_, seed):
    p = polynomial(seed, len(set_.points) - 1)
    np.testing.assert_allclose(set_.last_terms @ p(set_.points), p.coef[-2:], atol=EXACT)


def test_a_path_is_the_polynomials_of_its_segments():
    """At a joint the later one; beyond the ends the first and the last go on. A guide follows it from elsewhere."""
    set_, arrays = nodes("radau", 7), NumpyArrays()
    begins, lengths = np.array([0.0, 0.5, 2.0]), np.array([0.5, 1.5, 1.0])
    pieces = [polynomial(seed, 7) for seed in range(3)]
    values = np.stack([p(set_.points)[:, None] for p in pieces])
    both, nothing = np.array([0, 0, 0, 2, 2, 2]), np.zeros((6, 1))  # samples; the second has the pieces times 3
    twice = (np.tile(part, 2) for part in (begins, lengths))
    path = Path(arrays, set_, Segments(both, *twice, np.concatenate([values, 3 * values]), None, *[nothing] * 3))
    t, on = np.array([-0.1, 0.0, 0.3, 0.5, 1.9, 2.0, 2.7, 3.0, 3.1]), np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    expected = np.array([pieces[k]((at - begins[k]) / lengths[k]) for at, k in zip(t, on, strict=True)])
    for sample, factor in ((0, 1), (2, 3)):
        own = np.full(len(t), sample)
        np.testing.assert_allclose(path(t, own)[:, 0], factor * expected, atol=3 * EXACT)
        mixed = np.where(np.arange(len(t)) % 2, sample, 2 - sample)
        other = np.where(np.arange(len(t)) % 2, factor, 4 - factor)
        np.testing.assert_allclose(path(t, mixed)[:, 0], other * expected, atol=3 * EXACT)

    guide, second = Guide(arrays, np.full(3, np.nan)), np.array([2])
    guide.add(second, path, np.array([0.5]))
    assert guide.guides(np.arange(3)).tolist() == [False, False, True]
    begin = np.array([0.25])
    assert [guide.lengths(second, begin, np.array([left])).tolist() for left in (9.0, 0.4, 0.2)] == [
        [0.25],
        [0.2],
        [0.2],
    ]
    moved = guide.states(second, begin, begin, begin, path(begin, second) + 1)
    along = path(0.25 + 0.25 * set_.c, np.full(len(set_.c), 2))
    np.testing.assert_allclose(moved[0], along + 1, atol=3 * EXACT)
