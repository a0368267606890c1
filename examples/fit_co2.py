"""Fit a small neural ODE to the carbon dioxide over Mauna Loa, with picardsolve and with torchdiffeq, and time both.

The state is the concentration, its slope a network of it and of the time of the year. Four windows of ten years start
from what was observed, and are fitted together, month by month. Everything but the solver is the same: network, initial
weights, optimiser, data and tolerance, torchdiffeq's default. The solvers take turns, one step of the optimiser each,
so that whatever else the machine does slows all of them.

    pip install picardsolve[dev,examples]
    python examples/fit_co2.py --out docs/images
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import statsmodels.api as sm
import torch
import torchdiffeq
from matplotlib.figure import Figure
from torch import Tensor, nn

import picardsolve as ps

TOLERANCE = {"rtol": 1e-7, "atol": 1e-9}  # torchdiffeq's defaults
YEARS, FIRST = 10, 1960  # of a window, of the first
SAME = 1 + 1e-4  # losses whose ratio is below this

Solver = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Slope(nn.Module):
    """``dy/dt`` of a standardised concentration, ``(..., 1)``; time in years."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
        self.layers = nn.Sequential(*layers).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """For one time or one for each row."""
        season = torch.cat([torch.sin(2 * torch.pi * t.reshape(-1, 1)), torch.cos(2 * torch.pi * t.reshape(-1, 1))], -1)
        return self.layers(torch.cat([y, season.expand(len(y), 2)], -1))


def by_picardsolve(slope: nn.Module, y0: Tensor, t: Tensor) -> Tensor:
    """States ``(T, windows, 1)``."""
    return ps.solve(ps.ODE(slope), y0, t, integrator=ps.Collocation(), batch_dims=1, **TOLERANCE).ys


def by_torchdiffeq(method: str) -> Solver:
    """The same."""
    return lambda slope, y0, t: torchdiffeq.odeint(slope, y0, t, method=method, **TOLERANCE)


@dataclass
class Fit:
    """A network under training, and what it cost so far."""

    name: str
    solver: Solver
    slope: nn.Module = field(default_factory=Slope)
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self):
        self.optimiser = torch.optim.Adam(self.slope.parameters(), lr=1e-2)

    def step(self, t: Tensor, windows: Tensor) -> None:
        """One step of the optimiser, on all windows."""
        begin = perf_counter()
        loss = (self.solver(self.slope, windows[0], t) - windows).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.losses.append(loss.item())
        self.seconds.append(perf_counter() - begin + (self.seconds[-1] if self.seconds else 0.0))

    def reached(self, loss: float) -> float:
        """Seconds until its loss was the same or lower."""
        return next((s for s, own in zip(self.seconds, self.losses, strict=True) if own <= SAME * loss), float("inf"))


def observations() -> tuple[Tensor, Tensor, Tensor]:
    """Windows ``(months, windows, 1)`` of standardised monthly means; their mean and standard deviation in ppm."""
    monthly = sm.datasets.co2.load_pandas().data["co2"].resample("MS").mean().interpolate()
    ppm = torch.tensor(monthly[f"{FIRST}-01" :].to_numpy())
    mean, deviation = ppm.mean(), ppm.std()
    months = 12 * YEARS + 1
    return ((ppm - mean) / deviation).unfold(0, months, months - 1).T[..., None], mean, deviation


def picture(fits: list[Fit], windows: Tensor, t: Tensor, mean: Tensor, deviation: Tensor) -> Figure:
    """Losses over the clock, and the fit."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 2])
    for fit in fits:
        left.plot(fit.seconds, fit.losses, label=fit.name)
    left.set(xlabel="seconds of training", ylabel="mean squared error", xscale="log", yscale="log")
    left.legend()
    with torch.no_grad():
        ys = by_picardsolve(fits[0].slope, windows[0], t)
    for i in range(windows.shape[1]):
        years = FIRST + i * YEARS + t
        right.plot(years, windows[:, i] * deviation + mean, ".", color="grey", markersize=3)
        right.plot(years, ys[:, i] * deviation + mean, color="C0", linewidth=1)
    right.set(xlabel="year", ylabel="CO2 over Mauna Loa, ppm", title="four windows, each solved from its first month")
    return figure


def main() -> None:
    """Train with each solver, print and draw what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=125)
    parser.add_argument("--out", type=Path, help="folder for the picture")
    given = parser.parse_args()
    torch.set_num_threads(1)
    windows, mean, deviation = observations()
    t = torch.arange(len(windows), dtype=torch.float64) / 12
    solvers = {
        "picardsolve": by_picardsolve,
        "torchdiffeq dopri5": by_torchdiffeq("dopri5"),
        "torchdiffeq dopri8": by_torchdiffeq("dopri8"),
    }
    fits = [Fit(*pair) for pair in solvers.items()]
    for pair in solvers.items():  # what is loaded at a first call is nobody's
        Fit(*pair).step(t[:2], windows[:2])
    for step in range(given.steps):
        for fit in fits:
            fit.step(t, windows)
        if step % 25 == 24:
            said = (f"{fit.name} {fit.losses[-1]:.6f} after {fit.seconds[-1]:.1f} s" for fit in fits)
            print(f"step {step + 1}:", *said, sep="   ", flush=True)
    for peer in fits[1:]:
        least = min(peer.losses)
        theirs, ours = peer.reached(least), fits[0].reached(least)
        print(f"{least:.6f}: {peer.name} {theirs:.1f} s, picardsolve {ours:.1f} s: {theirs / ours:.1f} times")
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        picture(fits, windows, t, mean, deviation).savefig(given.out / "co2.png", dpi=110)


if __name__ == "__main__":
    main()
