"""Space-time Levy areas: the law, exactly from the factors of the normals and by samples; Chen's relation; purity."""

import numpy as np
import pytest
import torch
from cases import assert_close, generator, seeds
from hypothesis import given
from hypothesis import strategies as st

from picardsolve.dyadic import Combination, Levels

RESOLUTION = 2.0**-8
EXACT = 1e-12


def dense(levels: Levels, t0: np.ndarray, t1: np.ndarray) -> np.ndarray:
    """Factors ``(2 R, n)`` of independent normals, of the increments and the areas of R intervals."""
    key = np.full(len(t0), 7, dtype=np.uint64)
    rows: list[Combination] = [
        levels.values(key, t0),
        levels.values(key, t1),
        levels.crossings(key, t0, t1),
        levels.areas(key, t0, t1),
    ]
    stream, place = np.unique(np.concatenate([of.streams for of in rows]), return_inverse=True)
    matrices, used = [], 0
    for of in rows:
        matrix = np.zeros((len(t0), len(stream), 2))
        row = np.repeat(np.arange(len(t0)), np.diff(of.starts))
        np.add.at(matrix, (row, place[used : used + len(row)]), of.factors)
        matrices.append(matrix.reshape(len(t0), -1))
        used += len(row)
    start, end, across, area = matrices
    return np.concatenate([end - start + across, area])


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
