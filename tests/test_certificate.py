"""What a solution says of its own error, beside the sequential solution and beside its own arithmetic.

Written from the docstrings, through the public interface.
"""

import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pipelines import digits
from pipelines import generator as pipeline_generator
from problems import (
    Case,
    any_case,
    company,
    denoiser_cases,
    generator,
    grids,
    iterations,
    noise_schedules,
    numerics,
    ode_cases,
    randn,
    random_drift,
    sde_cases,
    seeds,
    windows,
)

import picardsolve as ps
from integrations import diffusers as parallel

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import mixture

DOUBLE = torch.float64
tolerances = st.sampled_from([1e-1, 1e-2, 1e-3, 1e-5])


def distance(sol: ps.Solution, ref: ps.Solution, batch_dims: int) -> torch.Tensor:
    """Root mean square over all elements of a state, one time and one sample after the other."""

    def leaves(solution):
        ys = solution.ys
        return list(ys.values()) if isinstance(ys, dict) else list(ys) if isinstance(ys, tuple) else [ys]

    def rms(time: int, sample=...) -> torch.Tensor:
        parts = [
            (a[time][sample].double() - b[time][sample].double()).flatten()
            for a, b in zip(leaves(sol), leaves(ref), strict=True)
        ]
        return torch.cat(parts).square().mean().sqrt()

    times = range(len(sol.ts))
    if not batch_dims:
        return torch.stack([rms(time) for time in times])
    samples = range(leaves(sol)[0].shape[1])
    return torch.stack([torch.stack([rms(time, sample) for sample in samples]) for time in times])


# ---- verify


@given(st.data())
def test_verify_measures_the_distance_to_the_sequential_solution(data):
    case, save = data.draw(any_case()), data.draw(st.sampled_from(["all", "last"]))
    how = data.draw(numerics(case.term))
    sol = case.solve(tol=data.draw(tolerances), save=save, **how)
    found, ref = sol.certificate.verify(), case.sequential(save=save, max_batch=how["max_batch"])
    assert torch.equal(found.reference.ys, ref.ys)
    assert found.certificate is sol.certificate
    expected = distance(sol, ref, case.batch_dims)
    assert found.error.shape == sol.certificate.error.shape == sol.certificate.bound.shape == expected.shape
    torch.testing.assert_close(found.error, expected, rtol=1e-6, atol=0)


@given(st.data())
def test_verify_takes_every_part_of_a_structured_state(data):
    """A tuple or dict of parts is off by what one tensor of all their elements is."""
    seed, batch, ts = data.draw(seeds), data.draw(st.sampled_from([0, 1, 3])), data.draw(grids())
    drift, named = random_drift("mlp", seed, (7,), DOUBLE), data.draw(st.booleans())

    def split(flat):
        parts = flat[..., :4].unflatten(-1, (2, 2)), flat[..., 4:]
        return dict(zip("ba", parts, strict=True)) if named else parts

    def f(t, tree):
        b, a = (tree["b"], tree["a"]) if named else tree
        return split(drift(t[:, :, 0], torch.cat([b.flatten(-2), a], -1)))

    y0 = randn(generator(seed), *[batch] * bool(batch), 7)
    how = {
        "integrator": ps.Euler(),
        "batch_dims": int(batch > 0),
        "tol": data.draw(tolerances),
        "window": data.draw(windows),
    }
    tree = ps.solve(ps.ODE(f), split(y0), ts, **how)
    found = tree.certificate.verify()
    torch.testing.assert_close(found.error, distance(tree, found.reference, how["batch_dims"]), rtol=1e-6, atol=0)
    whole = ps.solve(ps.ODE(drift), y0, ts, **how).certificate
    torch.testing.assert_close(found.error, whole.verify().error, rtol=1e-6, atol=1e-13)
    assert tree.certificate.error.shape == whole.error.shape


@given(st.data())
def test_effectivity_and_a_bound_that_is_too_small(data):
    case = data.draw(any_case((DOUBLE,)))
    sol = case.solve(tol=data.draw(st.sampled_from([0, 1e-1, 1e-2])), **data.draw(numerics(case.term)))
    found = sol.certificate.verify()
    estimated, true = sol.certificate.error, found.error
    nothing = (estimated == 0) & (true == 0)
    assert torch.equal(found.effectivity.isnan(), nothing)
    assert torch.equal(found.effectivity[~nothing], (estimated / true)[~nothing])

    def claims(bound):
        return replace(found, certificate=replace(found.certificate, bound=bound)).holds

    assert claims(true) is True
    assert claims(true + 1) is True
    off = true > 1e3 * case.rounding(found.reference.ys)
    assume(off.any())
    one = torch.nonzero(off)[data.draw(st.integers(0, int(off.sum()) - 1))]
    short = true.clone()
    short[tuple(one)] /= 2  # one time of one sample is enough
    assert claims(short) is False


# ---- certified


STEPS = {
    ps.Euler: lambda f, t, h, y: y + h * f(t, y),
    ps.Heun: lambda f, t, h, y: y + h / 2 * (f(t, y) + f(t + h, y + h * f(t, y))),
}
CONSTANT = {"contracting": 1.5}  # of `random_drift`; 1 for the others


def one_step(case: Case, n: int, y: torch.Tensor) -> torch.Tensor:
    """The sequential solver on a grid of one step."""
    return ps.sequential(
        case.term, y, case.ts[n : n + 2], integrator=case.integrator, batch_dims=case.batch_dims, **case.given
    ).ys[1]


def lipschitz(case: Case) -> float:
    return CONSTANT.get(case.name.split()[1], 1.0)


@given(st.data())
def test_residuals_of_a_certified_bound(data):
    case = data.draw(ode_cases((DOUBLE,)))
    sol = case.solve(tol=data.draw(tolerances), **data.draw(numerics(case.term)))
    certified = sol.certificate.certified(lipschitz(case))
    off = [one_step(case, n, sol.ys[n]) - sol.ys[n + 1] for n in range(case.steps)]
    each = (case.steps, len(case.y0)) if case.batch_dims else (case.steps,)
    expected = torch.stack(off).reshape(*each, -1).square().mean(-1).sqrt()
    assert certified.kind == "certified"
    assert sol.certificate.kind == "estimated"
    torch.testing.assert_close(certified.residuals, expected, rtol=1e-6, atol=case.rounding(sol.ys))


@settings(max_examples=120)
@given(st.data())
def test_a_certified_bound_of_an_ode_holds(data):
    """Drifts of known Lipschitz constant, any integrator, direction of time, window, iteration and tolerance."""
    case = data.draw(ode_cases())
    sol = case.solve(tol=data.draw(tolerances), **data.draw(numerics(case.term)))
    constant = lipschitz(case)
    if data.draw(st.booleans()):
        constant = torch.full((case.steps,), constant)
    found = sol.certificate.certified(constant).verify()
    assert found.holds
    # in float32 two correct solvers differ by rounding of the drift, which no constant of the user bounds
    assert (found.error <= found.certificate.bound + case.rounding(found.reference.ys)).all()


@given(st.data())
def test_a_bound_from_a_one_sided_constant_holds_and_is_no_larger(data):
    seed, batch, span = data.draw(seeds), data.draw(st.sampled_from([0, 1, 3])), data.draw(st.sampled_from([0.5, 4.0]))
    backward, steps = data.draw(st.booleans()), data.draw(st.integers(1, 20))
    drift = random_drift("contracting", seed, (3,), DOUBLE)
    # in the direction of time: -f where time runs backward
    term = ps.ODE((lambda t, y: -drift(t, y)) if backward else drift)
    ts = torch.linspace(0, -span if backward else span, steps + 1, dtype=DOUBLE)
    sol = ps.solve(
        term,
        randn(generator(seed), *[batch] * bool(batch), 3),
        ts,
        integrator=ps.Euler(),
        batch_dims=int(batch > 0),
        tol=data.draw(tolerances),
        window=data.draw(windows),
        iteration=data.draw(iterations),
    )
    sharp, plain = sol.certificate.certified(1.5, -0.5), sol.certificate.certified(1.5)
    assert sharp.verify().holds
    assert plain.verify().holds
    assert (sharp.bound <= plain.bound * (1 + 1e-12)).all()
    if span / steps < 2 * 0.5 / 1.5**2 and plain.error[-1].max() > 1e-9:  # the step contracts
        assert (sharp.bound[-1] <= sharp.residuals.sum(0) + 1e-12).all()


@given(st.data())
def test_a_certified_bound_is_the_error_where_all_residuals_point_one_way(data):
    """Picard on ``y' = rate y`` rises from below to the sequential solution, and a step stretches by its constant.

    Not RK4's 3/8 rule, some of whose coefficients are negative.
    """
    rate = data.draw(st.sampled_from([0.3, 1.0, 2.0]))
    integrator = data.draw(st.sampled_from([ps.Euler(), ps.Heun(), ps.RK4()]))
    y0 = torch.rand(data.draw(st.sampled_from([(1,), (3,)])), generator=generator(data.draw(seeds)), dtype=DOUBLE) + 1
    sol = ps.solve(
        ps.ODE(lambda t, y: rate * y),
        y0,
        data.draw(grids(increasing=True, min_steps=3)),
        integrator=integrator,
        iteration=ps.Picard(),
        guess=ps.Copy(),
        tol=data.draw(st.sampled_from([1e-1, 1e-2, 1e-4])),
        window=data.draw(windows),
        stop="increment",
    )
    found = sol.certificate.certified(rate).verify()
    assert found.holds
    torch.testing.assert_close(found.certificate.bound, found.error, rtol=1e-6, atol=1e-11)


@given(st.data())
def test_a_certified_bound_is_the_error_where_one_step_is_off(data):
    """A loose tolerance accepts a guess that leaves the sequential solution at one step.

    Jacobi's round hands the jump on to the step after it.
    """
    rate, size, steps = 1.5, data.draw(st.sampled_from([1e-3, 0.1])), data.draw(st.integers(2, 20))
    at, h = data.draw(st.integers(1, steps - 1)), 0.1
    ref = (1 + h * rate) ** torch.arange(steps + 1, dtype=DOUBLE)[:, None]
    ref[at:] += size * (1 + h * rate) ** torch.arange(steps + 1 - at, dtype=DOUBLE)[:, None]
    ts = h * torch.arange(steps + 1, dtype=DOUBLE)
    sol = ps.solve(
        ps.ODE(lambda t, y: rate * y),
        torch.ones(1, dtype=DOUBLE),
        ts,
        integrator=ps.Euler(),
        iteration=ps.Jacobi(),
        guess=ps.FromTrajectory(ref),
        window=steps,
        tol=2 * size,
        stop="increment",
    )
    certified = sol.certificate.certified(rate)
    found = certified.verify()
    assert found.holds
    torch.testing.assert_close(certified.bound, found.error, rtol=1e-6, atol=1e-11)
    assert torch.equal(certified.residuals > 1e-9, torch.arange(steps) == at)


def linear_denoiser(seed: int, norm: float, curved: bool, schedule: ps.schedules.Schedule) -> ps.Denoiser:
    """Its predicted sample has the Lipschitz constant ``norm``."""
    matrix = randn(generator(seed), 4, 4)
    matrix *= norm / torch.linalg.matrix_norm(matrix, 2)

    def model(x, t):
        out = x @ matrix.to(x.dtype)
        return torch.tanh(out) if curved else out

    return ps.Denoiser(model, schedule, "sample")


DETERMINISTIC_OR_NOT = (
    *(ps.DDIM(), ps.DDIM(0.5), ps.DDPM(), ps.DPMSolver(1), ps.DPMSolver(2), ps.DPMSolver(3)),
    ps.DPMSolver(2, sde=True),
)


@settings(max_examples=100)
@given(st.data())
def test_a_certified_bound_of_a_denoiser_holds(data):
    seed, steps, norm = data.draw(seeds), data.draw(st.integers(1, 12)), data.draw(st.sampled_from([0.3, 1.0, 3.0]))
    known = noise_schedules(seed, steps, data.draw(st.booleans()))
    schedule, ts = known[data.draw(st.sampled_from(sorted(known)))]
    term = linear_denoiser(seed, norm, data.draw(st.booleans()), schedule)
    sol = ps.solve(
        term,
        randn(generator(seed + 1), 3, 4) * schedule.sigma(ts[0]),
        ts,
        integrator=data.draw(st.sampled_from(DETERMINISTIC_OR_NOT)),
        brownian=ps.BrownianPath(seed),
        tol=data.draw(tolerances),
        **data.draw(numerics(term)),
    )
    found = sol.certificate.certified(norm).verify()
    assert found.certificate.bound.shape == (steps + 1, 3)
    assert found.holds
    assert (found.certificate.bound[0] <= 1e-12 * schedule.sigma(ts[0])).all()  # the initial state is exact


@given(st.data())
def test_a_certified_bound_of_ddim_is_the_error_of_one_sign(data):
    """The predicted sample is a multiple of the state: a scalar recurrence with positive factors."""
    seed, steps, norm = data.draw(seeds), data.draw(st.integers(2, 12)), data.draw(st.sampled_from([0.2, 0.5]))
    schedule, ts = noise_schedules(seed, steps, True)["VE"]
    term = ps.Denoiser(lambda x, t: norm * x, schedule, "sample")
    sol = ps.solve(
        term,
        torch.ones(2, 3, dtype=DOUBLE),
        ts,
        integrator=ps.DDIM(),
        iteration=ps.Jacobi(),
        guess=ps.Copy(),  # above: the states decay
        window=data.draw(windows),
        tol=data.draw(st.sampled_from([0.3, 0.1, 1e-2])),
    )
    found = sol.certificate.certified(norm).verify()
    torch.testing.assert_close(found.certificate.bound, found.error, rtol=1e-6, atol=1e-11)


def predicted(case: Case, n: int, x: torch.Tensor) -> torch.Tensor:
    return case.term.model(x, case.ts[n].expand(len(x)))


def mean_after(case: Case, n: int, states: torch.Tensor) -> torch.Tensor:
    """A step's mean from the papers: DDIM (Song 2021, eq. 12), DDPM (Ho 2020, eq. 7), DPM-Solver++ 2M (Lu 2022)."""
    schedule, (s, t) = case.term.schedule, case.ts[n : n + 2]
    a, b, u, v = schedule.alpha(s), schedule.alpha(t), schedule.sigma(s), schedule.sigma(t)
    x, clean = states[n], predicted(case, n, states[n])
    if isinstance(case.integrator, ps.DDPM):
        kept = (a / b) ** 2 * v**2 / u**2  # of q(x_t | x_s, x_0), any schedule
        return kept * (b / a) * x + b * (1 - kept) * clean
    if isinstance(case.integrator, ps.DPMSolver) and n:
        h, before = schedule.log_snr(t) - schedule.log_snr(s), schedule.log_snr(s) - schedule.log_snr(case.ts[n - 1])
        past = predicted(case, n - 1, states[n - 1])
        clean = clean + h / before / 2 * (clean - past) if h.isfinite() else clean
    return v / u * x + (b - a * v / u) * clean


@given(st.data())
def test_residuals_of_a_denoiser(data):
    """The noise of a step is what the sequential states have beyond its mean."""
    seed, steps = data.draw(seeds), data.draw(st.integers(1, 10))
    known = noise_schedules(seed, steps, False)
    schedule, ts = known[data.draw(st.sampled_from(["VE", "VP", "Flow"]))]
    term = linear_denoiser(seed, 0.8, True, schedule)
    integrator = data.draw(st.sampled_from([ps.DDIM(), ps.DDPM(), ps.DPMSolver(1), ps.DPMSolver(2)]))
    y0 = randn(generator(seed + 1), 2, 4) * schedule.sigma(ts[0])
    case = Case("", term, y0, ts, integrator, 1, 1, seed, 1)
    sol = case.solve(tol=data.draw(tolerances), **data.draw(numerics(term)))
    ref = case.sequential()
    if integrator == ps.DPMSolver(1):
        case = replace(case, integrator=ps.DDIM())

    def off(n):
        return ref.ys[n + 1] - mean_after(case, n, ref.ys) + mean_after(case, n, sol.ys) - sol.ys[n + 1]

    expected = torch.stack([off(n) for n in range(steps)]).square().mean(-1).sqrt()
    measured = sol.certificate.certified(0.8).residuals
    torch.testing.assert_close(measured, expected, rtol=1e-5, atol=1e-12 * float(ref.ys.abs().max() + 1))
