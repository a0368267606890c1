"""Samples that are about to choose between two modes: none may end in the other one while nothing says so."""

from typing import Any

import pytest
import torch
from cases import Mixture, generator, mixture_denoiser, randn

import picardsolve as ps
from picardsolve.problem.recurrence import rms

SAMPLES, SIZE, STEPS = 256, 16, 50


def two_modes(seed: int) -> tuple[ps.Denoiser, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A denoiser of two opposite modes, initial states, times, and the first mode."""
    gen = generator(seed)
    mode = randn(gen, 1, SIZE)
    mode = 2 * mode / mode.norm()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    term = mixture_denoiser(Mixture(torch.cat([mode, -mode]), 0.3), ps.schedules.from_betas(betas), "epsilon")
    times = [*(1000 // STEPS * n + 1 for n in reversed(range(STEPS))), -1]
    return term, randn(gen, SAMPLES, SIZE), ps.grids.given(times), mode[0]


def errors(
    given: dict[str, Any], tol: float, window: int, mode: torch.Tensor, **how: Any
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """True and estimated distances in tolerances, and how many samples are in the other mode."""
    reference = ps.sequential(**given).ys[-1]
    solution = ps.solve(**given, window=window, tol=tol, **how)
    last, unit = solution.ys[-1], tol * rms(reference)
    lost = (last @ mode).sign() != (reference @ mode).sign()
    return rms(last - reference) / unit, solution.certificate.error[-1] / unit, int(lost.sum())


@pytest.mark.parametrize("sampler", [ps.DDIM(), ps.DDPM()], ids=["DDIM", "DDPM"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_window_of_all_steps_keeps_samples_in_their_mode(sampler, seed):
    """In the second round it used to let most steps go, with errors that a choice between modes multiplied later."""
    term, y0, ts, mode = two_modes(seed)
    given = {"term": term, "y0": y0, "ts": ts, "integrator": sampler, "brownian": ps.BrownianPath(seed)}
    true, estimated, lost = errors(given, 1e-2, STEPS, mode)
    assert lost == 0
    assert true.max() <= 3
    assert (true > 1).sum() <= 0.03 * SAMPLES
    assert (estimated > 1).sum() <= 0.03 * SAMPLES


@pytest.mark.parametrize("window", [8, 16])
@pytest.mark.parametrize("sampler", [ps.DDIM(), ps.DDPM()], ids=["DDIM", "DDPM"])
def test_a_window_that_slides_keeps_samples_in_their_mode(sampler, window):
    term, y0, ts, mode = two_modes(0)
    given = {"term": term, "y0": y0, "ts": ts, "integrator": sampler, "brownian": ps.BrownianPath(0)}
    assert errors(given, 1e-2, window, mode)[2] == 0


def test_states_are_kept_until_it_is_sure_of_them_where_that_takes_no_round():
    """A state is evaluated again though it is within the tolerance, until the whole window is; that is no stall."""
    term, y0, ts, _ = two_modes(0)
    solution = ps.solve(term, y0, ts, integrator=ps.DDIM(), window=STEPS, tol=1e-2)
    kept = 0
    for record in solution.history:
        assert record.estimates is not None
        for s in range(SAMPLES):
            stride = int(record.stride[s])
            kept += stride < record.width[s] and bool(record.estimates.excess[stride, s] <= 1)
    assert kept > SAMPLES
    assert not solution.certificate.warnings
    assert sum(int(record.stride.sum()) for record in solution.history) == SAMPLES * STEPS


@pytest.mark.parametrize("window", [8, 16])
@pytest.mark.parametrize("sampler", [ps.DDIM(), ps.DDPM()], ids=["DDIM", "DDPM"])
@pytest.mark.parametrize("seed", [0, 1])
def test_certified_windows_that_slide_hold_the_tolerance(sampler, window, seed):
    term, y0, ts, mode = two_modes(seed)
    given = {"term": term, "y0": y0, "ts": ts, "integrator": sampler, "brownian": ps.BrownianPath(seed)}
    true, _, lost = errors(given, 1e-2, window, mode, certify=True)
    assert lost == 0
    assert true.max() <= 3
    assert (true > 1).sum() <= 0.01 * SAMPLES


def test_a_certified_state_is_looked_at_twice():
    """But for the exact first step of a round, and for those of the window that ends the grid."""
    term, y0, ts, _ = two_modes(0)
    given: dict[str, Any] = {"integrator": ps.DDIM(), "tol": 1e-2, "window": 12}
    plain, certified = (ps.solve(term, y0, ts, **given, certify=certify) for certify in (False, True))
    within = torch.zeros(SAMPLES, STEPS, dtype=torch.int64)  # rounds in which each state was within the tolerance
    once = 0
    for record in certified.history:
        assert record.estimates is not None
        for s in range(SAMPLES):
            begin, stride, width = (int(each[s]) for each in (record.begin, record.stride, record.width))
            within[s, begin : begin + width] += record.estimates.excess[:width, s] <= 1
            if width and begin + width < STEPS:
                once += int((within[s, begin + 1 : begin + stride] < 2).sum())
    assert once == 0
    assert 12 < certified.stats.max_width <= 24
    assert plain.stats.max_width == 12
    assert plain.stats.evaluations < certified.stats.evaluations < 2 * plain.stats.evaluations


def test_a_certified_sample_does_not_depend_on_its_company():
    term, y0, ts, _ = two_modes(0)
    given: dict[str, Any] = {"integrator": ps.DDIM(), "tol": 1e-2, "window": 8, "certify": True}
    together = ps.solve(term, y0[:9], ts, **given).ys
    alone = torch.cat([ps.solve(term, each[None], ts, **given).ys for each in y0[:9]], 1)
    assert rms(together - alone).max() < 1e-2


@pytest.mark.parametrize(("sampler", "window"), [(ps.DDIM(), STEPS), (ps.DDIM(), 8), (ps.DDPM(), 16)])
def test_growth_is_what_perturbed_samples_show_within_a_factor_of_10(sampler, window):
    """On all samples, those between the modes among them, whose changes grow most; and the certificate says so."""
    term, y0, ts, _ = two_modes(0)
    given: dict[str, Any] = {"integrator": sampler, "brownian": ps.BrownianPath(0)}
    reference, squares, gen, size = ps.sequential(term, y0, ts, **given).ys, 0.0, generator(1), 1e-6
    for _ in range(4):
        moved = size * randn(gen, *y0.shape)
        apart = ps.sequential(term, y0 + moved, ts, **given).ys - reference
        squares = squares + (rms(apart) / rms(moved)) ** 2 / 4
    true = torch.as_tensor(squares).sqrt().amax(0)
    certificate = ps.solve(term, y0, ts, **given, window=window, tol=1e-2).certificate
    assert true.max() > 3 * true.median()
    assert (certificate.growth > true / 10).all()
    assert (certificate.growth < true * 10).all()
    assert "known within a factor of 10" in str(certificate)


def test_growth_is_not_known_where_an_iteration_reports_no_slopes():
    term, y0, ts, _ = two_modes(0)
    certificate = ps.solve(term, y0[:4], ts, integrator=ps.DDIM(), tol=1e-2, iteration=ps.Jacobi()).certificate
    assert certificate.growth.isnan().all()
    assert "factor of 10" not in str(certificate)


@pytest.mark.parametrize("iteration", [ps.Picard(), ps.Secant()], ids=lambda it: type(it).__name__)
def test_other_terms_can_be_certified_too(iteration):
    ts, y0 = ps.grids.uniform(0, 20, 400), torch.tensor([2.0, 0.0], dtype=torch.float64)
    term = ps.ODE(lambda t, y: torch.stack([y[..., 1], -torch.sin(y[..., 0])], -1))
    given: dict[str, Any] = {"integrator": ps.RK4(), "iteration": iteration, "tol": 1e-6, "window": 32}
    solution = ps.solve(term, y0, ts, **given, certify=True)
    exact = ps.sequential(term, y0, ts, integrator=ps.RK4())
    assert rms(solution.ys - exact.ys).max() <= 1e-6 * 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stop": "increment"}, "^certify: only the rule 'error'"),
        ({"integrator": ps.Collocation()}, "^certify: Collocation estimates the error of every step itself"),
        ({"iteration": ps.Parareal()}, "^certify: only the rule 'error'"),
        ({"certify": 1}, "^certify: expected True or False"),
    ],
)
def test_what_cannot_be_certified_is_refused(given, words):
    how = {"integrator": ps.Euler(), "certify": True} | given
    with pytest.raises((TypeError, ValueError), match=words):
        ps.solve(ps.ODE(lambda t, y: -y), torch.ones(2), ps.grids.uniform(0, 1, 20), **how)
