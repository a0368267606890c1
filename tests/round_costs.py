"""What one round of each default path costs a device beside the drift, on the simulated one.

A round is what happens from one drift call to the same call of the next round (Runge-Kutta's stages are in it): a
sweep, the test, the slide, the guess, and the rows of the next round. The beginning and the end of a solve are not
in it, nor is anything that the drift and the diffusion do themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from simulated_device import DEVICE, SimulatedDevice
from tally import Tally
from torch import Tensor

import picardsolve as ps

Drift = Callable[[Tensor, Tensor], Tensor]
SIZE = 16
SKIPPED, ROUNDS = 4, 12  # rounds: until the window is full and the iteration has its memory, and all that are run
WINDOWS = 64  # length of the grid, in windows


@dataclass(frozen=True)
class Path:
    """An integrator with an iteration.

    Attributes:
        name: such as "RK4, Picard".
        term: what is solved, from a drift.
        integrator: its steps.
        iteration: how it is iterated; None for the default.
        stages: drift calls in a round.
        times: where the grid begins and ends.
    """

    name: str
    term: Callable[[SimulatedDevice, Drift], Any]
    integrator: Any
    iteration: Any = None
    stages: int = 1
    times: tuple[float, float] = (0.0, 60.0)


def _ode(device: SimulatedDevice, drift: Drift) -> ps.ODE:
    return ps.ODE(drift)


def _sde(device: SimulatedDevice, drift: Drift) -> ps.SDE:
    return ps.SDE(drift, device.counted_apart(lambda t, y: 0.1 + 0.1 * torch.sin(y)), noise="diagonal")


def _denoiser(device: SimulatedDevice, drift: Drift) -> ps.Denoiser:
    return ps.Denoiser(lambda x, t: drift(t, x), ps.schedules.VP(lambda t: torch.exp(-5 * t)), prediction="epsilon")


_SAMPLING = (0.999, 0.001)
PATHS = {
    path.name: path
    for path in (
        Path("Euler, Picard", _ode, ps.Euler(), ps.Picard()),
        Path("Euler, Secant", _ode, ps.Euler(), ps.Secant()),
        Path("Euler, MultiSecant", _ode, ps.Euler(), ps.MultiSecant()),
        Path("Euler, Newton", _ode, ps.Euler(), ps.Newton()),
        Path("RK4, Picard", _ode, ps.RK4(), ps.Picard(), 4),
        Path("RK4, Secant", _ode, ps.RK4(), ps.Secant(), 4),
        Path("RK4, MultiSecant", _ode, ps.RK4(), ps.MultiSecant(), 4),
        Path("RK4, Newton", _ode, ps.RK4(), ps.Newton(), 4),
        Path("DDIM, MultiSecant", _denoiser, ps.DDIM(), None, times=_SAMPLING),
        Path("DDIM, Picard", _denoiser, ps.DDIM(), ps.Picard(), times=_SAMPLING),
        Path("DDPM, MultiSecant", _denoiser, ps.DDPM(), None, times=_SAMPLING),
        Path("DPMSolver, MultiSecant", _denoiser, ps.DPMSolver(), None, times=_SAMPLING),
        Path("EulerMaruyama, Secant", _sde, ps.EulerMaruyama()),
        Path("Milstein, Secant", _sde, ps.Milstein()),
    )
}


def rounds_of(path: Path, width: int, batch: int, size: int = SIZE) -> list[Tally]:
    """What the rounds of a solve counted, from the fifth on."""
    seen: list[Tally] = []
    with SimulatedDevice() as device:
        generator = torch.Generator().manual_seed(0)
        mixing = (0.3 * torch.randn(size, size, generator=generator)).to(DEVICE)
        y0 = torch.randn(batch, size, generator=generator).to(DEVICE)

        def drift(t: Tensor, y: Tensor) -> Tensor:
            seen.append(Tally(device.tally))
            with device.apart():
                return torch.tanh(y @ mixing) - 0.5 * y

        ps.solve(
            path.term(device, drift),
            y0,
            ps.grids.uniform(*path.times, WINDOWS * width),
            integrator=path.integrator,
            iteration=path.iteration,
            window=width,
            batch_dims=1,
            tol=1e-4,
            max_rounds=ROUNDS * path.stages,
            throw=False,
        )
    starts = seen[:: path.stages]
    return [after.since(before) for before, after in zip(starts[SKIPPED:], starts[SKIPPED + 1 :], strict=False)]
