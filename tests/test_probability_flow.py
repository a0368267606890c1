"""Runge-Kutta methods for a `Denoiser`, and EDM's sampler with churn, against loops written from the papers."""

import math

import pytest
import torch
from cases import PREDICTIONS, Mixture, generator, mixture_denoiser, noise_schedules, randn
from hypothesis import given, settings
from hypothesis import strategies as st

import picardsolve as ps

METHODS = (ps.Euler(), ps.Midpoint(), ps.Heun(), ps.RK4())
MIXTURE = Mixture(0.7 * randn(generator(0), 3, 4), 0.3)


def velocity(schedule, prediction):
    """``dx/dt`` of a mixture from its clean sample and its noise (Song et al. 2021, eq. 13)."""

    def f(t, x):
        t = t.flatten()
        alpha, sigma = (level(t)[:, None] for level in (schedule.alpha, schedule.sigma))
        of_sample, of_noise = (rate[:, None] for rate in schedule.rates(t))
        clean = MIXTURE.clean(x, alpha, sigma)
        noise = (x - alpha * clean) / sigma
        return of_sample * clean + of_noise * noise

    return ps.ODE(f)


@settings(max_examples=8)
@given(
    st.sampled_from(["VP", "VE", "EDM", "Flow", "Flow from pure noise", "from_betas"]),
    st.sampled_from(PREDICTIONS),
    st.sampled_from(METHODS),
    st.integers(1, 8),
    st.booleans(),
    st.integers(0, 99),
)
def test_a_step_is_the_method_s_step_of_the_probability_flow(name, prediction, method, steps, clean_end, seed):
    schedule, ts = noise_schedules(seed, steps, clean_end)[name]
    if name == "Flow from pure noise" and prediction == "epsilon":
        prediction = "sample"
    y0 = randn(generator(seed), 2, 4) * float(schedule.sigma(ts[0]))
    ours = ps.sequential(mixture_denoiser(MIXTURE, schedule, prediction), y0, ts, integrator=method).ys
    inside = ts[:-1] if clean_end else ts  # the last step to no noise is tested below
    if len(inside) > 1:
        expected = ps.sequential(velocity(schedule, prediction), y0, inside, integrator=method, batch_dims=1).ys
        torch.testing.assert_close(ours[: len(inside)], expected, rtol=0, atol=1e-9 * (1 + float(expected.abs().max())))
    if clean_end and float(schedule.sigma(ts[-1])) == 0:
        last = ours[-2], ts[-2:-1].expand(2)
        slope = velocity(schedule, prediction).drift(last[1], last[0])
        if prediction != "flow" or method == ps.Euler():
            torch.testing.assert_close(ours[-1], ours[-2] + (ts[-1] - ts[-2]) * slope, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("prediction", "ends"), [("flow", 0.0), ("sample", 0.25), ("v_prediction", 0.25)])
def test_only_a_velocity_is_evaluated_where_no_noise_is_left(prediction, ends):
    times = []

    def model(x, t):
        times.extend(t.tolist())
        return 0.1 * x

    ts = torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    ps.sequential(
        ps.Denoiser(model, ps.schedules.Flow(), prediction), randn(generator(0), 1, 4), ts, integrator=ps.Heun()
    )
    assert min(times) == ends
    v = ps.ODE(lambda t, x: 0.1 * x)
    if prediction == "flow":  # the same as the plain field, to the end
        y0 = randn(generator(0), 2, 4)
        flow = ps.Denoiser(lambda x, t: 0.1 * x, ps.schedules.Flow(), "flow")
        ours, theirs = (ps.sequential(term, y0, ts, integrator=ps.RK4()).ys for term in (flow, v))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_methods_for_a_denoiser_have_their_order():
    schedule, ends, y0 = ps.schedules.Flow(), (0.95, 0.05), 0.95 * randn(generator(1), 4, 4)
    model = mixture_denoiser(MIXTURE, schedule, "flow")
    exact = ps.sequential(model, y0, ps.grids.uniform(*ends, 200), integrator=ps.RK4()).ys[-1]
    for method in METHODS:
        errors = []
        for steps in (32, 64):
            ys = ps.sequential(model, y0, ps.grids.uniform(*ends, steps), integrator=method).ys
            errors.append(float((ys[-1] - exact).square().mean().sqrt()))
        assert math.log2(errors[0] / errors[1]) == pytest.approx(method.order, abs=0.5)


def by_algorithm_2(denoiser, x, ts, noise, s: ps.StochasticEDM):
    """Karras et al. 2022, algorithm 2, as in NVlabs' code; Euler's steps and their scale as in AlphaFold 3's."""
    for i, (t, after) in enumerate(zip(ts[:-1].tolist(), ts[1:].tolist(), strict=True)):
        gamma = min(s.s_churn / (len(ts) - 1), s.gamma_max) if s.s_tmin <= t <= s.s_tmax else 0.0
        raised = t + gamma * t
        x_hat = x + math.sqrt(raised**2 - t**2) * s.s_noise * noise[i]
        d = (x_hat - denoiser(x_hat, raised)) / raised
        x = x_hat + s.step_scale * (after - raised) * d
        if after > 0 and s.order == 2:
            d_after = (x - denoiser(x, after)) / after
            x = x_hat + s.step_scale * (after - raised) * (d / 2 + d_after / 2)
    return x


churns = st.builds(
    ps.StochasticEDM,
    s_churn=st.sampled_from([0.0, 1.0, 20.0, 1e6]),
    s_tmin=st.sampled_from([0.0, 0.3]),
    s_tmax=st.sampled_from([math.inf, 2.0]),
    s_noise=st.sampled_from([0.0, 1.0, 1.007]),
    order=st.sampled_from([1, 2]),
    gamma_max=st.sampled_from([math.sqrt(2) - 1, 0.8]),
    step_scale=st.sampled_from([1.0, 1.5]),
)


@settings(max_examples=8)
@given(churns, st.integers(1, 24), st.integers(1, 3), st.booleans(), st.sampled_from(PREDICTIONS), st.integers(0, 99))
def test_churn_is_algorithm_2_with_the_noise_of_the_path(sampler, steps, batch, clean_end, prediction, seed):
    """All settings: the sequential twin to rounding, the parallel solve to the tolerance."""
    ts = ps.grids.karras(8.0, 0.02, steps)
    ts = ts if clean_end or steps == 1 else ts[:-1]
    model, y0 = mixture_denoiser(MIXTURE, ps.schedules.EDM(), prediction), 8 * randn(generator(seed), batch, 4)
    path, count = ps.BrownianPath(seed=seed), len(ts) - 1
    drawn = path.increments(
        ts[:-1].repeat(batch), ts[1:].repeat(batch), torch.arange(batch).repeat_interleave(count), 4
    )
    noise = drawn.view(batch, count, 4).transpose(0, 1) / ts.diff().abs().sqrt()[:, None, None]

    def denoiser(x, t):
        sigma = torch.full((len(x), 1), t, dtype=torch.float64)
        return MIXTURE.clean(x, torch.ones_like(sigma), sigma)

    expected = by_algorithm_2(denoiser, y0, ts, noise, sampler)
    given = {"integrator": sampler, "brownian": path}
    ours = ps.sequential(model, y0, ts, **given)
    torch.testing.assert_close(ours.ys[-1], expected, rtol=0, atol=1e-9 * (1 + float(y0.abs().max())))
    sol = ps.solve(model, y0, ts, tol=1e-3, **given)
    size = ours.ys[-1].square().mean(1).sqrt()
    assert bool(((sol.ys[-1] - ours.ys[-1]).square().mean(1).sqrt() <= 5e-3 * size).all())
    assert sol.stats.rounds <= count * sampler.order
    exact = ps.solve(model, y0, ts, tol=0, **given)
    torch.testing.assert_close(exact.ys, ours.ys, rtol=0, atol=1e-9 * (1 + float(y0.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_churn_in_single_and_half_precision(dtype):
    model = mixture_denoiser(MIXTURE, ps.schedules.EDM(), "sample")
    ts, y0 = ps.grids.karras(8.0, 0.05, 20), (8 * randn(generator(3), 2, 4)).to(dtype)
    sol = ps.solve(model, y0, ts, integrator=ps.StochasticEDM(10.0), tol=2e-2)
    ref = ps.sequential(model, y0, ts, integrator=ps.StochasticEDM(10.0))
    assert sol.ys.dtype == dtype
    assert float((sol.ys[-1] - ref.ys[-1]).float().square().mean().sqrt()) < 0.1


def test_churn_leaves_the_law_as_it_is():
    """Data from N(0, 0.5^2), of which 4000 numbers have a deviation within 3 standard errors of theirs."""

    def clean(x, t):
        return x * (0.25 / (0.25 + t[:, None] ** 2)).to(x)

    model, ts = ps.Denoiser(clean, ps.schedules.EDM(), "sample"), ps.grids.karras(20.0, 0.01, 40)
    y0 = 20 * randn(generator(5), 500, 8)
    for churn in (0.0, 20.0):
        ys = ps.solve(model, y0, ts, integrator=ps.StochasticEDM(churn), tol=1e-3, save="last").ys
        assert float(ys[-1].std()) == pytest.approx(0.5, abs=3 * 0.5 / math.sqrt(2 * 4000))
    apart = ps.solve(model, y0, ts, integrator=ps.StochasticEDM(20.0), brownian=ps.BrownianPath(1), tol=1e-3)
    assert float((apart.ys[-1] - ys[-1]).abs().mean()) > 0.1  # another path, another sample


def test_rates_are_the_derivatives_of_the_levels():
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    known = {
        ps.schedules.VP(lambda t: torch.exp(-t)): (
            -torch.exp(-t / 2) / 2,
            torch.exp(-t) / (1 - torch.exp(-t)).sqrt() / 2,
        ),
        ps.schedules.VE(lambda t: t**2): (0 * t, 2 * t),
        ps.schedules.EDM(): (0 * t, 1 + 0 * t),
        ps.schedules.Flow(): (-1 + 0 * t, 1 + 0 * t),
    }
    for schedule, expected in known.items():
        for ours, theirs in zip(schedule.rates(t), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        with torch.inference_mode():
            assert torch.equal(schedule.rates(t)[1], schedule.rates(t)[1])


WRONG = {
    "levels without a derivative": (
        lambda: ps.schedules.VE(lambda t: torch.as_tensor(t.detach().numpy() ** 2)).rates(torch.rand(3).double()),
        TypeError,
        "schedule: expected levels that torch can differentiate",
    ),
    "churn on another time": (
        lambda: ps.solve(
            ps.Denoiser(lambda x, t: x, ps.schedules.Flow(), "flow"),
            torch.ones(1, 2),
            [1.0, 0.0],
            integrator=ps.StochasticEDM(1.0),
        ),
        ValueError,
        "integrator: StochasticEDM takes a Denoiser whose time is the noise level",
    ),
    "churn for an ODE": (
        lambda: ps.solve(ps.ODE(lambda t, y: y), torch.ones(2), [0.0, 1.0], integrator=ps.StochasticEDM(1.0)),
        TypeError,
        "integrator: StochasticEDM takes a Denoiser",
    ),
    "negative": (lambda: ps.StochasticEDM(-1.0), ValueError, "s_churn: expected a number >= 0"),
    "a string": (lambda: ps.StochasticEDM(1.0, s_noise="1"), TypeError, "s_noise: expected a number >= 0"),
    "infinite": (lambda: ps.StochasticEDM(math.inf), ValueError, "s_churn: expected a finite number"),
    "no steps": (lambda: ps.StochasticEDM(1.0, step_scale=0.0), ValueError, "step_scale: expected a number > 0"),
    "order": (lambda: ps.StochasticEDM(1.0, order=3), ValueError, "order: expected 1 or 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name):
    call, error, says = WRONG[name]
    with pytest.raises(error, match=says):
        call()
