"""`odeint`, `sdeint`, collocation, gradients and forecasts on a device that is not the host's: the same answers."""

from typing import Any

import pytest
import torch
import torchsde
from diffusers import DDPMScheduler
from simulated_device import agree
from torch import Tensor

import picardsolve as ps
from picardsolve.integrations.policies import ParallelPolicy
from picardsolve.integrations.torchsde import sdeint

START = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NOISE = 3e-6  # normals are the same on every device to single precision
TIMES = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[..., 1], -torch.sin(y[..., 0])], -1)


def stiff(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[..., 1], 200 * ((1 - y[..., 0] ** 2) * y[..., 1]) - y[..., 0]], -1)


METHODS: tuple[str | None, ...] = (None, "picard", "secant", "newton", "rk4")


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_odeint(method, vectorized):
    def scenario(device: torch.device) -> Any:
        options: dict[str, Any] = {"vectorized": vectorized}
        if method == "rk4":
            options["step_size"] = 0.1
        return ps.odeint(pendulum, START.to(device), TIMES.to(device), method=method, options=options)

    agree(scenario)


@pytest.mark.parametrize("probes", [None, 2])
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_log_densities(batch_dims, probes):
    def scenario(device: torch.device) -> Any:
        y0 = START.to(device), torch.zeros(3, dtype=torch.float64).to(device)
        given = {"integrator": ps.Collocation(), "batch_dims": batch_dims}
        return ps.solve(ps.ODE(ps.divergence(pendulum, probes=probes)), y0, TIMES, **given).ys

    agree(scenario)


def test_odeint_of_structures_and_events():
    def scenario(device: torch.device) -> Any:
        y0 = START[:, 0].to(device), START[:, 1].to(device)
        states = ps.odeint(lambda t, y: (y[1], -y[0]), y0, TIMES.to(device), rtol=(1e-8, 1e-7), atol=1e-9)
        start = torch.tensor([1.0, 0.0], dtype=torch.float64).to(device)
        event = ps.odeint(
            pendulum, start, TIMES[:2].to(device), event_fn=lambda t, y: y[..., 0], options={"vectorized": True}
        )
        return states, event[1], event[0].to(device)

    agree(scenario)


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_collocation(batch_dims):
    """States, dense output, events of samples, and what the certificate says, which is less than a tolerance."""

    def scenario(device: torch.device) -> Any:
        how: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-9, "batch_dims": batch_dims}
        sol = ps.solve(
            ps.ODE(pendulum),
            START.to(device),
            TIMES,
            integrator=ps.Collocation(),
            events=(lambda t, y: y[..., 0]) if batch_dims else None,
            **how,
        )
        seen = [[each.ts.to(device) for each in of_sample] for of_sample in sol.events]
        between = sol(torch.tensor([0.3, 1.7], dtype=torch.float64))
        return sol.ys, between, seen, sol.stats.rounds, sol.certificate.error.to(device)

    agree(scenario)


def test_collocation_of_a_stiff_system():
    def scenario(device: torch.device) -> Any:
        y0 = torch.tensor([2.0, 0.0], dtype=torch.float64).to(device)
        sol = ps.solve(ps.ODE(stiff), y0, [0.0, 5.0], integrator=ps.Collocation(), rtol=1e-6, atol=1e-8)
        return sol.ys, sol.stats.rounds

    agree(scenario, rtol=1e-7, atol=1e-7)


SINGLE = {"rtol": 1e-5, "atol": 1e-6}  # normals are the same to single precision


class Equation:
    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, device: torch.device, interpretation: str = "ito"):
        self.sde_type, self.rate = interpretation, torch.tensor(0.7, dtype=torch.float64).to(device)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(y) - self.rate * y * t

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rate * torch.cos(y) + 0.1 * t


@pytest.mark.parametrize("method", ["euler", "milstein", "srk", "heun", "midpoint"])
def test_sdeint(method):
    def scenario(device: torch.device) -> Any:
        equation = Equation(device, "stratonovich" if method in ("heun", "midpoint") else "ito")
        return ps.sdeint(equation, START.to(device), TIMES.to(device), method=method, dt=0.1)

    agree(scenario, rtol=NOISE, atol=NOISE)


def gradients_of(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of)


@pytest.mark.parametrize("integrator", [ps.Collocation(), ps.RK4(), ps.Euler()], ids=repr)
def test_gradients_of_odes(integrator):
    def scenario(device: torch.device) -> Any:
        rate = torch.tensor(0.7, dtype=torch.float64).to(device).requires_grad_()
        y0 = START.to(device).requires_grad_()
        ts = TIMES if integrator.adaptive else ps.grids.uniform(0, 2, 20)
        sol = ps.solve(
            ps.ODE(lambda t, y: rate * pendulum(t, y)), y0, ts, integrator=integrator, tol=1e-9, batch_dims=1
        )
        return gradients_of(sol.ys[-1].square().sum(), y0, rate)

    agree(scenario, rtol=1e-7)


def test_gradients_of_sdes():
    def scenario(device: torch.device) -> Any:
        equation, y0 = Equation(device), START.to(device).requires_grad_()
        equation.rate.requires_grad_()
        ys = ps.sdeint(equation, y0, TIMES, method="milstein", dt=0.1)
        return gradients_of(ys[-1].square().sum(), y0, equation.rate)

    agree(scenario, rtol=NOISE, atol=NOISE)


def test_the_forecast():
    """Its times are the clock's; what it predicts of rounds is compared."""

    def scenario(device: torch.device) -> Any:
        found = ps.analyze(ps.ODE(pendulum), START.to(device), ps.grids.uniform(0, 4, 64), integrator=ps.Euler())
        return found.calls

    agree(scenario)


def test_noise_of_torchsde():
    """Its interval is on the host, where this process draws for both devices; increments go to the states."""

    def scenario(device: torch.device) -> Any:
        bm = torchsde.BrownianInterval(0.0, 2.5, size=(3, 2), dtype=torch.float64, entropy=5)
        return sdeint(Equation(device), START.to(device), TIMES, bm=bm, method="euler", dt=0.1)

    agree(scenario)


PRESETS = {
    name: getattr(ps.presets, name) for name in ("paradigms", "parasolver", "parataa", "deq", "quasi_deer", "srds")
}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_published_methods(preset):
    def scenario(device: torch.device) -> Any:
        schedule = ps.schedules.VP(lambda t: torch.exp(-5 * t))
        model = ps.Denoiser(lambda x, t: torch.tanh(x), schedule, prediction="epsilon")
        ts = ps.grids.uniform(0.999, 0.001, 25)
        sol = ps.solve(model, START.to(device), ts, integrator=ps.DDIM(), **preset())
        return sol.ys, sol.stats.rounds

    agree(scenario)


def test_a_score_as_a_reverse_sde():
    def scenario(device: torch.device) -> Any:
        schedule = ps.schedules.VP(lambda t: torch.exp(-5 * t))
        term, ts = ps.reverse_sde(lambda x, t: -x, schedule, start=0.9, end=0.05, steps=24)
        return ps.solve(term, START.to(device), ts, integrator=ps.EulerMaruyama(), batch_dims=1, tol=1e-6).ys

    agree(scenario, **SINGLE)


@pytest.mark.usefixtures("nothing_is_decided_by_the_clock")
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_plans_of_robots():
    """The second plan starts from the first."""

    def scenario(device: torch.device) -> Any:
        scheduler = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
        scheduler.set_timesteps(12)

        def model(x: Tensor, t: Tensor, seen: Tensor) -> Tensor:
            return torch.tanh(0.3 * x + seen[:, None] + t[:, None, None] / 100)

        policy = ParallelPolicy(model, scheduler, (6, 2), tol=1e-5, executed=2, dtype=torch.float64)
        policy.reset(generator=torch.Generator().manual_seed(0))  # "meta" has no generators of its own
        plans = [policy.plan(START.to(device) * scale) for scale in (0.5, 0.6)]
        return [(plan.actions, plan.rounds) for plan in plans]

    agree(scenario, rtol=1e-6, atol=1e-6)
