"""Parallel solves of SDEs have the right law, and a sampler that is a few per cent off fails the same test."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import picardsolve as ps

ALPHA = 1e-5
MANY = 20_000  # elements of one state, each with its own motion: independent samples


@dataclass(frozen=True)
class Case:
    """Samples ``of(sol.ys[-1])`` and the distribution function they should have at the last time."""

    term: ps.SDE
    y0: Tensor
    end: float
    steps: int
    law: Callable[[np.ndarray], np.ndarray]
    of: Callable[[Tensor], Tensor] = lambda y: y
    batch_dims: int = 0


def sde(drift: Callable, diffusion: Callable, noise: str = "diagonal") -> ps.SDE:
    return ps.SDE(drift, diffusion, noise=noise)  # pyright: ignore[reportArgumentType]: one of the four


def start(value: float) -> Tensor:
    return torch.full((MANY,), value, dtype=torch.float64)


def normal_law(mean: float, deviation: float) -> Callable:
    return stats.norm(mean, deviation).cdf


# Laws of the chain itself where they are known, of the equation where the step's bias is far below what is seen


def ornstein_uhlenbeck() -> Case:
    """Euler-Maruyama of ``dY = -Y dt + dW``: a sum of independent normals."""
    steps, end = 32, 1.0
    factor = 1 - end / steps
    variance = end / steps * (1 - factor ** (2 * steps)) / (1 - factor**2)
    law = normal_law(2 * factor**steps, math.sqrt(variance))
    return Case(sde(lambda t, y: -y, lambda t, y: torch.ones_like(y), "additive"), start(2.0), end, steps, law)


def stationary() -> Case:
    """The same for a long time: the chain's stationary law, from far away."""
    h = 1 / 8
    law = normal_law(0.0, math.sqrt(h / (1 - (1 - h) ** 2)))
    return Case(sde(lambda t, y: -y, lambda t, y: torch.ones_like(y), "additive"), start(1.0), 8.0, 64, law)


def geometric() -> Case:
    """Geometric Brownian motion: lognormal."""
    law = stats.lognorm(0.3, scale=math.exp(0.1 - 0.3**2 / 2)).cdf
    return Case(sde(lambda t, y: 0.1 * y, lambda t, y: 0.3 * y), start(1.0), 1.0, 64, law)


def tangent() -> Case:
    """Rackauckas & Nie 2017, equation 2: ``X = arctan(W / 10 + tan X0)``, ten times the noise."""
    term = sde(lambda t, y: -(0.4**2) * y.sin() * y.cos() ** 3, lambda t, y: 0.4 * y.cos() ** 2)
    return Case(term, start(0.2), 1.0, 64, lambda x: stats.norm.cdf((np.tan(x) - math.tan(0.2)) / 0.4))


def decaying() -> Case:
    """Rackauckas & Nie 2017, equation 3 (additive): ``X = (X0 + b (t + a W)) / sqrt(1 + t)``."""
    a, b, steps = 0.1, 0.5, 48
    times, mean, variance = np.linspace(0, 1, steps + 1), 1.0, 0.0
    for t in times[:-1]:  # of the chain, which is linear
        factor = 1 - 1 / (2 * (1 + t) * steps)
        mean = factor * mean + b / math.sqrt(1 + t) / steps
        variance = factor**2 * variance + (a * b) ** 2 / (1 + t) / steps
    assert abs(mean - (1 + b) / math.sqrt(2)) < 3e-3 > abs(math.sqrt(variance) - a * b / math.sqrt(2))
    term = sde(
        lambda t, y: b / (1 + t).sqrt() - y / (2 * (1 + t)),
        lambda t, y: a * b / (1 + t).sqrt() + torch.zeros_like(y),
        "additive",
    )
    return Case(term, start(1.0), 1.0, steps, normal_law(mean, math.sqrt(variance)))


def kubo() -> Case:
    """The Kubo oscillator ``dX = i X o (2 dt + 0.5 dW)`` in its Ito form, scalar noise: a normal phase."""

    def turned(y: Tensor) -> Tensor:
        return torch.stack([-y[:, 1], y[:, 0]], 1)

    term = sde(lambda t, y: 2 * turned(y) - 0.125 * y, lambda t, y: 0.5 * turned(y), "scalar")
    y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(2000, 1)
    phase = lambda y: torch.atan2(y[:, 1], y[:, 0])  # noqa: E731
    return Case(term, y0, 0.25, 64, normal_law(0.5, 0.25), phase, 1)


def double_well() -> Case:
    """``dY = 2 (Y - Y^3) dt + dW`` from the left well: the chain's law, step by step by quadrature."""
    h, steps = 1 / 16, 48
    x = np.linspace(-4, 4, 1201)
    kernel = stats.norm.pdf(x, (x + h * 2 * (x - x**3))[:, None], math.sqrt(h)) * (x[1] - x[0])
    density = stats.norm.pdf(x, -1.0, math.sqrt(h))  # the drift vanishes there
    for _ in range(steps - 1):
        density = density @ kernel
    below = np.cumsum(density) * (x[1] - x[0]) - density * (x[1] - x[0]) / 2
    term = sde(lambda t, y: 2 * (y - y**3), lambda t, y: torch.ones_like(y), "additive")
    return Case(term, start(-1.0), h * steps, steps, lambda y: np.interp(y, x, below))


def square_root() -> Case:
    """Cox, Ingersoll & Ross 1985, truncated at 0: a noncentral chi-squared."""
    rate, level, volatility, end = 2.0, 1.0, 0.6, 1.0
    scale = volatility**2 * (1 - math.exp(-rate * end)) / (4 * rate)
    law = stats.ncx2(4 * rate * level / volatility**2, math.exp(-rate * end) / scale, scale=scale).cdf
    term = sde(lambda t, y: rate * (level - y), lambda t, y: volatility * y.clamp(min=0).sqrt())
    return Case(term, start(1.0), end, 64, law)


def boundary(root: Callable[[Tensor], Tensor] = lambda y: y.clamp(min=0).sqrt()) -> Case:
    """The same where zero is reached (4 rate level < 2 volatility^2): the truncated chain's law, by quadrature."""
    rate, level, volatility, h, steps = 1.0, 0.25, 1.0, 1 / 16, 32
    edges = np.linspace(-1.0, 6.0, 2801)
    width, x = edges[1] - edges[0], (edges[1:] + edges[:-1]) / 2
    spread = np.hypot(volatility * np.sqrt(np.maximum(x, 0) * h), width / 2)  # half a cell where no noise is left
    kernel = np.diff(stats.norm.cdf(edges, (x + h * rate * (level - x))[:, None], spread[:, None]), axis=1)
    mass = np.diff(stats.norm.cdf(edges, 0.25, volatility * math.sqrt(0.25 * h)))
    for _ in range(steps - 1):
        mass = mass @ kernel
    below = np.concatenate([[0.0], mass.cumsum()])
    assert mass[x < 0].sum() > 0.1
    term = sde(lambda t, y: rate * (level - y), lambda t, y: volatility * root(y))
    return Case(term, start(0.25), h * steps, steps, lambda y: np.interp(y, edges, below))


def mixture() -> Case:
    """Langevin dynamics, started in its stationary law, a mixture of two normals."""
    gen = torch.Generator().manual_seed(1)
    left = torch.rand(MANY, generator=gen) < 0.3
    y0 = torch.randn(MANY, generator=gen, dtype=torch.float64) + torch.where(left, -1.5, 1.5)

    def score(t: Tensor, y: Tensor) -> Tensor:
        weight = torch.sigmoid(3 * y + math.log(0.7 / 0.3))
        return (weight * (1.5 - y) + (1 - weight) * (-1.5 - y)) / 2

    law = lambda x: 0.3 * stats.norm.cdf(x, -1.5) + 0.7 * stats.norm.cdf(x, 1.5)  # noqa: E731
    return Case(sde(score, lambda t, y: torch.ones_like(y), "additive"), y0, 1.0, 64, law)


CASES = (
    *(ornstein_uhlenbeck, stationary, geometric, tangent, decaying, kubo, double_well, square_root),
    *(boundary, mixture),
)


def sampled(case: Case, brownian: ps.BrownianPath | None = None, **how) -> np.ndarray:
    ts = ps.grids.uniform(0.0, case.end, case.steps)
    given = {"integrator": ps.EulerMaruyama(), "brownian": brownian or ps.BrownianPath(seed=5), "save": "last"}
    sol = ps.solve(case.term, case.y0, ts, batch_dims=case.batch_dims, tol=1e-3, **given, **how)
    return case.of(sol.ys[-1]).numpy()


def doubt(samples: np.ndarray, law: Callable) -> float:
    """The smallest p-value of Kolmogorov-Smirnov and of mean and variance of the normal scores, times three."""
    u = law(samples)
    scores, n = stats.norm.ppf(np.clip(u, 1e-12, 1 - 1e-12)), len(samples)
    mean = 2 * stats.norm.sf(abs(scores.mean()) * math.sqrt(n))
    spread = stats.chi2(n)
    total = float((scores**2).sum())
    variance = 2 * min(spread.sf(total), spread.cdf(total))
    return 3 * min(stats.kstest(u, "uniform").pvalue, mean, variance)


@pytest.mark.parametrize("make", CASES)
def test_a_parallel_solve_has_the_right_law(make):
    case = make()
    assert doubt(sampled(case), case.law) > ALPHA


class Repeated(ps.BrownianPath):
    """Noise that is used again: every second step gets the one before."""

    def increments(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int) -> Tensor:
        h = t1 - t0
        even = 2 * h * (t0 / (2 * h) + 0.25).floor()
        return super().increments(even, even + h, sample, size)


def scaled(case: Case, drift: float, diffusion: float) -> Case:
    f, g = case.term.drift, case.term.diffusion
    wrong = replace(case.term, drift=lambda t, y: drift * f(t, y), diffusion=lambda t, y: diffusion * g(t, y))
    return replace(case, term=wrong)


@pytest.mark.parametrize("make", [ornstein_uhlenbeck, geometric, tangent, square_root, mixture])
def test_variance_off_by_six_per_cent_is_seen(make):
    """Twelve for the mixture, which starts in the right law and takes longer than this to forget it."""
    case = make()
    off = 1.06 if make is mixture else 1.03
    assert doubt(sampled(scaled(case, 1.0, off)), case.law) < ALPHA


@pytest.mark.parametrize("root", [lambda y: y.abs().sqrt(), lambda y: (y + 0.05).clamp(min=0).sqrt()])
def test_another_boundary_is_seen(root):
    """Noise that goes on below zero, and noise that ends a little lower."""
    assert doubt(sampled(boundary(root)), boundary().law) < ALPHA


@pytest.mark.parametrize("make", [ornstein_uhlenbeck, decaying])
def test_drift_off_by_five_per_cent_is_seen(make):
    case = make()
    assert doubt(sampled(scaled(case, 1.05, 1.0)), case.law) < ALPHA


@pytest.mark.parametrize("make", [ornstein_uhlenbeck, geometric])
def test_noise_that_is_used_again_is_seen(make):
    case = make()
    assert doubt(sampled(case, Repeated(5)), case.law) < ALPHA


@pytest.mark.parametrize("make", [ornstein_uhlenbeck, double_well])
def test_a_window_left_too_early_is_seen(make):
    """By states that are left whatever they still change by."""
    case = make()
    early = sampled(case, window=case.steps, stop="increment", max_rounds=2, throw=False)
    assert np.isnan(early).all() or doubt(early, case.law) < ALPHA
