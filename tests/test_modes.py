"""Samples that are about to choose between two modes: none may end in the other one while nothing says so."""

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


def errors(given: dict, tol: float, window: int, mode: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """True and estimated distances in tolerances, and how many samples are in the other mode."""
    reference = ps.sequential(**given).ys[-1]
    solution = ps.solve(**given, window=window, tol=tol)
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
    kept = [
        int((record.estimates.excess[int(record.stride[s]), s] <= 1) & (record.stride[s] < record.width[s]))
        for record in solution.history
        for s in range(SAMPLES)
        if record.width[s] > record.stride[s]
    ]
    assert sum(kept) > SAMPLES
    assert solution.history.longest_stall <= 1
    assert int(solution.history.counts()[1].sum()) == SAMPLES * STEPS
