"""What `ps.analyze` expects, beside what a solve then takes: the table of ``docs/how-it-works.md``.

``python tests/benchmarks/forecasts.py`` takes a few minutes on one core; with a word, only the problems that have it
in their names.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mixture
import torch
from diffusers import DDPMPipeline
from diffusers.utils import logging
from torch import Tensor

import picardsolve as ps

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
Problem = tuple[Any, Tensor, Tensor, dict[str, Any]]


def pendulums(t: Tensor, y: Tensor) -> Tensor:
    """Sixteen pendulums on a ring, each coupled to its neighbours."""
    angle, speed = y.chunk(2, -1)
    pull = torch.roll(angle, 1, -1) + torch.roll(angle, -1, -1) - 2 * angle
    return torch.cat([speed, 0.5 * pull - torch.sin(angle)], -1)


def predator(t: Tensor, y: Tensor) -> Tensor:
    """Lotka and Volterra's predators and prey."""
    prey, hunter = y.chunk(2, -1)
    return torch.cat([1.5 * prey - prey * hunter, prey * hunter - 3 * hunter], -1)


def van_der_pol(mu: float) -> Callable[[Tensor, Tensor], Tensor]:
    """An oscillator that relaxes: slow stretches, then fast ones where mu is large."""

    def drift(t: Tensor, y: Tensor) -> Tensor:
        x, v = y.chunk(2, -1)
        return torch.cat([v, mu * (1 - x**2) * v - x], -1)

    return drift


def lorenz(t: Tensor, y: Tensor) -> Tensor:
    """Lorenz' chaotic system."""
    a, b, c = y.unbind(-1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


def coupled(t: Tensor, y: Tensor) -> Tensor:
    """Sixteen elements on a ring, each in a double well."""
    return y - y**3 + torch.roll(y, 1, -1) + torch.roll(y, -1, -1) - 2 * y


def _state(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def odes() -> Iterator[tuple[str, Problem]]:
    """Tolerance 1e-5."""
    start = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, drift, y0, end, steps, integrator in (
        ("16 pendulums, RK4, 500", pendulums, start, 10.0, 500, ps.RK4()),
        ("16 pendulums, Euler, 1000", pendulums, start, 10.0, 1000, ps.Euler()),
        ("Lotka-Volterra, RK4, 1000", predator, _state(3, 2), 10.0, 1000, ps.RK4()),
        ("Van der Pol, mu = 1, RK4, 1000", van_der_pol(1), _state(2, 0), 20.0, 1000, ps.RK4()),
        ("Van der Pol, mu = 5, RK4, 2000", van_der_pol(5), _state(2, 0), 20.0, 2000, ps.RK4()),
        ("Lorenz to t = 5, RK4, 1000", lorenz, _state(1, 1, 20), 5.0, 1000, ps.RK4()),
        ("y' = -200 y, Euler, 1000", lambda t, y: -200 * y, start, 1.0, 1000, ps.Euler()),
        ("y' = -y, Euler, 1000", lambda t, y: -y, start, 1.0, 1000, ps.Euler()),
    ):
        yield name, (ps.ODE(drift), y0, ps.grids.uniform(0, end, steps), {"integrator": integrator, "tol": 1e-5})


def sdes() -> Iterator[tuple[str, Problem]]:
    """Tolerance 1e-3."""
    start = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, term, y0, end in (
        ("Ornstein-Uhlenbeck", ps.SDE(lambda t, y: -y, lambda t, y: 0.5 * torch.ones_like(y), "additive"), start, 4.0),
        ("geometric Brownian motion", ps.SDE(lambda t, y: 0.1 * y, lambda t, y: 0.3 * y), 1 + start.abs(), 2.0),
        ("the same, more noise", ps.SDE(lambda t, y: 0.1 * y, lambda t, y: 0.5 * y), 1 + start.abs(), 10.0),
        ("coupled, additive", ps.SDE(coupled, lambda t, y: 0.5 * torch.ones_like(y), "additive"), start, 10.0),
        ("coupled, weak multiplicative", ps.SDE(coupled, lambda t, y: 0.2 * y), start, 10.0),
        ("coupled, strong multiplicative", ps.SDE(coupled, lambda t, y: 0.8 * y), start, 10.0),
    ):
        yield (
            f"{name}, 1000",
            (term, y0, ps.grids.uniform(0, end, 1000), {"integrator": ps.EulerMaruyama(), "tol": 1e-3}),
        )


def denoisers() -> Iterator[tuple[str, Problem]]:
    """Tolerance 1e-2."""
    x = torch.randn(4, mixture.DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for integrator, steps in ((ps.DDIM(), 100), (ps.DDPM(), 100), (ps.DDPM(), 1000)):
        name = f"mixture {type(integrator).__name__}-{steps}"
        yield name, (mixture.denoiser(), x, mixture.grid(steps), {"integrator": integrator, "tol": 1e-2})
    logging.set_verbosity_error()
    unet = DDPMPipeline.from_pretrained(DIGITS).unet.eval()
    model = ps.Denoiser(
        lambda x, t: unet(x, t.round().long()).sample, ps.schedules.from_betas(torch.linspace(1e-4, 0.02, 1000))
    )
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    leading, every = ps.grids.given([*range(990, -1, -10), -1]), ps.grids.uniform(999, -1, 1000)
    yield "digits DDIM-100", (model, x, leading, {"integrator": ps.DDIM(), "tol": 1e-2})
    yield "digits DDPM-1000", (model, x, every, {"integrator": ps.DDPM(), "tol": 1e-2})


def compare(name: str, problem: Problem) -> None:
    """A row: expected over true rounds of each width, of `MultiSecant` / `Picard` for denoisers.

    "?" where the analysis does not vouch for it. Then the analysis' calls and evaluations over the sequential solver's.
    """
    term, y0, ts, how = problem
    steps, samples = len(ts) - 1, len(y0) if isinstance(term, ps.Denoiser) else 1
    stages = 4 if isinstance(how["integrator"], ps.RK4) else 1
    cells: dict[int, list[str]] = {width: [] for width in (8, 32, min(128, steps), steps)}
    for iteration in (None, ps.Picard()) if isinstance(term, ps.Denoiser) else (None,):
        analysis = ps.analyze(term, y0, ts, iteration=iteration, **how)
        for row in analysis.table:
            if row.width in cells:
                with patch("picardsolve.certificate.sharpening.measurable", return_value=False):
                    solution = ps.solve(term, y0, ts, window=row.width, iteration=iteration, throw=False, **how)
                cells[row.width].append(
                    f"{row.rounds / len(solution.history) / stages:.2f}" + " ?" * (not row.reliable)
                )
    shares = f"{analysis.calls / steps / stages:.0%} | {analysis.evaluations / steps / stages / samples:.2f}"
    print(f"| {name} | {' | '.join(map(' / '.join, cells.values()))} | {shares} |", flush=True)


@torch.no_grad()
def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| problem, steps | w = 8 | w = 32 | w = 128 (100) | w = N | calls | evaluations |")
    print("|---|---|---|---|---|---|---|")
    for make in (odes, sdes, denoisers):
        for name, problem in make():
            if all(word in name for word in sys.argv[1:]):
                compare(name, problem)


if __name__ == "__main__":
    main()
