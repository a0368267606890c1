"""The noise: a pure function of seed and time, with the law of Brownian motion.

Statistical tests have a fixed seed and reject at 1e-5, so that they do not fail by chance; each comes with a check that
it would reject a slightly wrong law.
"""

import math

import pytest
import torch
from cases import Case, assert_close, generator, guesses, iterations, random_grid, seeds, windows
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import picardsolve as ps

ALPHA = 1e-5
EXACT = 1e-12  # values are sums of some forty terms below 2**5 standard deviations of 6 in float64


@st.composite
def intervals(draw, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Starts and ends in both directions, dyadic or not, across the coarsest cells (1024 long) or within one."""
    scale = draw(st.sampled_from([0.1, 1.0, 5000.0]))
    ends = scale * (torch.rand(2, count, generator=generator(draw(seeds)), dtype=torch.float64) - 0.5)
    if draw(st.booleans()):
        ends = (ends * 256).round() / 256
    return ends[0], ends[1] + 0.01 * scale * (ends[0] == ends[1])


@given(intervals(), seeds, st.integers(1, 9))
def test_an_increment_does_not_depend_on_the_visit(ends, seed, size):
    path, (t0, t1), sample = ps.BrownianPath(seed), ends, torch.arange(6) % 4
    together = path.increments(t0, t1, sample, size)
    order = torch.randperm(6, generator=generator(seed))
    assert torch.equal(path.increments(t0[order], t1[order], sample[order], size), together[order])
    for row in range(6):
        at = slice(row, row + 1)
        assert torch.equal(ps.BrownianPath(seed).increments(t0[at], t1[at], sample[at], size), together[at])
    assert torch.equal(path.increments(t1, t0, sample, size), -together)
    wider = path.increments(t0, t1, sample, size + 3)  # elements keep their noise in a larger state
    assert torch.equal(wider[:, :size], together)


@given(seeds, st.integers(1, 4), st.integers(0, 3))
def test_a_sample_does_not_depend_on_its_batch(seed, batch, more):
    small = ps.BrownianPath(seed).increment(0.1, 0.7, (batch, 2, 3))
    large = ps.BrownianPath(seed).increment(0.1, 0.7, (batch + more, 2, 3))
    assert torch.equal(large[:batch], small)
    each = torch.randint(2**40, (batch + more,), generator=generator(seed)).tolist()
    listed = ps.BrownianPath(each).increment(0.1, 0.7, (batch + more, 2, 3))
    for k, own in enumerate(each):
        assert torch.equal(ps.BrownianPath([own]).increment(0.1, 0.7, (1, 2, 3))[0], listed[k])
    assert torch.equal(ps.BrownianPath(each[::-1]).increment(0.1, 0.7, (batch + more, 2, 3)), listed.flip(0))


@given(seeds, st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_dtypes_round_the_same_number(seed, dtype):
    exact = ps.BrownianPath(seed).increment(-0.3, 1.1, (2, 5), torch.float64)
    rounded = ps.BrownianPath(seed).increment(-0.3, 1.1, (2, 5), dtype)
    assert rounded.dtype is dtype
    # sums of some forty terms in single precision, which half precision rounds once
    single = ps.BrownianPath(seed).increment(-0.3, 1.1, (2, 5), torch.float32)
    assert_close(single.double(), exact, 4e-6)
    assert torch.equal(rounded, single.to(dtype))


def test_seeds_and_samples_and_elements_differ():
    values = torch.stack([ps.BrownianPath(seed).increment(0, 1, (3, 4)).flatten() for seed in (-1, 0, 1, 2**63, 2**70)])
    assert len(values[:4].unique()) == 48  # beyond 64 bits a seed is taken modulo 2**64
    assert torch.equal(values[4], values[1])


@given(
    seed=seeds,
    grid_seed=seeds,
    steps=st.integers(1, 6),
    factor=st.integers(2, 7),
    span=st.sampled_from([0.01, 1.0, -1.0, 3000.0]),
)
def test_refined_increments_add_up(seed, grid_seed, steps, factor, span):
    path, coarse = ps.BrownianPath(seed), random_grid(grid_seed, steps, -0.4, -0.4 + span)
    share = torch.arange(factor, dtype=torch.float64) / factor
    fine = torch.cat([(coarse[:-1, None] + coarse.diff()[:, None] * share).flatten(), coarse[-1:]])
    zero = torch.zeros(steps * factor, dtype=torch.int64)
    pieces = path.increments(fine[:-1], fine[1:], zero, 3).reshape(steps, factor, 3).sum(1)
    whole = path.increments(coarse[:-1], coarse[1:], zero[:steps], 3)
    assert_close(pieces, whole, EXACT * math.sqrt(max(abs(span), 1)))
    assert_close(whole.sum(0, keepdim=True), path.increments(coarse[:1], coarse[-1:], zero[:1], 3), EXACT * 60)


@given(st.integers(-40, 0), st.floats(-3, 3), st.booleans())
def test_intervals_below_the_resolution_are_refused(exponent, start, downwards):
    path = ps.BrownianPath(0, 2.0**exponent)
    sign = -1 if downwards else 1
    assert path.increment(0.0, sign * 2.0**exponent, (1, 1)).isfinite().all()
    with pytest.raises(ValueError, match="resolution"):
        path.increment(start, start, (1, 1))
    with pytest.raises(ValueError, match="resolution"):
        path.increment(0.0, sign * 0.99 * 2.0**exponent, (1, 1))


def test_what_else_is_refused():
    for resolution in (0.0, 0.3, 2.0, -0.5, 2.0**-41):
        with pytest.raises(ValueError, match="resolution"):
            ps.BrownianPath(0, resolution)
    with pytest.raises(ValueError, match="seed"):
        ps.BrownianPath([1, 2]).increment(0, 1, (3, 1))


@given(st.floats(-0.9, 0.9), st.integers(-16, -6))
def test_a_finer_resolution_is_the_same_path(start, exponent):
    """Only what lies below the coarser resolution differs: at an end less than a sixteenth of it in variance."""
    coarse, fine = ps.BrownianPath(7, 2.0**exponent), ps.BrownianPath(7, 2.0 ** (exponent - 8))
    difference = coarse.increment(start, start + 0.5, (1, 20), torch.float64) - fine.increment(
        start, start + 0.5, (1, 20), torch.float64
    )
    assert float(difference.abs().max()) <= 8 * math.sqrt(2.0**exponent / 4)


# ---- the law


STEPS = {
    "dyadic": torch.arange(1001, dtype=torch.float64) / 16,
    "tenths": torch.arange(1001, dtype=torch.float64) / 10,
    "wide": torch.arange(1001, dtype=torch.float64) * 17.3 - 9000,
    "short": torch.arange(1001, dtype=torch.float64) * 2e-5 + 0.3,
    "uneven, decreasing": random_grid(3, 1000, 40.0, -2.0),
}


def normalised(name: str, size: int, seed: int = 0) -> torch.Tensor:
    """``(1000, size)`` increments over the square roots of their intervals."""
    ts = STEPS[name]
    rows = ps.BrownianPath(seed).increments(ts[:-1], ts[1:], torch.zeros(1000, dtype=torch.int64), size)
    return rows / ts.diff().abs().sqrt()[:, None]


def is_normal(values: torch.Tensor) -> bool:
    return stats.kstest(values.flatten().numpy(), "norm").pvalue > ALPHA


def are_uncorrelated(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Neither the values nor their squares, for many pairs at once: 5 standard errors each."""
    x, y = x.flatten(), y.flatten()
    limit = 5 / math.sqrt(len(x))
    pairs = torch.stack([x, y]), torch.stack([x**2, y**2]), torch.stack([x, y**2])
    return all(abs(float(torch.corrcoef(pair)[0, 1])) < limit for pair in pairs)


@pytest.mark.parametrize("name", STEPS)
def test_increments_are_normal_and_independent(name):
    z = normalised(name, 200)
    # at 20 microseconds, near the resolution, the variance is low by up to 2**-16 / (64 * 2e-5) = 1.2%
    shrink = 1 - 2.0**-17 / (64 * 2e-5) if name == "short" else 1.0
    assert is_normal(z / math.sqrt(shrink))
    assert not is_normal(z * math.sqrt(1.1))  # the test has the power to see a variance wrong by a tenth
    assert not is_normal(z / math.sqrt(1.1))
    assert abs(float(z.var()) - shrink) < 5 * math.sqrt(2 / z.numel()) + (1 - shrink)
    assert are_uncorrelated(z[:-1], z[1:])
    assert are_uncorrelated(z[:-2], z[2:])
    assert are_uncorrelated(z[:, :-1], z[:, 1:])
    assert are_uncorrelated(z[:, :-2:2], z[:, 2::2])
    mixed = z[1:] + 0.02 * z[:-1]
    assert not are_uncorrelated(mixed, z[:-1])  # and a correlation of 2 per cent


def test_samples_and_seeds_are_independent():
    by_seed = torch.stack([normalised("tenths", 20, seed) for seed in range(4)])
    assert are_uncorrelated(by_seed[:-1], by_seed[1:])
    batch = ps.BrownianPath(0).increment(0.0, 0.7, (400, 500), torch.float64) / math.sqrt(0.7)
    assert is_normal(batch)
    assert are_uncorrelated(batch[:-1], batch[1:])
    listed = ps.BrownianPath(list(range(400))).increment(0.0, 0.7, (400, 500), torch.float64) / math.sqrt(0.7)
    assert is_normal(listed)
    assert are_uncorrelated(listed[:-1], listed[1:])


def test_covariance_of_the_path_at_two_times():
    """Cov(W(s), W(t)) = min(s, t), for times that share cells and times that do not."""
    path, size = ps.BrownianPath(5), 200_000
    times = torch.tensor([0.1, 0.3, 1.0, 300.3, 1100.7], dtype=torch.float64)
    values = path.increments(torch.zeros(5, dtype=torch.float64), times, torch.zeros(5, dtype=torch.int64), size)
    expected = torch.minimum(times[:, None], times)
    deviation = torch.sqrt((expected**2 + times[:, None] * times) / size)
    assert ((torch.cov(values, correction=0) - expected).abs() < 5 * deviation).all()


# ---- in a solve


@given(st.data())
def test_the_noise_of_a_solve_does_not_depend_on_how_it_is_solved(data):
    """With no drift and unit diffusion the solution is the path itself."""
    ts = random_grid(data.draw(seeds), data.draw(st.integers(1, 12)), 0.0, 1.0)
    seed, batch = data.draw(seeds), data.draw(st.integers(1, 3))
    term = ps.SDE(lambda t, y: torch.zeros_like(y), lambda t, y: torch.ones_like(y), "additive")
    y0 = torch.zeros(batch, 2, dtype=torch.float64)
    sol = ps.solve(
        term,
        y0,
        ts,
        integrator=ps.EulerMaruyama(),
        brownian=ps.BrownianPath(seed),
        batch_dims=1,
        window=data.draw(windows),
        iteration=data.draw(iterations),
        guess=data.draw(guesses(term)),
    )
    for k, t in enumerate(ts.tolist()[1:], 1):
        expected = ps.BrownianPath(seed).increment(0.0, t, (batch, 2), torch.float64)
        assert_close(sol.ys[k], expected, EXACT)


@given(st.data())
def test_a_sampler_takes_the_increment_over_the_root_of_its_step(data):
    """With a model that says noise = 0, from x = 0, DDPM adds posterior noise only: the recursion by hand."""
    steps, seed = data.draw(st.integers(1, 8)), data.draw(seeds)
    schedule, ts = ps.schedules.EDM(), random_grid(seed, steps, 3.0, 0.1)
    case = Case(
        "noise only",
        ps.Denoiser(lambda x, t: torch.zeros_like(x), schedule, "epsilon"),
        torch.zeros(2, 3, dtype=torch.float64),
        ts,
        ps.DDPM(),
        1,
        1,
        seed,
        1,
    )
    ys = case.solve(tol=0, window=data.draw(windows), guess=data.draw(guesses(case.term))).ys
    x = case.y0
    for k in range(steps):
        s, t = float(ts[k]), float(ts[k + 1])
        z = ps.BrownianPath(seed).increment(s, t, (2, 3), torch.float64) / math.sqrt(s - t)
        x = x + t / s * math.sqrt(s**2 - t**2) * z
        assert_close(ys[k + 1], x, EXACT)


def test_moments_of_an_ornstein_uhlenbeck_process():
    """Euler-Maruyama on dY = -2 Y dt + 0.5 dW has the moments of its own recursion, exactly; 5 standard errors."""
    paths, steps, h = 20_000, 40, 0.05
    term = ps.SDE(lambda t, y: -2 * y, lambda t, y: torch.full_like(y, 0.5), "additive")
    y0, ts = torch.full((paths,), 1.5, dtype=torch.float64), ps.grids.uniform(0, steps * h, steps)
    ys = ps.solve(term, y0, ts, integrator=ps.EulerMaruyama(), window=steps, tol=1e-6).ys
    decay = (1 - 2 * h) ** torch.arange(steps + 1, dtype=torch.float64)
    variance = 0.25 * h * (1 - decay**2) / (1 - (1 - 2 * h) ** 2)
    assert ((ys.mean(1) - 1.5 * decay).abs() <= 5 * (variance / paths).sqrt() + 1e-5).all()
    assert ((ys.var(1, correction=0) - variance).abs() <= 5 * variance * math.sqrt(2 / paths)).all()
