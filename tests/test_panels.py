"""The rough linear algebra of segments, held to an accurate integration of the same linear equations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from picardsolve.collocation.chains import Chains
from picardsolve.collocation.nodes import nodes
from picardsolve.collocation.numpy_arrays import NumpyArrays
from picardsolve.collocation.panels import PanelLinearization, points

ARRAYS, NODES = NumpyArrays(), nodes("radau", 20)
SEEDS = st.integers(0, 2**32 - 1)


def jacobian(rng, size, strength):
    """A smooth J on [0, 1] whose values do not commute."""
    a, b, c = strength * rng.normal(size=(3, size, size)) / size**0.5
    return lambda t: a + np.multiply.outer(np.sin(2 * t), b) + np.multiply.outer(np.cos(3 * t), c)


def smooth(rng, size):
    """A residual, and its derivative, that is 0 at the start."""
    a, b = rng.normal(size=(2, size))
    return (
        lambda t: np.multiply.outer(np.sin(3 * t), a) + np.multiply.outer(t**3, b),
        lambda t: np.multiply.outer(3 * np.cos(3 * t), a) + np.multiply.outer(3 * t**2, b),
    )


def exact(j, residual_slope, start, at):
    """``delta = start + residual + integral of J delta``, at times."""

    def f(t, y):
        return j(t) @ y + residual_slope(t)

    return solve_ivp(f, (0, 1), start, "DOP853", at, rtol=1e-10, atol=1e-12).y.T


def made(j, h, second_order=False):
    jacobians = j(points(NODES))[None] / h
    size = jacobians.shape[-1] * (1 + second_order)
    return PanelLinearization.of(ARRAYS, NODES, np.array([h]), jacobians, second_order, np.ones((1, size)))


@given(SEEDS, st.integers(1, 6), st.sampled_from([0.3, 1.0]))
def test_answers_and_flows_are_those_of_the_linear_equation(seed, size, strength):
    rng = np.random.default_rng(seed)
    j, (residual, slope) = jacobian(rng, size, strength), smooth(rng, size)
    answer, flow = (part[0] for part in made(j, 0.3).answer(residual(NODES.c)[None]))
    wanted = exact(j, slope, np.zeros(size), NODES.c)
    flows = np.stack([exact(j, lambda t: 0, column, [1.0])[0] for column in np.eye(size)], 1)
    assert np.abs(answer - wanted).max() < 0.05 * np.abs(wanted).max()
    assert np.abs(flow - flows).max() < 0.01 * np.abs(flows).max()
    moved = made(j, 0.3).solve(np.ones((1, NODES.n, size)))[0]  # as by a change of the start
    wanted = exact(j, lambda t: 0, np.ones(size), NODES.c)
    assert np.abs(moved - wanted).max() < 0.002 * np.abs(wanted).max()


@given(SEEDS, st.integers(2, 4))
def test_order_four(seed, size):
    # half the length: a sixteenth of the error of each panel, and the same number of them
    j = jacobian(np.random.default_rng(seed), size, 6.0)

    def error(h):
        flow = made(lambda t: h * j(h * t), 1.0).answer(np.zeros((1, NODES.n, size)))[1][0]
        true = [exact(lambda t: h * j(h * t), lambda t: 0, column, [1.0])[0] for column in np.eye(size)]
        return np.abs(flow - np.stack(true, 1)).max() / np.abs(true).max()

    coarse, fine = error(1.0), error(0.5)
    assert fine < coarse / 8


def test_halves_of_a_second_order_equation_are_its_whole():
    rng = np.random.default_rng(0)
    j = jacobian(rng, 3, 2.0)

    def whole(t):
        out = np.zeros((len(t), 6, 6))
        out[:, :3, 3:], out[:, 3:, :3] = np.eye(3), j(t)
        return out

    residual = rng.normal(size=(1, NODES.n, 6))
    half = PanelLinearization.of(ARRAYS, NODES, np.array([0.7]), j(points(NODES))[None], True, np.ones((1, 6)))
    full = PanelLinearization.of(ARRAYS, NODES, np.array([0.7]), whole(points(NODES))[None], False, np.ones((1, 6)))
    assert half.answer(residual)[0] == pytest.approx(full.answer(residual)[0], rel=1e-12)
    ahead = [each.ahead(np.zeros(1, int), np.array([0.2])).led(NODES, residual[:, 0]) for each in (half, full)]
    assert ahead[0] == pytest.approx(ahead[1], rel=1e-10)


@given(SEEDS, st.integers(1, 8))
def test_segments_behind_each_other_are_moved_by_the_ends_before(seed, count):
    rng, size = np.random.default_rng(seed), 3
    segments = [made(jacobian(rng, size, 2.0), 0.3) for _ in range(count)]
    residual, jumps = rng.normal(size=(count, NODES.n, size)), rng.normal(size=(count, size))
    sample = np.sort(rng.integers(0, 3, count))
    together = segments[0]
    for segment in segments[1:]:
        together = segment.behind(together)
    change, carried = together.through(Chains(sample), residual, jumps)
    for i, segment in enumerate(segments):
        if not i or sample[i] > sample[i - 1]:
            move = np.zeros(size)
        assert carried[i] == pytest.approx(move, abs=1e-10)
        alone = segment.solve(residual[i : i + 1] + move)[0]
        assert change[i] == pytest.approx(alone, rel=1e-9, abs=1e-9)
        move = jumps[i] + alone[-1]


def test_a_segment_that_is_not_finite_leaves_the_others_as_they_are():
    j = np.ones((2, len(points(NODES)), 2, 2))
    j[0, 3] = np.nan
    made = PanelLinearization.of(ARRAYS, NODES, np.array([0.1, 0.1]), j, False, np.ones((2, 2)))
    bad, good = made.solve(np.ones((2, NODES.n, 2)))
    assert np.isnan(bad).any()
    assert np.isfinite(good).all()
