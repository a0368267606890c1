"""Secants: exact for Jacobians that are a multiple of the identity, of low rank beside it, or what was expected."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import (
    PREDICTIONS,
    SAMPLERS,
    Mixture,
    assert_close,
    generator,
    grids,
    mixture_denoiser,
    noise_schedules,
    ode_cases,
    randn,
    seeds,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import picardsolve as ps
from picardsolve.fixed_point.guesses import guess_for
from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.slopes import HIGHEST, LOWEST
from picardsolve.fixed_point.stopping import Increment
from picardsolve.fixed_point.sweep import Swept
from picardsolve.fixed_point.window import Settings, Window
from picardsolve.integrators.base import Rows
from picardsolve.problem.tolerances import Tolerance
from picardsolve.solve import posed

SECANTS = [ps.Secant(), ps.MultiSecant(), ps.MultiSecant(memory=1, neighbours=0)]
secants = st.sampled_from(SECANTS)
FROM_SAMPLES = [s for s in SAMPLERS if isinstance(s, ps.DDIM | ps.DDPM | ps.DPMSolver)]  # of predicted samples
one_step = st.sampled_from([sampler for sampler in FROM_SAMPLES if getattr(sampler, "order", 1) == 1])


def rows_of(step: np.ndarray, sample: np.ndarray, state: torch.Tensor) -> Rows:
    return Rows(step.ravel(), sample.ravel(), state.reshape(-1, state.shape[-1]))


# ---- problems on which a secant is exact


@given(st.data())
def test_two_updates_solve_a_step_that_scales(data):
    """y' = rate(t) y + forcing(t): an update each to see the slopes and to use them, and a round that changes nothing.

    Steps differ in their slope, of either sign, unless they share what they have seen.
    """
    ts, seed, size = data.draw(grids(min_steps=8)), data.draw(seeds), data.draw(st.integers(1, 5))
    secant, gen = data.draw(secants), generator(seed)
    slope = LOWEST + (HIGHEST - LOWEST) * torch.rand(len(ts) - 1, generator=gen, dtype=torch.float64)
    slope = slope[:1] if getattr(secant, "neighbours", 0) else slope
    rate = (slope - 1) / ts.diff()
    forcing = randn(generator(seed + 1), len(rate), size)

    def f(t, y):
        n = torch.argmin((t - ts[:-1]).abs(), -1)
        return rate[n, None] * y + forcing[n]

    y0, guess = randn(generator(seed + 2), size), data.draw(st.sampled_from([ps.Copy(), ps.FrozenOutput()]))
    how = {"integrator": ps.Euler(), "guess": guess, "window": 32, "rtol": 1e-8, "atol": 1e-8, "stop": "increment"}
    sol = ps.solve(ps.ODE(f), y0, ts, iteration=secant, **how)
    ref = ps.sequential(ps.ODE(f), y0, ts, integrator=ps.Euler())
    assert_close(sol.ys, ref.ys, 1e-7 * (1 + float(ref.ys.abs().max())))
    exact_first_step = int(isinstance(guess, ps.FrozenOutput))
    assert sol.stats.rounds <= exact_first_step + 3


@given(st.data())
def test_directions_that_were_seen_are_followed(data):
    """y' = a y + u v'y with v'u != 0: changes soon lie in the plane of the start and u, which two directions span."""
    seed, size, steps = data.draw(seeds), data.draw(st.integers(3, 8)), data.draw(st.integers(16, 24))
    u, v = randn(generator(seed), 2, size)
    u, v = u / u.norm(), v / v.norm()
    term = ps.ODE(lambda t, y: -y + 3 * (y @ v)[..., None] * u)
    y0, ts = randn(generator(seed + 1), size), torch.linspace(0, 2, steps + 1, dtype=torch.float64)
    how = {"integrator": ps.Euler(), "window": 32, "rtol": 1e-8, "atol": 1e-8, "stop": "increment"}
    many = ps.solve(term, y0, ts, iteration=ps.MultiSecant(memory=3, neighbours=2, ridge=1e-6), **how)
    one = ps.solve(term, y0, ts, iteration=ps.Secant(), **how)
    ref = ps.sequential(term, y0, ts, integrator=ps.Euler())
    assert_close(many.ys, ref.ys, 1e-6 * (1 + float(ref.ys.abs().max())))
    assert many.stats.rounds <= 9
    assert many.stats.rounds <= max(one.stats.rounds, 8)


@given(st.data())
def test_what_a_denoiser_expects_is_the_step_of_normal_data(data):
    """Of data N(0, sigma_data^2) the predicted sample is a multiple of x, and so is a step but for its noise."""
    steps, seed = data.draw(st.integers(1, 12)), data.draw(seeds)
    schedules = noise_schedules(seed, steps, data.draw(st.booleans()))
    name = data.draw(st.sampled_from(sorted(schedules)))
    schedule, ts = schedules[name]
    prediction = data.draw(st.sampled_from(PREDICTIONS[1:] if name == "Flow from pure noise" else PREDICTIONS))
    deviation, integrator = data.draw(st.sampled_from([0.3, 0.5, 1.0])), data.draw(st.sampled_from(FROM_SAMPLES))
    normal = Mixture(torch.zeros(1, 3, dtype=torch.float64), deviation)
    term = replace(mixture_denoiser(normal, schedule, prediction), sigma_data=deviation)
    y0 = randn(generator(seed), 2, 3) * float(schedule.sigma(ts[0]))
    problem, x = posed(term, y0, ts, integrator, ps.BrownianPath(seed=seed % 1000), (), None, None, None)
    chain = integrator.chain(problem)
    n = torch.arange(steps)[:, None].numpy()
    states = randn(generator(seed + 1), steps, *x.shape)
    rows, sample = n.repeat(len(x), 1), torch.arange(len(x)).repeat(steps, 1).numpy()
    # of a multistep method: how the step scales a change that the samples predicted before share
    predicted = chain.evaluate(rows_of(rows, sample, states)).reshape(states.shape)
    at_step = predicted[:, None].expand(steps, chain.memory + 1, *x.shape)
    noise = None
    if chain.noise_size:
        noise = chain.increments(rows.ravel(), sample.ravel()).reshape(steps, len(x), -1)
    for j in range(steps):
        image = chain.steps(n[j : j + 1], states[j : j + 1], at_step[j], None)
        assert_close(image.expected_slope * states[j], image.images()[0][None], 1e-9)
    ahead, start = chain.predict(n, x, None if noise is None else noise.clone()), x
    if chain.memory == 0:
        for j in range(steps):
            out = chain.evaluate(rows_of(rows[j], sample[j], start))[None]
            start = chain.steps(n[j : j + 1], start[None], out, None if noise is None else noise[j : j + 1]).images()[0]
            assert_close(ahead[j], start, 1e-9)


@settings(max_examples=15)
@given(st.data())
def test_a_denoiser_of_normal_data_needs_one_round(data):
    """Foreseen, the first window is the solution; from any other guess one sweep with the expected slopes leads there.

    Of one-step samplers; with steps so few and long that Picard takes several rounds.
    """
    steps, seed = data.draw(st.integers(3, 12)), data.draw(seeds)
    schedules = noise_schedules(seed, steps, data.draw(st.booleans()))
    name = data.draw(st.sampled_from(sorted(schedules)))
    schedule, ts = schedules[name]
    prediction = data.draw(st.sampled_from(PREDICTIONS[1:] if name == "Flow from pure noise" else PREDICTIONS))
    deviation, integrator = data.draw(st.sampled_from([0.3, 0.5, 0.8])), data.draw(one_step)
    normal = Mixture(torch.zeros(1, 3, dtype=torch.float64), deviation)
    term = replace(mixture_denoiser(normal, schedule, prediction), sigma_data=deviation)
    y0 = randn(generator(seed), 2, 3) * float(schedule.sigma(ts[0]))
    brownian = ps.BrownianPath(seed=seed % 1000)
    ref = ps.sequential(term, y0, ts, integrator=integrator, brownian=brownian)
    how = {
        "integrator": integrator,
        "brownian": brownian,
        "window": 32,
        "rtol": 1e-8,
        "atol": 1e-8,
        "stop": "increment",
    }
    for guess, rounds in ((None, 1), (ps.Copy(), 2)):
        for iteration in SECANTS:
            sol = ps.solve(term, y0, ts, guess=guess, iteration=iteration, **how)
            assert_close(sol.ys, ref.ys, 1e-8 * (1 + float(ref.ys.abs().max())))
            assert sol.stats.rounds <= rounds
    wrong = replace(term, sigma_data=10 * deviation)  # changes no answer, but is no longer what happens
    sol = ps.solve(wrong, y0, ts, **how)
    assert_close(sol.ys, ref.ys, 1e-6 * (1 + float(ref.ys.abs().max())))
    assert sol.stats.rounds > 1


# ---- what is remembered


class Watched(Iteration):
    """A secant that writes down, for every round, the states, images and slopes of its sweep."""

    def __init__(self, inner: Iteration):
        self.inner, self.seen = inner, []

    def sweep(self, steps, x, scratch, memory) -> Swept:
        images = steps.images().clone()
        after = self.inner.sweep(steps, x, scratch, memory)
        assert after.slope is not None
        self.seen.append((x[:-1].clone(), images, after.slope.clone()))
        return after


@pytest.mark.parametrize("secant", SECANTS)
@settings(max_examples=15)
@given(data=st.data())
def test_memory_moves_along_with_the_steps(secant, data):
    """Slopes are those of a plain dictionary by step and sample, whatever the windows did meanwhile.

    Samples differ in pace, so that their windows stand apart and end at different rounds; growing ones diverge, which
    forgets the states ahead.
    """
    gen, steps, window = generator(data.draw(seeds)), data.draw(st.integers(20, 60)), data.draw(st.integers(2, 16))
    pace = torch.tensor(data.draw(st.lists(st.sampled_from([0.5, 2.0, 8.0, 30.0]), min_size=1, max_size=3)))
    pace = pace.double()
    term = ps.ODE(lambda t, y, pace: pace[:, None] * torch.sin(3 * y + t) * y)
    y0, ts = randn(gen, len(pace), 4), torch.linspace(0, 2, steps + 1, dtype=torch.float64)
    problem, x = posed(term, y0, ts, ps.Euler(), None, (pace,), None, 1, None)
    chain, watched = ps.Euler().chain(problem), Watched(secant)
    stopping = Increment(Tolerance(atol=data.draw(st.sampled_from([1e-2, 1e-6]))))
    run = Window(chain, x, Settings(window, watched, guess_for(None, problem, chain), stopping))
    known: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, float]] = {}
    while not run.done:
        rows = run.ask()
        run.tell(chain.evaluate(rows))
        states, images, slopes = watched.seen[-1]
        record = run.history[-1]
        for sample in range(len(pace)):
            begin, width = int(record.begin[sample]), int(record.width[sample])
            for j in range(width):
                at, slope = (begin + j, sample), 1.0
                if at in known:
                    before, image_before, slope = known[at]
                    dx, df = states[j, sample] - before, images[j, sample] - image_before
                    if dx.abs().max() > 1e-13 * states[j, sample].abs().max():
                        slope = float((dx @ df) / (dx @ dx))
                    slope = min(max(slope, LOWEST), HIGHEST)
                assert math.isclose(float(slopes[j, sample]), slope, rel_tol=1e-6, abs_tol=1e-6), at
                known[at] = states[j, sample], images[j, sample], float(slopes[j, sample])
            kept = int(run.acceptance._seen[sample])
            for at in [at for at in known if at[1] == sample]:
                if not 0 <= at[0] - int(run.begin[sample]) < kept:
                    del known[at]


def swept(secant: Iteration, factor: torch.Tensor, states: torch.Tensor) -> list[Swept]:
    """Sweeps of the steps ``y -> factor y``, ``(W,)``, at one set of states ``(W + 1, B, D)`` after the other."""

    class Linear:
        expected_slope = elementwise = None

        def __init__(self, x):
            self.x = x

        def images(self):
            return factor[:, None, None] * self.x

    sweeps, memory = [], ()
    for x in states:
        sweeps.append(secant.sweep(Linear(x[:-1]), x, torch.empty_like(x[1:]), memory))
        memory = sweeps[-1].memory
    return sweeps


def sweep_twice(secant: Iteration, factor: torch.Tensor, dx: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Slopes, ``(W,)``, of steps that were seen at y and at y + dx, both ``(W, 1, D)``."""
    slope = swept(secant, factor, torch.stack([torch.cat([x, x[-1:]]) for x in (y, y + dx)]))[-1].slope
    assert slope is not None
    return slope[:, 0]


@pytest.mark.parametrize("secant", SECANTS)
@given(data=st.data())
def test_slopes_are_clipped_and_rounding_is_no_slope(secant, data):
    gen, width = generator(data.draw(seeds)), data.draw(st.integers(1, 6))
    factor, y = 3 * randn(gen, width), randn(gen, width, 1, 4)
    dx = randn(gen, width, 1, 4)
    assert_close(sweep_twice(secant, factor, dx, y), factor.clamp(LOWEST, HIGHEST), 1e-9)
    for scale in (2.0**-500, 2.0**500):  # squares would leave the numbers
        assert_close(sweep_twice(secant, factor, scale * dx, 0 * y), factor.clamp(LOWEST, HIGHEST), 1e-9)
    unchanged = torch.ones(width, dtype=torch.float64)
    assert torch.equal(sweep_twice(secant, factor, 0 * dx, y), unchanged)
    assert torch.equal(sweep_twice(secant, factor, 1e-15 * y, y), unchanged)


@pytest.mark.parametrize("secant", SECANTS)
@given(data=st.data())
def test_a_sample_that_is_not_finite_stays_alone(secant, data):
    """Whatever a sample's numbers are, and whenever they became so, the sweeps give the others the same bits."""
    gen, width = generator(data.draw(seeds)), data.draw(st.integers(2, 8))
    factor, states = randn(gen, width), randn(gen, 3, width + 1, 3, 4)
    sick, since = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    healthy = [sample for sample in range(3) if sample != sick]
    ill = states.clone()
    ill[since:, data.draw(st.integers(0, width)), sick] = data.draw(st.sampled_from([torch.nan, torch.inf]))
    for one, other in zip(swept(secant, factor, states), swept(secant, factor, ill), strict=True):
        assert one.slope is not None
        assert other.slope is not None
        assert torch.equal(one.y[:, healthy], other.y[:, healthy])
        assert torch.equal(one.change[:, healthy], other.change[:, healthy])
        assert torch.equal(one.slope[:, healthy], other.slope[:, healthy])
        assert other.slope.isfinite().all()


@pytest.mark.parametrize("secant", SECANTS)
@given(data=st.data())
def test_half_precision(secant, data):
    case = data.draw(ode_cases(dtypes=(torch.float16, torch.bfloat16)))
    ref = case.sequential()
    sol = case.solve(iteration=secant, window=12, tol=0)
    assert_close(sol.ys, ref.ys, case.rounding(ref.ys))
    assert sol.stats.rounds <= ref.stats.rounds


# ---- arguments


@pytest.mark.parametrize("secant", SECANTS)
def test_autocast_for_the_network_leaves_the_sweeps_alone(secant):
    ts, how = torch.linspace(0, 2, 33), {"integrator": ps.Euler(), "window": 16}
    term, y0 = ps.ODE(lambda t, y: torch.sin(3 * y) - y.flip(-1)), torch.linspace(-1, 1, 8)
    plain = ps.solve(term, y0, ts, iteration=secant, tol=1e-4, **how)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sol = ps.solve(term, y0, ts, iteration=secant, tol=1e-4, **how)
    assert_close(sol.ys, plain.ys, 1e-6)


@pytest.mark.parametrize(
    ("call", "error", "names"),
    [
        (lambda: ps.MultiSecant(memory=0), ValueError, "memory"),
        (lambda: ps.MultiSecant(memory=2.0), TypeError, "memory"),
        (lambda: ps.MultiSecant(neighbours=-1), ValueError, "neighbours"),
        (lambda: ps.MultiSecant(neighbours=True), (TypeError, ValueError), "neighbours"),
        (lambda: ps.MultiSecant(ridge=0), ValueError, "ridge"),
        (lambda: ps.MultiSecant(ridge=float("nan")), ValueError, "ridge"),
        (lambda: ps.MultiSecant(ridge="much"), (TypeError, ValueError), "ridge"),
        (lambda: ps.Denoiser(len, ps.schedules.EDM(), sigma_data=0), ValueError, "sigma_data"),
        (lambda: ps.Denoiser(len, ps.schedules.EDM(), sigma_data=-1.0), ValueError, "sigma_data"),
        (lambda: ps.Denoiser(len, ps.schedules.EDM(), sigma_data=math.inf), ValueError, "sigma_data"),
        (lambda: ps.Denoiser(len, ps.schedules.EDM(), sigma_data=math.nan), ValueError, "sigma_data"),
        (lambda: ps.Denoiser(len, ps.schedules.EDM(), sigma_data="0.5"), (TypeError, ValueError), "sigma_data"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(call, error, names):
    with pytest.raises(error, match=rf"^{names}: expected .*, got .*\.$") as raised:
        call()
    assert "\n" not in str(raised.value)
