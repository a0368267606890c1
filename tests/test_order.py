"""Orders of convergence, by regression, against closed forms. Solved with wide windows, as users do."""

import math

import numpy as np
import pytest
import torch

import picardsolve as ps


def order(errors: list[float], steps: list[int]) -> float:
    return float(-np.polyfit(np.log2(steps), np.log2(errors), 1)[0])


# ---- ODEs

ODES = {
    "logistic": (lambda t, y: y / 4 * (1 - y / 20), lambda t: 20 / (1 + 19 * torch.exp(-t / 4)), (0.0, 10.0)),
    "nonautonomous": (lambda t, y: y * torch.cos(t), lambda t: torch.exp(torch.sin(t)), (0.0, 4.0)),
    "backwards": (lambda t, y: y * torch.cos(t), lambda t: torch.exp(torch.sin(t)), (2.0, -1.0)),
    "oscillator": (
        lambda t, y: torch.stack([y[..., 1], -y[..., 0]], -1),
        lambda t: torch.stack([torch.sin(t), torch.cos(t)], -1),
        (0.0, 3.0),
    ),
}
METHODS = {
    "Euler": (ps.Euler(), [256, 512, 1024]),
    "Heun": (ps.Heun(), [64, 128, 256, 512]),
    "midpoint": (ps.Midpoint(), [64, 128, 256, 512]),
    "RK4": (ps.RK4(), [16, 32, 64, 128]),
    "RK4 3/8": (ps.RK4("3/8"), [16, 32, 64, 128]),
}


@pytest.mark.parametrize("problem", ODES)
@pytest.mark.parametrize("method", METHODS)
def test_order_on_odes(method, problem):
    drift, exact, (start, end) = ODES[problem]
    integrator, steps = METHODS[method]
    y0 = torch.atleast_1d(exact(torch.tensor(start, dtype=torch.float64)))
    errors = []
    for n in steps:
        ts = ps.grids.uniform(start, end, n)
        ys = ps.solve(ps.ODE(drift), y0, ts, integrator=integrator, window=n, rtol=0, atol=1e-14).ys
        expected = torch.stack([torch.atleast_1d(exact(t)) for t in ts])
        errors.append(float((ys - expected).abs().max()))
    assert errors[-1] > 1e-12  # above rounding, or the slope means nothing
    assert abs(order(errors, steps) - integrator.order) <= 0.2


# ---- samplers on the flow of a Gaussian of variance s^2: x(t) = x(T) sqrt(v(t) / v(T)), v = (alpha s)^2 + sigma^2

DEVIATION = 0.8
FLOWS = {
    "EDM": (ps.schedules.EDM(), math.exp(7.0), math.exp(-7.0)),
    "VP": (ps.schedules.VP(lambda t: torch.exp(-t)), 14.0, 1e-6),
    "Flow": (ps.schedules.Flow(), 0.999, 0.001),
}


def variance(schedule: ps.schedules.Schedule, t: torch.Tensor) -> torch.Tensor:
    return (schedule.alpha(t) * DEVIATION) ** 2 + schedule.sigma(t) ** 2


def gaussian(schedule: ps.schedules.Schedule) -> ps.Denoiser:
    model = lambda x, t: (schedule.alpha(t) * DEVIATION**2 / variance(schedule, t))[:, None] * x  # noqa: E731
    return ps.Denoiser(model, schedule, "sample")


SAMPLERS = {
    "DDIM": (ps.DDIM(), 1),
    "DPMSolver 1": (ps.DPMSolver(1), 1),
    "DPMSolver 2": (ps.DPMSolver(2), 2),
    "DPMSolver 3": (ps.DPMSolver(3), 3),
}


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_order_on_the_gaussian_flow(sampler, flow):
    """Equal steps in log-SNR from -7 to 7.

    The clean sample predicted moves like exp(-|log-SNR|) at the ends, so that the first and last steps, which are of
    lower order, add exp(-14) h^2 at most: nothing beside the h^3 of steps of 0.05 to 0.2.
    """
    schedule, start, end = FLOWS[flow]
    integrator, expected = SAMPLERS[sampler]
    assert integrator.order == expected

    errors, steps = [], [64, 96, 144, 216]
    for n in steps:
        ts = ps.grids.log_snr(schedule, start, end, n)
        exact = variance(schedule, ts).sqrt()
        how = {"iteration": ps.Exponential(), "window": n, "rtol": 0, "atol": 1e-13}
        ys = ps.solve(gaussian(schedule), exact[:1, None], ts, integrator=integrator, **how).ys
        errors.append(float((ys[:, 0, 0] / exact - 1).abs().max()))  # along the whole path: at its end, some cancel
    assert errors[-1] > 1e-11
    assert abs(order(errors, steps) - expected) <= 0.2


def test_samplers_of_first_order_are_one_family():
    """DPM-Solver++ of order 1 is DDIM, its stochastic variant is ancestral sampling."""
    for schedule, start, end in FLOWS.values():
        ts, x = ps.grids.log_snr(schedule, start, end, 30), torch.ones(2, 3, dtype=torch.float64)
        path = ps.BrownianPath(0, 2.0**-30)  # equal steps in log-SNR are short ones in time

        for pair in ((ps.DPMSolver(1), ps.DDIM()), (ps.DPMSolver(1, sde=True), ps.DDPM())):
            one, other = (
                ps.solve(gaussian(schedule), x, ts, integrator=integrator, brownian=path, tol=0).ys
                for integrator in pair
            )
            assert torch.allclose(one, other, rtol=1e-9, atol=0)


def sampled_variance(schedule: ps.schedules.Schedule, ts: torch.Tensor, integrator: ps.Integrator) -> float:
    """The variance a sampler ends with, from the published steps: its steps are linear where the data is Gaussian.

    ``x' = p x + q (D + w (D - D_before)) + s z`` with D = d x. DDIM and DDPM: Song et al. 2021, eq. 12. The others:
    Lu et al. 2022b, of order 1 in the first and the last step; for equal steps w = 1/2 between them.
    """
    alpha, sigma = schedule.alpha(ts), schedule.sigma(ts)
    d, shrink = alpha * DEVIATION**2 / variance(schedule, ts), torch.exp(-schedule.log_snr(ts).diff())
    added = sigma[1:] * (1 - shrink**2).sqrt()
    if isinstance(integrator, ps.DPMSolver):
        s, p, q = added, sigma[1:] / sigma[:-1] * shrink, alpha[1:] * (1 - shrink**2)
    else:
        s = added * (integrator.eta if isinstance(integrator, ps.DDIM) else 1)
        p = (sigma[1:] ** 2 - s**2).sqrt() / sigma[:-1]
        q = alpha[1:] - p * alpha[:-1]
    covariance = torch.zeros(2, 2, dtype=torch.float64)  # of this state and the one before
    covariance[0, 0] = variance(schedule, ts[0])
    for n in range(len(p)):
        w = 0.5 if integrator.order == 2 and 0 < n < len(p) - 1 else 0.0
        step = torch.tensor([[p[n] + q[n] * (1 + w) * d[n], -q[n] * w * d[n - 1]], [1, 0]], dtype=torch.float64)
        covariance = step @ covariance @ step.T
        covariance[0, 0] += s[n] ** 2
    return float(covariance[0, 0])


@pytest.mark.parametrize("flow", ["EDM", "Flow"])
@pytest.mark.parametrize(
    "integrator", [ps.DDIM(0.5), ps.DDPM(), ps.DPMSolver(1, sde=True), ps.DPMSolver(2, sde=True)], ids=str
)
def test_stochastic_samplers_have_the_variance_of_their_formula(integrator, flow):
    """From the law at log-SNR -3 to the law at 3: 5 standard errors, sqrt(2 / 10000) each, and nothing for a bias.

    The formula's own limit is the law of the data: 2000 steps come within 1%.
    """
    schedule = FLOWS[flow][0]
    start, end = (math.exp(3), math.exp(-3)) if flow == "EDM" else (1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3)))
    fine = ps.grids.log_snr(schedule, start, end, 2000)
    assert abs(sampled_variance(schedule, fine, integrator) / float(variance(schedule, fine[-1])) - 1) < 0.01
    ts = ps.grids.log_snr(schedule, start, end, 60)
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(10, 1000, generator=gen, dtype=torch.float64) * variance(schedule, ts[0]).sqrt()
    how = {"window": 30, "tol": 1e-3, "brownian": ps.BrownianPath(3), "save": "last"}
    ys = ps.solve(gaussian(schedule), x, ts, integrator=integrator, **how).ys
    ratio = float(ys.var(correction=0)) / sampled_variance(schedule, ts, integrator)
    assert abs(ratio - 1) < 5 * math.sqrt(2 / 10_000)


# ---- SDEs: strong order, on the paths of `BrownianPath`

PATHS = 4000
DRIFT, VOLATILITY = 0.5, 0.8


def strong_errors(term: ps.SDE, start: float, exact, steps: list[int]) -> list[float]:
    """Mean distance at time 1 to ``exact`` of the path's value there; all step sizes on the same paths."""
    path = ps.BrownianPath(11)
    w = path.increment(0.0, 1.0, (1, PATHS), torch.float64)[0]
    y0, errors = torch.full((PATHS,), start, dtype=torch.float64), []
    for n in steps:
        ts = ps.grids.uniform(0, 1, n)
        sol = ps.solve(
            term, y0, ts, integrator=ps.EulerMaruyama(), brownian=path, window=64, rtol=1e-7, atol=1e-9, save="last"
        )
        errors.append(float((sol.ys[-1] - exact(w)).abs().mean()))
    return errors


def geometric(w):
    return torch.exp(DRIFT - VOLATILITY**2 / 2 + VOLATILITY * w)


GEOMETRIC = ps.SDE(lambda t, y: DRIFT * y, lambda t, y: VOLATILITY * y, "diagonal")
STEPS = [16, 32, 64, 128, 256]


def test_strong_order_one_half_of_multiplicative_noise():
    errors = strong_errors(GEOMETRIC, 1.0, geometric, STEPS)
    assert abs(order(errors, STEPS) - 0.5) <= 0.15


def test_the_limit_is_the_ito_solution():
    """Finer steps come nearer to Ito's solution and stay where they are from Stratonovich's, a known distance away."""
    ito = strong_errors(GEOMETRIC, 1.0, geometric, [512])[0]
    other = strong_errors(GEOMETRIC, 1.0, lambda w: geometric(w) * math.exp(VOLATILITY**2 / 2), [512])[0]
    apart = (math.exp(VOLATILITY**2 / 2) - 1) * math.exp(DRIFT)  # the mean of their difference
    # leading error of Euler-Maruyama: 1/2 b b' (dW^2 - h) in each step, of variance (V^4 y^2 h^2 / 2), summed
    scale = VOLATILITY**2 * math.sqrt(1 / 2 / 512) * math.exp(DRIFT + VOLATILITY**2 / 2)
    assert ito < scale
    assert abs(other - apart) < 0.1 * apart


def test_strong_order_one_of_additive_noise():
    """Rackauckas & Nie 2017, example 3: X = (X0 + b (t + a W)) / sqrt(1 + t)."""
    a, b, start = 0.5, 0.7, 1.2
    term = ps.SDE(
        lambda t, y: b / torch.sqrt(1 + t) - y / (2 * (1 + t)),
        lambda t, y: (a * b / torch.sqrt(1 + t)).expand_as(y),
        "additive",
    )
    errors = strong_errors(term, start, lambda w: (start + b * (1 + a * w)) / math.sqrt(2), STEPS)
    assert abs(order(errors, STEPS) - 1.0) <= 0.15
    assert errors[-1] < 1e-3 * start
