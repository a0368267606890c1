"""Fit a continuous normalising flow to two moons, with picardsolve and with torchdiffeq, and time both.

A network moves points of a plane from time 0, where they are normal, to time 1, where they are the data. The log
density of a point is that of where it came from, minus what the flow's divergence made of it on the way
(`picardsolve.divergence`, the exact trace). Everything but the solver is the same: drift, initial weights, optimiser,
batches, tolerance, number of steps. The solvers take turns, one step of the optimiser each, so that whatever else the
machine does slows both.

    pip install picardsolve[dev,examples]
    python examples/two_moons.py --out docs/images
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torchdiffeq
from matplotlib.figure import Figure
from sklearn.datasets import make_moons
from torch import Tensor, nn

import picardsolve as ps

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
BATCH, NOISE = 64, 0.08
EDGE, CELLS = 3.2, 64  # of the plane where the density is drawn, in standard deviations of the data

State = tuple[Tensor, Tensor]
Solver = Callable[[Callable[..., Any], State, Tensor], State]


class Velocity(nn.Module):
    """``dy/dt`` of points ``(..., 2)``, at one time or one for each row."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
        self.layers = nn.Sequential(*layers)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """In the shape of y."""
        return self.layers(torch.cat([y, t.to(y).expand(*y.shape[:-1], 1)], -1))


def by_picardsolve(flow: Callable[..., Any], state: State, t: Tensor) -> State:
    """The points and their log densities at the times."""
    return ps.odeint(flow, state, t, options={"vectorized": True}, **TOLERANCE)


def by_torchdiffeq(flow: Callable[..., Any], state: State, t: Tensor) -> State:
    """The same."""
    return torchdiffeq.odeint(flow, state, t, **TOLERANCE)


def log_density(velocity: nn.Module, solver: Solver, x: Tensor) -> Tensor:
    """``(B,)``: of data ``(B, 2)``, solved back to where it came from."""
    ys, logps = solver(ps.divergence(velocity), (x, torch.zeros(len(x))), torch.tensor([1.0, 0.0]))
    return -0.5 * ys[-1].square().sum(-1) - math.log(2 * math.pi) - logps[-1]


@dataclass
class Fit:
    """A network under training, and what it cost so far."""

    name: str
    solver: Solver
    velocity: nn.Module = field(default_factory=Velocity)
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self):
        self.optimiser = torch.optim.Adam(self.velocity.parameters(), lr=2e-2)

    def step(self, batch: Tensor) -> None:
        """One step of the optimiser: the loss is the mean of minus the log densities."""
        begin = perf_counter()
        loss = -log_density(self.velocity, self.solver, batch).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.losses.append(loss.item())
        self.seconds.append(perf_counter() - begin + (self.seconds[-1] if self.seconds else 0.0))


def moons(count: int, seed: int) -> Tensor:
    """Points ``(count, 2)``, with mean 0 and deviation 1 in both directions (of many points)."""
    points, _ = make_moons(count, noise=NOISE, random_state=seed)
    return ((torch.from_numpy(points) - torch.tensor([0.5, 0.25])) / torch.tensor([0.87, 0.5])).float()


def plane() -> Tensor:
    """The middles of the cells of the plane, ``(CELLS ** 2, 2)``."""
    middles = EDGE * (2 * torch.arange(CELLS) + 1 - CELLS) / CELLS
    return torch.cartesian_prod(middles, middles)


@torch.no_grad()
def densities(fit: Fit) -> Tensor:
    """``(CELLS, CELLS)``: of the plane."""
    parts = [log_density(fit.velocity, fit.solver, part).exp() for part in plane().split(1024)]
    return torch.cat(parts).reshape(CELLS, CELLS)


@torch.no_grad()
def samples(fit: Fit, count: int) -> Tensor:
    """Points ``(count, 2)``: normal ones, carried along the flow."""
    start = torch.randn(count, 2, generator=torch.Generator().manual_seed(1))
    return ps.odeint(fit.velocity, start, torch.tensor([0.0, 1.0]), options={"vectorized": True}, **TOLERANCE)[-1]


def picture(fits: list[Fit], density: Tensor, held_out: Tensor) -> Figure:
    """Losses over the clock, the density with data that was held out, and samples."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for fit in fits:
        left.plot(fit.seconds, fit.losses, label=fit.name, linewidth=1)
    left.set(xlabel="seconds of training", ylabel="minus the log density of a batch")
    left.legend()
    middle.imshow(density.T.numpy(), extent=(-EDGE, EDGE, -EDGE, EDGE), origin="lower", cmap="Blues")
    middle.plot(*held_out[:200].T.numpy(), ".", color="C1", markersize=2)
    middle.set(title="density, and data that was held out")
    right.plot(*samples(fits[0], 1000).T.numpy(), ".", color="C0", markersize=2)
    right.set(title="samples", xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), aspect="equal")
    return figure


def main() -> None:
    """Train with each solver, print and draw what it took and what it gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, help="folder for the picture")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, held_out = moons(given.steps * BATCH, seed=0), moons(1000, seed=1)
    solvers = {"picardsolve": by_picardsolve, "torchdiffeq": by_torchdiffeq}
    fits = [Fit(*pair) for pair in solvers.items()]
    for pair in solvers.items():  # what is loaded at a first call is nobody's
        Fit(*pair).step(data[:BATCH])
    for step, batch in enumerate(data[torch.randperm(len(data))].split(BATCH), 1):
        for fit in fits:
            fit.step(batch)
        if step % 25 == 0:
            said = (f"{fit.name} {fit.losses[-1]:.4f} after {fit.seconds[-1]:.1f} s" for fit in fits)
            print(f"step {step}:", *said, sep="   ", flush=True)
    for fit in fits:
        with torch.no_grad():
            mean = log_density(fit.velocity, fit.solver, held_out).mean()
        print(f"{fit.name}: log-likelihood {mean:.4f} of data that was held out, {fit.seconds[-1]:.1f} s of training")
    density = densities(fits[0])
    print(f"the density adds up to {density.sum() * (2 * EDGE / CELLS) ** 2:.4f} over the plane")
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        picture(fits, density, held_out).savefig(given.out / "two_moons.png", dpi=110)


if __name__ == "__main__":
    main()
