"""The library on a device that is not the host's: the same answers, and nothing on the wrong side.

`SimulatedDevice` raises where tensors of two devices meet, so that a solve that runs mixes none.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from simulated_device import agree

import picardsolve as ps

BATCH, SIZE, STEPS = 3, 4, 32
MIXING = 0.4 * torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
START = torch.randn(BATCH, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TS = ps.grids.uniform(0, 3, STEPS)
NOISE = 3e-6  # normals are the same on every device to single precision
NOISY = ps.grids.uniform(0.999, 0.001, STEPS)


def drift(device: torch.device, dtype: torch.dtype = torch.float64) -> Callable[..., torch.Tensor]:
    mixing = MIXING.to(device, dtype)
    return lambda t, y: torch.tanh(y @ mixing) * torch.cos(t) - y


def denoiser(device: torch.device, dtype: torch.dtype = torch.float64) -> ps.Denoiser:
    mixing = MIXING.to(device, dtype)
    schedule = ps.schedules.VP(lambda t: torch.exp(-5 * t))
    return ps.Denoiser(lambda x, t: torch.tanh(x @ mixing) + t[:, None].to(x), schedule, prediction="epsilon")


def sde(device: torch.device, noise: Any = "diagonal") -> ps.SDE:
    def diffusion(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if noise == "diagonal":
            return 0.2 + 0.1 * torch.sin(y)
        if noise == "additive":
            return 0.3 * torch.ones_like(y)
        return torch.stack([0.2 * torch.sin(y), 0.3 * torch.cos(y.roll(1, -1))], -1)

    return ps.SDE(drift(device), diffusion, noise=noise)


def solved(term: Any, device: torch.device, integrator: Any, dtype: torch.dtype = torch.float64, **how: Any) -> Any:
    how = {"batch_dims": 1, "tol": 1e-6, "window": 12} | how
    ts = NOISY if isinstance(term, ps.Denoiser) else TS
    solution = ps.solve(term, START.to(device, dtype), ts, integrator=integrator, **how)
    return solution.ys, solution.stats.rounds, solution.result.name


ITERATIONS = {
    "Picard": ps.Picard(),
    "Secant": ps.Secant(),
    "MultiSecant": ps.MultiSecant(),
    "Exponential": ps.Exponential(),
    "Newton": ps.Newton(),
    "Newton, diagonal": ps.Newton("diagonal"),
    "Newton, hutchinson": ps.Newton("hutchinson"),
    "Anderson": ps.Anderson(),
    "Jacobi": ps.Jacobi(),
    "Parareal": ps.Parareal(),
}


@pytest.mark.parametrize("iteration", ITERATIONS.values(), ids=ITERATIONS)
@pytest.mark.parametrize("integrator", [ps.Euler(), ps.RK4()], ids=["Euler", "RK4"])
def test_odes(integrator, iteration):
    agree(lambda device: solved(ps.ODE(drift(device)), device, integrator, iteration=iteration))


@pytest.mark.parametrize("integrator", [ps.Heun(), ps.BackwardEuler()], ids=["Heun", "BackwardEuler"])
def test_other_steps_of_odes(integrator):
    agree(lambda device: solved(ps.ODE(drift(device)), device, integrator))


@pytest.mark.parametrize("integrator", [ps.ETD1(), ps.ETDRK2(), ps.ETDRK4()], ids=["ETD1", "ETDRK2", "ETDRK4"])
def test_semilinear_odes(integrator):
    def scenario(device: torch.device) -> Any:
        linear = -torch.linspace(0, 20, SIZE, dtype=torch.float64).to(device)
        return solved(ps.SemilinearODE(ps.Diagonal(linear), drift(device)), device, integrator)

    agree(scenario)


@pytest.mark.parametrize("iteration", [None, ps.Picard(), ps.Exponential(), ps.Newton()])
@pytest.mark.parametrize("integrator", [ps.DDIM(), ps.DDIM(eta=0.5), ps.DDPM(), ps.DPMSolver()], ids=repr)
def test_denoisers(integrator, iteration):
    agree(
        lambda device: solved(denoiser(device), device, integrator, iteration=iteration, tol=1e-4),
        rtol=NOISE,
        atol=NOISE,
    )


@pytest.mark.parametrize(
    ("integrator", "noise"),
    [
        *((ps.EulerMaruyama(), noise) for noise in ("diagonal", "additive", "general")),
        *((integrator, "diagonal") for integrator in (ps.Milstein(), ps.SRID2(), ps.StochasticHeun())),
        (ps.SRA1(), "additive"),
    ],
    ids=str,
)
def test_sdes(integrator, noise):
    agree(lambda device: solved(sde(device, noise), device, integrator), rtol=NOISE, atol=NOISE)


@pytest.mark.parametrize("stop", ["error", "residual", "increment"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_stopping_rules_in_every_precision(dtype, stop):
    """Sums are taken in another order there: answers agree to a few roundings."""
    tol, near = (1e-4, 2e-5) if dtype == torch.float32 else (3e-2, 2 * torch.finfo(dtype).eps)
    agree(
        lambda device: solved(ps.ODE(drift(device, dtype)), device, ps.Euler(), dtype, tol=tol, stop=stop), near, near
    )
    agree(lambda device: solved(denoiser(device, dtype), device, ps.DDIM(), dtype, tol=tol, stop=stop), near, near)


GUESSES = {
    "Copy": lambda device: ps.Copy(),
    "FrozenOutput": lambda device: ps.FrozenOutput(),
    "Polynomial": lambda device: ps.Polynomial(),
    "FromTrajectory": lambda device: ps.FromTrajectory(START.to(device).repeat(STEPS + 1, 1, 1)),
    "a function": lambda device: lambda ts, y: y.expand(len(ts), *y.shape) * torch.exp(-ts).to(y)[:, None, None],
}


@pytest.mark.parametrize("guess", GUESSES.values(), ids=GUESSES)
def test_guesses(guess):
    agree(lambda device: solved(ps.ODE(drift(device)), device, ps.Euler(), guess=guess(device)))


def test_the_guess_of_a_sample():
    agree(
        lambda device: solved(denoiser(device), device, ps.DDPM(), guess=ps.FrozenSample(), tol=1e-4),
        rtol=NOISE,
        atol=NOISE,
    )


def test_samples_that_part_ways_and_one_that_fails():
    """One is easy, one is hard, and the drift of one is NaN from a time on."""

    def scenario(device: torch.device) -> Any:
        y0 = torch.tensor([[0.01], [3.0], [5.0]], dtype=torch.float64).to(device)
        term = ps.ODE(lambda t, y: torch.where((y > 4) & (t > 1), torch.nan, torch.sin(3 * y)))
        how = {"integrator": ps.Euler(), "iteration": ps.Secant(), "batch_dims": 1, "window": 12, "tol": 1e-6}
        sol = ps.solve(term, y0, TS, throw=False, **how)
        return sol.ys, sol.stats.rounds, sol.result.name

    ys, _, result = agree(scenario)
    assert result == "nonfinite"
    assert ys[:, :2].isfinite().all()
    assert ys[-1, 2].isnan().all()


def test_the_automatic_window():
    """Its width follows the clock: answers are compared to the tolerance, rounds are not."""

    def scenario(device: torch.device) -> Any:
        return solved(ps.ODE(drift(device)), device, ps.RK4(), window="auto", tol=1e-9)[0]

    agree(scenario, rtol=1e-7, atol=1e-7)


def test_arguments_and_conditions_of_samples():
    def scenario(device: torch.device) -> Any:
        rates = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).to(device)
        term = ps.ODE(lambda t, y, rate: -rate[:, None] * y)
        schedule = ps.schedules.VP(lambda t: torch.exp(-5 * t))
        model = ps.Denoiser(lambda x, t, scale: torch.tanh(x) * scale[:, None], schedule, prediction="epsilon")
        of_args = solved(term, device, ps.RK4(), args=(rates,), max_batch=8)
        return of_args, solved(model, device, ps.DDIM(), cond={"scale": rates}, tol=1e-4)

    agree(scenario)


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_structured_states_and_tolerances_by_component(batch_dims):
    def scenario(device: torch.device) -> Any:
        start = START.to(device)
        y0 = {"q": start[:, :2], "p": (start[:, 2:],)}
        term = ps.ODE(lambda t, y: {"q": y["p"][0], "p": (-torch.sin(y["q"]),)})
        scale = torch.logspace(-6, -5, 2, dtype=torch.float64).expand_as(START[:, :2]).to(device)
        how = {"rtol": 1e-5, "atol": {"q": scale, "p": (1e-6 if not batch_dims else scale,)}, "batch_dims": batch_dims}
        sol = ps.solve(term, y0, TS, integrator=ps.RK4(), window=12, **how)
        return sol.ys, sol.stats.rounds

    agree(scenario)


def test_tolerances_of_samples_and_the_last_state_only():
    def scenario(device: torch.device) -> Any:
        tol = torch.tensor([1e-3, 1e-6, 1e-9])
        return solved(ps.ODE(drift(device)), device, ps.Euler(), tol=tol, save="last")

    agree(scenario)


def test_complex_states():
    def scenario(device: torch.device) -> Any:
        y0 = torch.tensor([1.0 + 0.5j, 0.3j], dtype=torch.complex128).to(device)
        return ps.solve(ps.ODE(lambda t, y: 1j * y * y.abs()), y0, TS, integrator=ps.RK4(), tol=1e-8).ys

    agree(scenario)


def test_the_sequential_solver():
    def scenario(device: torch.device) -> Any:
        term, y0 = denoiser(device), START.to(device)
        return ps.sequential(term, y0, NOISY, integrator=ps.DDPM()).ys, ps.sequential(
            ps.ODE(drift(device)), y0, TS, integrator=ps.RK4(), save="last"
        ).ys

    agree(scenario, rtol=NOISE, atol=NOISE)


def test_certificates():
    """The numbers of a certificate are the host's, whatever device the states are on."""

    def scenario(device: torch.device) -> Any:
        how = {"integrator": ps.Euler(), "batch_dims": 1, "window": 12, "tol": 1e-5}
        certificate = ps.solve(ps.ODE(drift(device)), START.to(device), TS, **how).certificate
        others = certificate.recheck(), certificate.certified(2.0)
        verified = certificate.verify()
        return [[each.error.tolist(), each.bound.tolist(), str(each)] for each in (certificate, *others)], str(verified)

    agree(scenario)
