"""Integrators of SDEs: strong orders and limits against exact solutions, what they refuse, conversions, gradients."""

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from cases import assert_close, generator, linear_variance, randn, random_diffusion, random_drift

import picardsolve as ps
from picardsolve.integrators.base import Rows
from picardsolve.solve import posed

PATHS = 300
STEPS = [16, 32, 64]
A, B, RATE = 0.3, 0.6, 0.4  # two columns, and the drift


def errors_of(term: ps.SDE, integrator: ps.Integrator, start: float, exact, steps: list[int]) -> list[float]:
    """Mean distance at time 1 to ``exact`` of the path; all step sizes on the same paths, a sample a path."""
    path, motions = ps.BrownianPath(11), 2 if term.noise in ("commutative", "general") else 1
    w = path.increment(0.0, 1.0, (PATHS, motions), torch.float64)
    y0, found = torch.full((PATHS, 1), start, dtype=torch.float64), []
    for n in steps:
        how = {"integrator": integrator, "brownian": path, "save": "last", "batch_dims": 1}
        sol = ps.sequential(term, y0, ps.grids.uniform(0, 1, n), **how)
        found.append(float((sol.ys[-1] - exact(w)).abs().mean()))
    return found


def order(errors: list[float], steps: list[int]) -> float:
    return float(-np.polyfit(np.log2(steps), np.log2(errors), 1)[0])


def geometric(noise: str, interpretation: str):
    """``dY = c Y dt + (a Y dW_1 + b Y dW_2)``, of one motion ``b Y dW``, and its exact end."""
    columns = torch.tensor([A, B] if noise in ("commutative", "general") else [B], dtype=torch.float64)
    power = float((columns**2).sum()) / 2

    def diffusion(t, y):
        return y[..., None] * columns if len(columns) > 1 else B * y

    def exact(w):
        return torch.exp(RATE - (power if interpretation == "ito" else 0) + w @ columns)[:, None]

    return ps.SDE(lambda t, y: RATE * y, diffusion, noise, interpretation), 1.0, exact


def additive(noise: str, interpretation: str):
    """Rackauckas & Nie 2017, example 3: ``X = (X0 + b (t + a W)) / sqrt(1 + t)``."""
    a, b, start = 0.5, 0.7, 1.2
    term = ps.SDE(
        lambda t, y: b / torch.sqrt(1 + t) - y / (2 * (1 + t)),
        lambda t, y: (a * b / torch.sqrt(1 + t)).expand_as(y),
        "additive",
        interpretation,
    )
    return term, start, lambda w: (start + b * (1 + a * w)) / math.sqrt(2)


@lru_cache
def double_well(noise: str, interpretation: str):
    """``dY = (Y - Y^3) dt + 0.6 dW``: the end is no function of W's; it is taken from SRA1 on finer steps."""
    term = ps.SDE(lambda t, y: y - y**3, lambda t, y: 0.6 * torch.ones_like(y), noise, interpretation)
    y0 = torch.full((PATHS, 1), 0.4, dtype=torch.float64)
    how = {"integrator": ps.SRA1(), "brownian": ps.BrownianPath(11), "save": "last", "batch_dims": 1}
    end = ps.sequential(term, y0, ps.grids.uniform(0, 1, 256), **how).ys[-1]
    return term, 0.4, lambda w: end


def pendulum(noise: str, interpretation: str):
    """Rackauckas & Nie 2017, example 2, of another interpretation: ``X = atan(a W + tan X0)``, bounded noise."""
    a, start = 0.8, 0.3
    drift = (
        (lambda t, y: 0 * y)
        if interpretation == "stratonovich"
        else (lambda t, y: -(a**2) * torch.sin(y) * torch.cos(y) ** 3)
    )
    term = ps.SDE(drift, lambda t, y: a * torch.cos(y) ** 2, noise, interpretation)
    return term, start, lambda w: torch.atan(a * w + math.tan(start))


METHODS = {"euler": ps.EulerMaruyama(), "milstein": ps.Milstein(), "heun": ps.StochasticHeun()} | {
    "midpoint": ps.StochasticMidpoint(),
    "sra1": ps.SRA1(),
    "srid2": ps.SRID2(),
}
ORDERS = [
    *(("euler", geometric, noise, "ito") for noise in ("scalar", "general")),
    *(
        ("milstein", geometric, noise, kind)
        for noise in ("diagonal", "commutative")
        for kind in ("ito", "stratonovich")
    ),
    *(("milstein", pendulum, "scalar", kind) for kind in ("ito", "stratonovich")),
    *(("heun", geometric, "diagonal", kind) for kind in ("ito", "stratonovich")),
    *((method, pendulum, "scalar", "stratonovich") for method in ("heun", "midpoint")),
    ("euler", additive, "additive", "stratonovich"),
    *((method, double_well, "additive", "ito") for method in ("heun", "sra1")),
    *(("srid2", problem, "diagonal", "ito") for problem in (geometric, pendulum)),
]


@pytest.mark.parametrize(("method", "problem", "noise", "kind"), ORDERS)
def test_strong_order_and_limit(method, problem, noise, kind):
    """Order by regression to 0.15; and the limit: within a fiftieth (order 1/2: a tenth), the other one is 0.2 away."""
    integrator, (term, start, exact) = METHODS[method], problem(noise, kind)
    assert term.noise == noise
    errors = errors_of(term, integrator, start, exact, STEPS)
    expected = integrator.strong_order[noise]
    assert abs(order(errors, STEPS) - expected) <= 0.15
    assert errors[-1] < (0.1 if expected == 0.5 else 0.02)


def test_the_interpretations_lie_apart():
    """Without this the limits above would say nothing."""
    ito, _, exact = geometric("diagonal", "ito")
    other = errors_of(replace(ito, interpretation="stratonovich"), ps.Milstein(), 1.0, exact, [64])[0]
    assert other > 0.2


def test_without_the_area_the_order_is_one(monkeypatch):
    """So the regression has the power to see it."""
    term, start, exact = double_well("additive", "ito")
    areas = ps.BrownianPath.areas
    monkeypatch.setattr(ps.BrownianPath, "areas", lambda *given: (areas(*given)[0], 0 * areas(*given)[1]))
    assert abs(order(errors_of(term, ps.SRA1(), start, exact, STEPS), STEPS) - 1.0) <= 0.15


@pytest.mark.parametrize("method", ["heun", "sra1"])
def test_the_limit_of_additive_noise(method):
    """Where both are of order two: the end is a function of W's."""
    term, start, exact = additive("additive", "ito")
    assert errors_of(term, METHODS[method], start, exact, [32])[0] < 1e-4


@pytest.mark.parametrize(("integrator", "expected"), [(ps.EulerMaruyama(), 1), (ps.SRA1(), 2)])
def test_weak_order_of_the_ornstein_uhlenbeck_variance(integrator, expected):
    """By the exact variance of the chain, whose steps are linear in state, W and H."""
    rate, volatility, steps = 1.5, 0.7, [8, 16, 32, 64]
    term = ps.SDE(lambda t, y: -rate * y, lambda t, y: volatility * torch.ones_like(y), "additive")
    exact = volatility**2 * (1 - math.exp(-2 * rate)) / (2 * rate)
    errors = [abs(linear_variance(term, ps.grids.uniform(0, 1, n), integrator, 0.0) - exact) for n in steps]
    assert integrator.weak_order["additive"] == expected
    assert abs(order(errors, steps) - expected) <= 0.15


# ---- conversion


@pytest.mark.parametrize("noise", ["diagonal", "scalar", "commutative", "general"])
@pytest.mark.parametrize("vectorized", [True, False])
def test_conversion_there_and_back(noise, vectorized):
    """The correction against differences of the diffusion along its own columns; and back, the drift as it was."""
    drift, diffusion = (
        f("mlp" if f is random_drift else noise, 3, (3,), torch.float64) for f in (random_drift, random_diffusion)
    )
    term = ps.SDE(drift, diffusion, noise, "stratonovich", vectorized)
    y = randn(generator(1), 3) if not vectorized else randn(generator(1), 5, 3)
    t = torch.tensor(0.4, dtype=torch.float64) if not vectorized else torch.full((5, 1), 0.4, dtype=torch.float64)
    g = diffusion(t, y)
    columns = (
        [(g, lambda g: g)]
        if noise in ("diagonal", "scalar")
        else [(g[..., j], lambda g, j=j: g[..., j]) for j in range(2)]
    )
    small = 1e-5
    expected = drift(t, y)
    for along, column in columns:
        ahead, behind = (column(diffusion(t, y + s * small * along)) for s in (1, -1))
        expected = expected + (ahead - behind) / (4 * small)
    assert_close(term.to_ito().drift(t, y), expected, 1e-9)
    assert_close(term.to_ito().to_stratonovich().drift(t, y), drift(t, y), 1e-14)
    assert term.to_stratonovich() is term
    assert replace(term, noise="additive").to_ito().drift is drift


def test_conversion_of_structured_states():
    term = ps.SDE(
        lambda t, y: y, lambda t, y: {"a": torch.sin(y["a"]), "b": y["b"] * t[..., None]}, "diagonal", "stratonovich"
    )
    y = {"a": randn(generator(0), 4, 2), "b": randn(generator(1), 4, 2, 1)}
    drift = term.to_ito().drift(torch.full((4, 1), 2.0), y)
    torch.testing.assert_close(drift["a"], y["a"] + torch.sin(y["a"]) * torch.cos(y["a"]) / 2)
    torch.testing.assert_close(drift["b"], 3 * y["b"])


# ---- what is refused

MIXED = ps.SDE(torch.sin, lambda t, y: y.roll(1, -1), "diagonal")
PLAIN = ps.SDE(lambda t, y: -y, lambda t, y: y, "diagonal", "stratonovich")
ROTATED = ps.SDE(lambda t, y: -y, lambda t, y: torch.stack([y, torch.sin(y).roll(1, -1)], -1), "commutative")
REFUSED = {
    "Euler of Stratonovich": (PLAIN, ps.EulerMaruyama(), TypeError, r"integrator: EulerMaruyama .*to_ito\(\)"),
    "SRID2 of Stratonovich": (PLAIN, ps.SRID2(), TypeError, r"integrator: SRID2 .*to_ito\(\)"),
    "Milstein of general noise": (replace(ROTATED, noise="general"), ps.Milstein(), TypeError, "noise='commutative'"),
    "SRA1 of diagonal noise": (replace(PLAIN, interpretation="ito"), ps.SRA1(), TypeError, "SRA1 takes additive noise"),
    "an ODE": (ps.ODE(torch.sin), ps.StochasticHeun(), TypeError, "StochasticHeun takes an SDE, got ODE"),
    "noise that is not diagonal": (MIXED, ps.Milstein(), ValueError, "diffusion: .*noise='general'"),
    "converted noise that is not diagonal": (MIXED, ps.StochasticHeun(), ValueError, "diffusion: .*noise='general'"),
    "noise that does not commute": (ROTATED, ps.Milstein(), ValueError, "noise: .*commute"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_before_any_work(case):
    term, integrator, error, message = REFUSED[case]
    calls = []
    drift = lambda t, y: calls.append(t) or term.drift(t, y)  # noqa: E731
    with pytest.raises(error, match=message):
        ps.solve(replace(term, drift=drift), torch.ones(3), [0.0, 0.1], integrator=integrator)
    assert not calls


def test_analysis_of_a_method_with_stages():
    term = ps.SDE(lambda t, y: -y, lambda t, y: 0.1 * y, "diagonal", "stratonovich")
    found = ps.analyze(
        term, torch.ones(4, dtype=torch.float64), ps.grids.uniform(0, 1, 100), integrator=ps.StochasticHeun()
    )
    assert found.table[-1].rounds % 2 == 0


# ---- gradients, given the path

CHAINS = [
    (ps.EulerMaruyama(), "diagonal", "ito"),
    (ps.Milstein(), "scalar", "stratonovich"),
    (ps.StochasticHeun(), "general", "ito"),
    (ps.SRA1(), "additive", "ito"),
    (ps.SRID2(), "diagonal", "ito"),
    (ps.RK4(), None, None),
]


@pytest.mark.parametrize(("integrator", "noise", "kind"), CHAINS)
@pytest.mark.parametrize("vectorized", [True, False])
def test_gradients_are_those_of_differences(integrator, noise, kind, vectorized):
    """By the start, by an argument of each sample, and by what drift and diffusion close over."""
    weights = (0.3 * randn(generator(0), 2, 2)).requires_grad_()
    volatility = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    y0, pace = (
        randn(generator(1), 2, 2).requires_grad_(),
        torch.tensor([0.5, 1.3], dtype=torch.float64).requires_grad_(),
    )

    def drift(t, y, pace):
        return torch.tanh(y @ weights) * (pace[:, None] if vectorized else pace)

    def diffusion(t, y, pace):
        if noise == "additive":
            return volatility * torch.cos(t) * torch.ones_like(y)
        g = volatility * torch.cos(y)
        return torch.stack([g, torch.sin(y @ weights)], -1) if noise == "general" else g

    def ends(y0, pace, *closed_over):
        term = ps.SDE(drift, diffusion, noise, kind, vectorized) if noise else ps.ODE(drift, vectorized)
        how = {"integrator": integrator, "args": (pace,), "batch_dims": 1, "window": 4}
        return ps.solve(term, y0, ps.grids.uniform(0, 1, 6), tol=0, **how).ys[::3]

    inputs = (y0, pace, weights, *([volatility] if noise else []))
    assert torch.autograd.gradcheck(ends, inputs, eps=1e-5, atol=1e-7, rtol=1e-5, fast_mode=True)


def test_gradients_of_stiff_chains_halve_the_windows():
    """Steps that contract by 0.9: sweeps of all 200 would overflow; against the closed form."""
    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(1.9, dtype=torch.float64, requires_grad=True)
    ts = torch.arange(201, dtype=torch.float64)
    sol = ps.solve(ps.ODE(lambda t, y: -rate * y), y0, ts, integrator=ps.Euler(), tol=0, window=8)
    got = torch.autograd.grad(sol.ys[100].sum(), [y0, rate])
    torch.testing.assert_close(got[0], torch.full_like(y0, (-0.9) ** 100))
    torch.testing.assert_close(got[1], -100 * (1 - rate.detach()) ** 99 * 3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"save": "last"}, "save='all'"),
        ({"ts": torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)}, "with respect to ts"),
        ({"integrator": ps.BackwardEuler()}, "implicit"),
    ],
    ids=["last state only", "times", "implicit"],
)
def test_gradients_that_there_are_not(change, message):
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    given = {"ts": [0.0, 0.5, 1.0], "integrator": ps.Heun(), **change}
    with pytest.raises(RuntimeError, match=message):
        ps.solve(ps.ODE(lambda t, y: -y), y0, given.pop("ts"), **given).ys.sum().backward()


def test_second_derivatives_are_refused():
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    ys = ps.solve(ps.ODE(lambda t, y: torch.sin(y)), y0, [0.0, 0.5, 1.0], integrator=ps.Heun()).ys
    (once,) = torch.autograd.grad(ys.sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        once.sum().backward()


@pytest.mark.parametrize("noise", ["additive", "diagonal", "scalar", "general"])
def test_the_noise_of_a_step_is_as_large_as_said(noise):
    """What `stop="increment"` measures changes by: the root mean square of ``g`` over elements, times the root of h."""
    kinds = {
        "additive": lambda t, y: torch.full_like(y, 0.7),
        "diagonal": lambda t, y: 0.3 + y.sin(),
        "scalar": lambda t, y: 0.3 + y.sin(),
        "general": lambda t, y: torch.stack([y.cos(), 0.2 * y], -1),
    }
    term = ps.SDE(lambda t, y: -y, kinds[noise], noise)
    y0, ts = randn(generator(1), 3, 4), torch.tensor([0.0, 0.3, 0.35, 1.0], dtype=torch.float64)
    problem, y = posed(term, y0, ts, ps.EulerMaruyama(), None, (), None, 1, None)
    chain = ps.EulerMaruyama().chain(problem)
    n, samples = np.array([[0], [1], [2]]), np.arange(3)
    step, sample = (index.ravel() for index in np.broadcast_arrays(n, samples))
    states = y.expand(3, 3, 4)
    rows = Rows(step, sample, states.flatten(0, 1), None, None, None)
    outputs = chain.evaluate(rows).reshape(3, 3, -1)
    drawn = chain.increments(step, sample).reshape(3, 3, -1)
    power = term.diffusion(ts[0], y).square()
    power = (power.sum(-1) if noise == "general" else power).mean(-1)
    expected = power.sqrt() * ts.diff()[:, None].sqrt()
    torch.testing.assert_close(chain.steps(n, states, outputs, drawn).noise_scale, expected)
