"""Space-time Levy areas: the law, exactly from the factors of the normals and by samples; Chen's relation; purity."""

import numpy as np
import pytest
import torch
from cases import assert_close, generator, random_grid, seeds
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import picardsolve as ps
from picardsolve.brownian.dyadic import Levels
from picardsolve.brownian.intervals import combination

RESOLUTION = 2.0**-8
EXACT = 1e-12


def dense(levels: Levels, t0: np.ndarray, t1: np.ndarray) -> np.ndarray:
    """Factors ``(2 R, n)`` of independent normals, of the increments and the areas of R intervals."""
    of = combination(levels, np.full(len(t0), 7), np.zeros(len(t0), dtype=np.int64), t0, t1, areas=True)
    streams, place = np.unique(of.streams, return_inverse=True)
    row = np.repeat(np.arange(2 * len(t0)), np.diff(of.starts, append=len(of.normal)))
    matrix = np.zeros((2 * len(t0), 2 * len(streams)))
    np.add.at(matrix, (row, 2 * place[of.normal // 2] + of.normal % 2), of.factors)
    return matrix


def expected(t0: np.ndarray, t1: np.ndarray) -> np.ndarray:
    """Covariance ``(2 R, 2 R)`` of increments and areas: of ``int k dW``, ``k = 1`` and ``(t0 + t1 - 2 s) / 2h``."""
    knots = np.unique(np.concatenate([t0, t1]))
    low, high, h = knots[:-1], knots[1:], t1 - t0
    inside = (t0[:, None] <= low) & (high <= t1[:, None])
    at = (((t0 + t1)[:, None] - 2 * s) / (2 * h[:, None]) * inside for s in (low, (low + high) / 2, high))
    first, middle, last = (np.concatenate([inside, values]) * np.sqrt(high - low) for values in at)
    return (first @ first.T + 4 * middle @ middle.T + last @ last.T) / 6  # Simpson's rule, exact for parabolas


def apart(draw_seed: int, count: int, span: float, dyadic: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ends of intervals, all of them at least the resolution apart."""
    gen = generator(draw_seed)
    ends = torch.randperm(int(span / RESOLUTION / 2), generator=gen)[: 2 * count].reshape(2, -1).double() * 2
    ends = ends + (0 if dyadic else torch.rand(2, count, generator=gen, dtype=torch.float64))
    ends = (ends * RESOLUTION - span / 2).numpy()
    return ends.min(0), ends.max(0)


@given(seeds, st.integers(1, 8), st.sampled_from([1.0, 100.0, 5000.0]), st.booleans())
def test_the_law_is_exact(seed, count, span, dyadic):
    """The covariance of all increments and areas of intervals that overlap, touch or are apart."""
    t0, t1 = apart(seed, count, span, dyadic)
    factors = dense(Levels.down_to(RESOLUTION), t0, t1)
    assert_close(torch.from_numpy(factors @ factors.T), torch.from_numpy(expected(t0, t1)), EXACT * span)


@pytest.mark.parametrize("resolution", [2.0**-40, 2.0**-16, 1.0])
@pytest.mark.parametrize("start", [0.0, 0.3, 1023.0 - 1 / 3, 1024.0, -1.0])
def test_the_shortest_intervals_have_an_exact_law(resolution, start):
    t0 = np.array([start, start + resolution, start])
    t1 = np.array([start + resolution, start + 2 * resolution, start + 2 * resolution])
    if ((t1 - t0)[:2] < resolution).any():
        t1[0] = t0[1] = np.nextafter(t0[1], np.inf)
        t1[1:] = t1[1] + 4 * np.spacing(abs(t1[1]))
    factors = dense(Levels.down_to(resolution), t0, t1)
    tolerance = 1e-9 + 1e3 * np.spacing(abs(start)) / resolution
    assert_close(
        torch.from_numpy(factors @ factors.T / resolution), torch.from_numpy(expected(t0, t1) / resolution), tolerance
    )


# ---- the numbers


def rows(seed: int, span: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ends = span * (torch.rand(2, 6, generator=generator(seed), dtype=torch.float64) - 0.5)
    return ends[0], ends[1] + 0.01 * span, torch.arange(6) % 4


@given(seeds, st.sampled_from([0.1, 1.0, 5000.0]), st.integers(1, 9))
def test_an_area_does_not_depend_on_the_visit(seed, span, size):
    path, (t0, t1, sample) = ps.BrownianPath(seed, 2.0**-30), rows(seed, span)
    w, h = path.areas(t0, t1, sample, size)
    assert torch.equal(w, path.increments(t0, t1, sample, size))
    order = torch.randperm(6, generator=generator(seed))
    assert torch.equal(path.areas(t0[order], t1[order], sample[order], size)[1], h[order])
    for row in range(6):
        at = slice(row, row + 1)
        assert torch.equal(path.areas(t0[at], t1[at], sample[at], size)[1], h[at])
    assert torch.equal(path.areas(t1, t0, sample, size)[1], h)
    assert torch.equal(path.areas(t0, t1, sample, size + 3)[1][:, :size], h)
    listed = ps.BrownianPath([seed + 1, seed + 2, seed + 3, seed + 4], 2.0**-30)
    own = ps.BrownianPath([seed + 2], 2.0**-30)
    one = sample == 1
    assert torch.equal(
        listed.areas(t0, t1, sample, size)[1][one], own.areas(t0[one], t1[one], 0 * sample[one], size)[1]
    )


@given(seeds, st.integers(1, 6), st.sampled_from([0.01, 1.0, 3000.0]))
def test_areas_of_parts_make_the_whole(seed, steps, span):
    """Chen's relation, over a grid of any steps."""
    path, ts = ps.BrownianPath(seed, 2.0**-30), random_grid(seed, steps, -0.4, -0.4 + span)
    zero = torch.zeros(steps, dtype=torch.int64)
    w, h = path.areas(ts[:-1], ts[1:], zero, 3)
    whole_w, whole_h = path.areas(ts[:1], ts[-1:], zero[:1], 3)
    step, before = ts.diff()[:, None], torch.cumsum(w, 0) - w
    area = (step * (before + w / 2 + h)).sum(0, keepdim=True) / (ts[-1] - ts[0]) - whole_w / 2
    assert_close(area, whole_h, EXACT * max(span, 1))


def test_blocks_of_rows_are_seamless():
    """More rows than are computed at once, and more elements."""
    path, ts = ps.BrownianPath(3), torch.linspace(0, 7, 271, dtype=torch.float64)
    zero = torch.zeros(270, dtype=torch.int64)
    w, h = path.areas(ts[:-1], ts[1:], zero, 300)
    for k in (0, 127, 128, 129, 269):
        one_w, one_h = path.areas(ts[k : k + 1], ts[k + 1 : k + 2], zero[:1], 300)
        assert torch.equal(one_w[0], w[k])
        assert torch.equal(one_h[0], h[k])
    empty = path.areas(ts[:0], ts[:0], zero[:0], 3)
    assert empty[0].shape == empty[1].shape == (0, 3)


def test_areas_below_the_resolution_are_refused():
    zero = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="resolution"):
        ps.BrownianPath(0).areas(0.0 * zero.double(), zero + 1e-6, zero, 1)
    with pytest.raises(ValueError, match="seed"):
        ps.BrownianPath([1]).areas(0.0 * zero.double(), zero + 1.0, zero + 1, 1)


GRIDS = {"dyadic": 1 / 16, "tenths": 0.1, "wide": 17.3, "short": 2e-5}


def rejects(values: torch.Tensor) -> bool:
    return stats.kstest(values.flatten().numpy(), "norm").pvalue < 1e-5


@pytest.mark.parametrize("name", GRIDS)
def test_areas_are_normal_and_independent(name):
    """Of the increment, of the neighbours and of the other elements; 5 standard errors."""
    ts = torch.arange(501, dtype=torch.float64) * GRIDS[name] + 0.3
    w, h = ps.BrownianPath(1).areas(ts[:-1], ts[1:], torch.zeros(500, dtype=torch.int64), 200)
    root = ts.diff().sqrt()[:, None]
    w, h = w / root, h * 12**0.5 / root
    assert not rejects(h)
    assert rejects(h * 1.05)  # the power to see a deviation wrong by a twentieth
    limit = 5 / h.numel() ** 0.5
    for x, y in ((w, h), (w**2, h**2), (h[:-1], h[1:]), (h[:-1], w[1:]), (w[:-1], h[1:]), (h[:, :-1], h[:, 1:])):
        assert abs(float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1])) < limit * 1.01
    leaning = torch.stack([w.flatten(), (h + 0.05 * w).flatten()])
    assert abs(float(torch.corrcoef(leaning)[0, 1])) > limit
