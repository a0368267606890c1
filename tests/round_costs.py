"""The paths of the library whose rounds are counted and timed, and what a round of each costs beside the drift.

A round is what happens from one drift call to the same call of the next round (Runge-Kutta's stages are in it): a
sweep, the test, the slide, the guess, and the rows of the next round. The beginning and the end of a solve are not
in it, nor is anything that the drift and the diffusion do themselves.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from simulated_device import DEVICE, HOST, SimulatedDevice
from tally import Tally
from torch import Tensor

import picardsolve as ps

Drift = Callable[[Tensor, Tensor], Tensor]
SIZE = 16
SKIPPED, ROUNDS = 4, 10  # rounds: until the window is full and the iteration has its memory, and all that are run
WINDOWS = 64  # length of the grid, in windows


@dataclass(frozen=True)
class Path:
    """An integrator with an iteration.

    Attributes:
        name: such as "RK4, Picard".
        term: what is solved, from a drift, and from what the diffusion is wrapped in.
        integrator: its steps.
        iteration: how it is iterated; None for the default.
        stages: drift calls in a round.
        times: where the grid begins and ends.
    """

    name: str
    term: Callable[[Drift, Callable[[Drift], Drift]], Any]
    integrator: Any
    iteration: Any = None
    stages: int = 1
    times: tuple[float, float] = (0.0, 60.0)

    def solve(
        self, width: int, y0: Tensor, drift: Drift, apart: Callable[[Drift], Drift], rounds: int = ROUNDS
    ) -> None:
        """A few rounds of a window, on a grid that is much longer."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ps.ConvergenceWarning)
            ps.solve(
                self.term(drift, apart),
                y0,
                ps.grids.uniform(*self.times, WINDOWS * width),
                integrator=self.integrator,
                iteration=self.iteration,
                window=width,
                batch_dims=1,
                tol=1e-4,
                max_rounds=rounds * self.stages,
                throw=False,
            )


def _ode(drift: Drift, apart: Callable[[Drift], Drift]) -> ps.ODE:
    return ps.ODE(drift)


def _sde(drift: Drift, apart: Callable[[Drift], Drift]) -> ps.SDE:
    return ps.SDE(drift, apart(lambda t, y: 0.1 + 0.1 * torch.sin(y)), noise="diagonal")


def _denoiser(drift: Drift, apart: Callable[[Drift], Drift]) -> ps.Denoiser:
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


def problem(batch: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Initial states, and a matrix that mixes their numbers."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(size, size, generator=generator) * 1.2 / size**0.5
    return torch.randn(batch, size, generator=generator).to(device), mixing.to(device)


def rounds_of(path: Path, width: int, batch: int, size: int = SIZE) -> list[Tally]:
    """What the rounds of a solve counted, from the fifth on."""
    seen: list[Tally] = []
    with SimulatedDevice() as device:
        y0, mixing = problem(batch, size, DEVICE)

        def drift(t: Tensor, y: Tensor) -> Tensor:
            seen.append(Tally(device.tally))
            with device.apart():
                return torch.tanh(y @ mixing) - 0.5 * y

        path.solve(width, y0, drift, device.counted_apart)
    starts = seen[:: path.stages]
    return [after.since(before) for before, after in zip(starts[SKIPPED:], starts[SKIPPED + 1 :], strict=False)]


def seconds_of(
    path: Path,
    width: int,
    batch: int,
    size: int,
    device: torch.device = HOST,
    finish: Callable[[], None] = lambda: None,
) -> list[float]:
    """Seconds that the rounds of a solve took beside the drift and the diffusion, from the fifth on.

    ``finish`` waits for the device, before and after the drift.
    """
    y0, mixing = problem(batch, size, device)
    inside, starts = 0.0, []

    def apart(function: Drift) -> Drift:
        def called(t: Tensor, y: Tensor) -> Tensor:
            nonlocal inside
            start = time.perf_counter()
            out = function(t, y)
            finish()
            inside += time.perf_counter() - start
            return out

        return called

    def drift(t: Tensor, y: Tensor) -> Tensor:
        finish()
        starts.append(time.perf_counter() - inside)
        return apart(lambda t, y: torch.tanh(y @ mixing) - 0.5 * y)(t, y)

    path.solve(width, y0, drift, apart)
    begun = starts[:: path.stages]
    return [after - before for before, after in zip(begun[SKIPPED:], begun[SKIPPED + 1 :], strict=False)]
