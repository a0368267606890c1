"""Time grids and noise schedules against their formulas."""

import math

import pytest
import torch
from cases import PREDICTIONS, generator, predicted, randn, random_grid, seeds
from hypothesis import given
from hypothesis import strategies as st

import picardsolve as ps
from picardsolve import grids, schedules

betas = st.integers(2, 60).flatmap(
    lambda n: seeds.map(lambda seed: 0.001 + 0.3 * torch.rand(n, generator=generator(seed), dtype=torch.float64))
)
times = st.floats(-100, 100, allow_subnormal=False)


def check_grid(ts: torch.Tensor, steps: int, start: float, end: float) -> None:
    assert ts.dtype is torch.float64
    assert ts.shape == (steps + 1,)
    assert (float(ts[0]), float(ts[-1])) == (start, end)
    assert (ts.diff() * (end - start) > 0).all()


@given(times, times, st.integers(1, 300))
def test_uniform(start, end, steps):
    if abs(end - start) < 1e-6:
        end = start + 1
    ts = grids.uniform(start, end, steps)
    check_grid(ts, steps, start, end)
    rounding = 4 * torch.finfo(torch.float64).eps * max(abs(start), abs(end))
    assert torch.allclose(ts.diff(), torch.tensor((end - start) / steps, dtype=torch.float64), rtol=0, atol=rounding)


@given(seeds, st.integers(1, 30), st.booleans(), st.sampled_from([torch.float32, torch.float64, None]))
def test_given_keeps_the_times(seed, steps, decreasing, dtype):
    grid = random_grid(seed, steps, 0.0, -3.0 if decreasing else 3.0)
    original = grid.tolist() if dtype is None else grid.to(dtype)
    ts = grids.given(original)
    assert ts.dtype is torch.float64
    assert torch.equal(ts, grid if dtype is None else grid.to(dtype).double())


@given(seeds, st.integers(2, 10), st.data())
def test_given_refuses_what_is_not_a_grid(seed, steps, data):
    grid = random_grid(seed, steps, 0.0, 1.0)
    place = data.draw(st.integers(1, steps))
    repeated, turned, undefined = grid.clone(), grid.clone(), grid.clone()
    repeated[place] = repeated[place - 1]
    turned[place] = turned[place - 1] - 1
    undefined[place] = data.draw(st.sampled_from([torch.nan, torch.inf]))
    for wrong in (repeated, turned, undefined, grid[:1], grid[:, None], grid[0], []):
        with pytest.raises(ValueError, match="ts"):
            grids.given(wrong)


@given(st.floats(0.5, 100), st.floats(1e-3, 0.4), st.integers(1, 60), st.floats(1, 10))
def test_karras(sigma_max, sigma_min, steps, rho):
    """Karras et al. 2022, eq. 5, with N = steps noise levels and then none."""
    ts = grids.karras(sigma_max, sigma_min, steps, rho)
    for i in range(steps):
        share = i / (steps - 1) if steps > 1 else 0.0
        level = (sigma_max ** (1 / rho) + share * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
        assert float(ts[i]) == pytest.approx(level, rel=1e-12)
    assert float(ts[-1]) == 0
    assert len(ts) == steps + 1
    if steps > 1:
        assert float(ts[-2]) == pytest.approx(sigma_min, rel=1e-12)
    for wrong in ((sigma_min, sigma_max), (sigma_max, 0.0), (sigma_max, sigma_max)):
        with pytest.raises(ValueError, match="sigma_min"):
            grids.karras(*wrong, steps)


def test_grids_need_a_step():
    schedule = schedules.EDM()
    for make in (lambda n: grids.uniform(0, 1, n), lambda n: grids.karras(2, 1, n)):
        with pytest.raises(ValueError, match="steps"):
            make(0)
    with pytest.raises(ValueError, match="steps"):
        grids.log_snr(schedule, 2, 1, 0)
    for ends in ((0.0, 1.0), (2.0, 0.0)):
        with pytest.raises(ValueError, match="log-SNR"):
            grids.log_snr(schedule, *ends, 4)


SCHEDULES = {
    "EDM": (schedules.EDM(), 60.0, 0.01),
    "VE": (schedules.VE(lambda t: 0.01 * 2000**t), 1.0, 0.0),
    "VP": (schedules.VP(lambda t: torch.exp(-t)), 8.0, 0.001),
    "Flow": (schedules.Flow(), 0.99, 0.01),
    "from_betas": (schedules.from_betas(torch.linspace(1e-4, 0.02, 1000)), 999.0, 0.0),
}


@pytest.mark.parametrize("name", SCHEDULES)
@given(st.integers(1, 80), st.booleans())
def test_log_snr_steps_are_equal(name, steps, reverse):
    schedule, start, end = SCHEDULES[name]
    start, end = (end, start) if reverse else (start, end)
    ts = grids.log_snr(schedule, start, end, steps)
    check_grid(ts, steps, start, end)
    levels = schedule.log_snr(ts)
    assert torch.allclose(levels.diff(), (levels[-1] - levels[0]) / steps, rtol=1e-7, atol=0)


@given(st.floats(1e-3, 1e3), st.integers(1, 40))
def test_log_snr_of_edm_is_geometric(ratio, steps):
    """sigma = t, so equal steps of its logarithm are equal ratios of t: a closed form for the bisection."""
    if abs(math.log(ratio)) < 0.01:
        ratio = 2.0
    ts = grids.log_snr(schedules.EDM(), 1.0, ratio, steps)
    expected = ratio ** (torch.arange(steps + 1, dtype=torch.float64) / steps)
    assert torch.allclose(ts, expected, rtol=1e-11, atol=0)


# ---- schedules


@given(betas)
def test_from_betas_is_the_cumulative_product_at_integers(values):
    schedule = schedules.from_betas(values)
    product = torch.cumprod(1 - values, 0)
    at = torch.arange(len(values), dtype=torch.float64)
    assert torch.allclose(schedule.alpha(at) ** 2, product, rtol=1e-12, atol=0)
    assert torch.allclose(schedule.sigma(at) ** 2, 1 - product, rtol=1e-10, atol=0)
    clean = torch.tensor([-1.0], dtype=torch.float64)
    assert float(schedule.alpha(clean)) == 1
    assert float(schedule.sigma(clean)) == 0
    middle = schedule.alpha(at[:-1] + 0.5) ** 2  # log-linear: the geometric mean, half way
    assert torch.allclose(middle, (product[:-1] * product[1:]).sqrt(), rtol=1e-12, atol=0)
    first = schedule.alpha(clean + 0.5) ** 2
    assert float(first) == pytest.approx(math.sqrt(float(product[0])), rel=1e-12)


def test_from_betas_refuses_what_is_no_variance():
    for wrong in (torch.tensor([0.1, 1.0]), torch.tensor([0.0, 0.1]), torch.tensor([-0.1]), torch.full((2, 2), 0.1)):
        with pytest.raises(ValueError, match="betas"):
            schedules.from_betas(wrong)


@given(seeds)
def test_levels_of_every_schedule(seed):
    t = torch.rand(20, generator=generator(seed), dtype=torch.float64) * 0.98 + 0.01
    one = torch.ones_like(t)
    expected = {
        schedules.EDM(): (one, t),
        schedules.VE(lambda t: 3 * t**2): (one, 3 * t**2),
        schedules.Flow(): (1 - t, t),
        schedules.VP(lambda t: torch.cos(t) ** 2): (torch.cos(t), torch.sin(t)),
    }
    for schedule, (alpha, sigma) in expected.items():
        assert torch.allclose(schedule.alpha(t), alpha, rtol=1e-12, atol=0)
        assert torch.allclose(schedule.sigma(t), sigma, rtol=1e-10, atol=0)
        assert torch.allclose(schedule.log_snr(t), torch.log(alpha / sigma), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@given(seed=seeds)
def test_every_prediction_maps_to_the_clean_sample(prediction, seed):
    """Whatever a network predicts, its exact prediction for x = alpha x_0 + sigma noise gives x_0 back."""
    gen = generator(seed)
    clean, noise = randn(gen, 5, 3), randn(gen, 5, 3)
    alpha, sigma = 0.1 + torch.rand(2, 5, 1, generator=gen, dtype=torch.float64)
    x = alpha * clean + sigma * noise
    term = ps.Denoiser(lambda x, t: x, schedules.EDM(), prediction)
    from_state, from_output = term.sample_map(alpha, sigma)
    output = predicted(prediction, x, clean, alpha, sigma)
    assert torch.allclose(from_state * x + from_output * output, clean, rtol=0, atol=1e-12)


def test_a_grid_that_adds_noise_is_refused():
    term = ps.Denoiser(lambda x, t: x, schedules.EDM(), "sample")
    for ts in ([1.0, 2.0], [0.0, 1.0]):
        with pytest.raises(ValueError, match="ts"):
            ps.solve(term, torch.ones(1, 2), ts, integrator=ps.DDIM())
