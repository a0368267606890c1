"""Reverse-time SDEs: coefficients in closed form, the law of Gaussian data, and what the grid is worth."""

import math

import pytest
import torch
from cases import Mixture, generator, linear_variance, mixture_denoiser, randn

import picardsolve as ps
from picardsolve.problem.reverse import _coefficients

LOW, HIGH = 0.1, 20.0  # the rates of Song et al. 2021
DEVIATION = 0.05


def alpha_bar(t):
    return torch.exp(-(LOW * t + (HIGH - LOW) * t**2 / 2))


def rate(t):
    return LOW + (HIGH - LOW) * t


SCHEDULES = {  # schedule, start, end, F and G^2 as published
    "VP": (ps.schedules.VP(alpha_bar), 1.0, 1e-3, lambda t: -rate(t) / 2, rate),
    "SubVP": (
        ps.schedules.SubVP(alpha_bar),
        1.0,
        1e-2,
        lambda t: -rate(t) / 2,
        lambda t: rate(t) * (1 - alpha_bar(t) ** 2),
    ),
    "VE": (
        ps.schedules.VE(lambda t: 0.01 * 5000**t),
        *(1.0, 1e-3, lambda t: 0 * t, lambda t: (0.01 * 5000**t) ** 2 * 2 * math.log(5000)),
    ),
    "EDM": (ps.schedules.EDM(), 80.0, 2e-3, lambda t: 0 * t, lambda t: 2 * t),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_coefficients_are_the_published_ones(name):
    schedule, start, end, growth, power = SCHEDULES[name]
    t = torch.linspace(end, start, 7, dtype=torch.float64)[:, None]
    for found, expected in zip(_coefficients(schedule, t), (growth(t), power(t)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def gaussian_score(schedule):
    """Of data ``N(0, DEVIATION^2)``."""

    def score(x, t):
        t = t.double().reshape(-1, *[1] * (x.dim() - 1))
        return -x / ((schedule.alpha(t) * DEVIATION) ** 2 + schedule.sigma(t) ** 2).to(x)

    return score


def end_deviation(schedule, start: float, end: float, integrator, ts=None, steps: int = 100) -> float:
    """Relative error of the deviation at the end, exact: the steps are linear."""
    term, grid = ps.reverse_sde(gaussian_score(schedule), schedule, start, end, steps)
    at = torch.tensor([start, end], dtype=torch.float64)
    first, last = ((schedule.alpha(at) * DEVIATION) ** 2 + schedule.sigma(at) ** 2).tolist()
    return math.sqrt(linear_variance(term, grid if ts is None else ts, integrator, first) / last) - 1


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("integrator", "allowed"), [(ps.EulerMaruyama(), 0.1), (ps.SRA1(), 0.01)], ids=["Euler", "SRA1"]
)
def test_gaussian_data_have_their_law(name, integrator, allowed):
    schedule, start, end, *_ = SCHEDULES[name]
    assert abs(end_deviation(schedule, start, end, integrator)) < allowed


def test_equal_steps_of_time_do_not_reach_it():
    """Of VE they are equal steps of log-SNR."""
    schedule, start, end, *_ = SCHEDULES["EDM"]
    assert abs(end_deviation(schedule, start, end, ps.EulerMaruyama(), ps.grids.uniform(-start, -end, 100))) > 0.3


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow"])
def test_the_score_of_a_denoiser_is_that_of_its_density(prediction):
    schedule, means = ps.schedules.VP(alpha_bar), randn(generator(0), 3, 2)
    denoiser = mixture_denoiser(Mixture(means, 0.5), schedule, prediction)
    x, t = randn(generator(1), 6, 2).requires_grad_(), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    spread = (alpha * 0.5) ** 2 + sigma**2
    density = torch.logsumexp(-((x[:, None] - alpha[..., None] * means) ** 2).sum(-1) / (2 * spread), -1)
    (expected,) = torch.autograd.grad(density.sum(), x)
    torch.testing.assert_close(denoiser.score(x.detach(), t), expected)


def test_a_learned_score_is_solved_in_parallel():
    schedule = ps.schedules.VP(alpha_bar)
    denoiser = mixture_denoiser(Mixture(randn(generator(0), 3, 2), 0.5), schedule, "epsilon")
    term, ts = ps.reverse_sde(denoiser.score, schedule, 1.0, 1e-3, 200)
    how = {"integrator": ps.EulerMaruyama(), "batch_dims": 1}
    y0 = randn(generator(1), 4, 2)
    sol, ref = ps.solve(term, y0, ts, window=200, tol=1e-4, **how), ps.sequential(term, y0, ts, **how)
    assert sol.stats.rounds < 60
    assert float((sol.ys - ref.ys).abs().max()) < 1e-2


def test_times_that_do_not_fall_are_refused():
    with pytest.raises(ValueError, match="start > end"):
        ps.reverse_sde(torch.sin, ps.schedules.EDM(), 0.1, 1.0, 10)
