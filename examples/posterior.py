"""A posterior in parallel: samples and densities of a score network.

A simulator turns two parameters into two measured numbers (the two moons of simulation-based inference). A network
learns to take noise off parameters, given what was measured. Its reverse SDE then samples the posterior, and its
probability flow gives the density of any parameter. Both are solved for all times at once, beside one step after the
other.

    pip install picardsolve[examples]
    python examples/posterior.py
"""

# %%
import argparse
import math
from pathlib import Path
from time import perf_counter

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import picardsolve as ps

SPREAD = 0.58  # standard deviation of the prior, uniform on [-1, 1] x [-1, 1]
EDGE = 0.5  # of the plane where densities are drawn
MOST, LEAST = 5.0, 0.02  # noise levels; the last one blurs what is seen
SCHEDULE = ps.schedules.EDM()

# %% [markdown]
# ## The simulator
#
# The parameters move a crescent about; `exact` is its likelihood, which the network does not know.


# %%
def simulated(theta: Tensor, generator: torch.Generator) -> Tensor:
    """Measured numbers ``(B, 2)`` of parameters ``(B, 2)`` (Greenberg et al. 2019)."""
    angle = math.pi * (torch.rand(len(theta), generator=generator) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta), generator=generator)
    crescent = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)
    return crescent + moved(theta)


def moved(theta: Tensor) -> Tensor:
    """Where the parameters move the crescent to."""
    return torch.stack([-(theta[:, 0] + theta[:, 1]).abs(), theta[:, 1] - theta[:, 0]], 1) / math.sqrt(2)


def exact(theta: Tensor, measured: Tensor, noise: float) -> Tensor:
    """The posterior's density ``(B,)``, blurred as the network's is, by averages over the noise."""
    g = torch.Generator().manual_seed(7)
    blurred = theta[:, None] + noise * torch.randn(1, 256, 2, generator=g)
    inside = (blurred.abs() <= 1).all(-1)
    x, y = (measured - moved(blurred.flatten(0, 1))).unbind(1)
    radius = ((x - 0.25) ** 2 + y**2).sqrt().view(inside.shape)
    likelihood = torch.exp(-0.5 * ((radius - 0.1) / 0.01) ** 2) / (0.01 * math.sqrt(2 * math.pi)) / (math.pi * radius)
    return (likelihood * inside * (x > 0.25).view(inside.shape)).mean(1)


# %% [markdown]
# ## The network
#
# It sees parameters with noise, the noise level and what was measured, and predicts the parameters (Karras et al.
# 2022, table 1, for the factors).


# %%
class Estimator(nn.Module):
    """The parameters that are expected behind noisy ones."""

    def __init__(self, width: int = 128):
        super().__init__()
        layers = [nn.Linear(5, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers, nn.SiLU(), nn.Linear(width, 2))

    def forward(self, theta: Tensor, sigma: Tensor, measured: Tensor) -> Tensor:
        """``(B, 2)`` of noisy parameters ``(B, 2)``, noise levels ``(B,)`` and measured numbers ``(B, 2)``."""
        sigma = sigma[:, None].to(theta)
        size = (sigma**2 + SPREAD**2).sqrt()
        out = self.layers(torch.cat([theta / size, sigma.log() / 4, measured], 1))
        return SPREAD**2 / size**2 * theta + sigma * SPREAD / size * out


def trained(steps: int) -> Estimator:
    """A network that was trained on simulations of parameters from the prior."""
    torch.manual_seed(0)
    g, net = torch.Generator().manual_seed(0), Estimator()
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        theta = 2 * torch.rand(512, 2, generator=g) - 1
        sigma = LEAST * (MOST / LEAST) ** torch.rand(512, generator=g)
        noisy = theta + sigma[:, None] * torch.randn(512, 2, generator=g)
        error = (net(noisy, sigma, simulated(theta, g)) - theta) / sigma[:, None]
        optimiser.zero_grad()
        (error.square() * (1 + (sigma[:, None] / SPREAD) ** 2)).mean().backward()
        optimiser.step()
        rate.step()
    return net.eval().requires_grad_(False)


# %% [markdown]
# ## Samples: the reverse SDE
#
# `reverse_sde` makes the SDE of a score. `solve` and `sequential` get the same noise, and give the same samples.


# %%
def sampled(net: Estimator, measured: Tensor, count: int, steps: int, parallel: bool) -> Tensor:
    """Parameters ``(count, 2)`` from the posterior."""
    model = ps.Denoiser(lambda x, t: net(x, t, measured.expand(len(x), 2)), SCHEDULE, "sample")
    term, ts = ps.reverse_sde(model.score, SCHEDULE, MOST, LEAST, steps)
    noise = MOST * torch.randn(count, 2, generator=torch.Generator().manual_seed(1))
    given = {"integrator": ps.EulerMaruyama(), "batch_dims": 1, "brownian": ps.BrownianPath(seed=1), "save": "last"}
    if parallel:
        return ps.solve(term, noise, ts, window=steps // 4, tol=1e-3, **given).ys[-1]
    return ps.sequential(term, noise, ts, **given).ys[-1]


# %% [markdown]
# ## Densities: the probability flow
#
# The flow carries parameters to noise, of which the density is known; `divergence` adds up what the way made of it.


# %%
def log_density(net: Estimator, measured: Tensor, theta: Tensor, method: str) -> Tensor:
    """``(B,)`` of parameters ``(B, 2)``; the time is the logarithm of the noise level."""

    def flow(t: Tensor, y: Tensor) -> Tensor:
        at = t.reshape(-1).exp().expand(y.numel() // 2)
        return y - net(y.reshape(-1, 2), at, measured.expand(y.numel() // 2, 2)).reshape(y.shape)

    t = torch.tensor([LEAST, MOST]).log()
    ys, logps = ps.odeint(ps.divergence(flow), (theta, torch.zeros(len(theta))), t, rtol=1e-4, atol=1e-5, method=method)
    return -0.5 * (ys[-1] / MOST).square().sum(1) - math.log(2 * math.pi * MOST**2) - logps[-1]


# %%
def picture(theta: Tensor, grid: Tensor, learned: Tensor, known: Tensor) -> Figure:
    """Samples, the density that was learned, and the one that is known."""
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    for axes, title in zip(figure.subplots(1, 3), ("samples", "density", "exact density"), strict=True):
        axes.set(title=title, xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), aspect="equal")
        if title == "samples":
            axes.scatter(*theta.T.numpy(), s=2, alpha=0.5)
        else:
            side = math.isqrt(len(grid))
            values = (learned if title == "density" else known).view(side, side).T.numpy()
            axes.imshow(values, origin="lower", extent=(-EDGE, EDGE, -EDGE, EDGE), vmin=0, vmax=float(known.max()) or 1)
    return figure


def main() -> None:
    """Train, sample, evaluate, draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--training", type=int, default=4000, help="steps of the optimiser")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--steps", type=int, default=400, help="of the reverse SDE")
    parser.add_argument("--cells", type=int, default=24, help="of a side of the grid of densities")
    parser.add_argument("--out", type=Path, default=Path("."))
    given = parser.parse_args()
    measured = torch.zeros(1, 2)
    net = trained(given.training)
    middles = EDGE * ((2 * torch.arange(given.cells) + 1) / given.cells - 1)
    grid = torch.cartesian_prod(middles, middles)
    for count in (1, given.samples):
        seconds, found = [], []
        for parallel in (False, True):
            begin = perf_counter()
            found.append(sampled(net, measured, count, given.steps, parallel))
            seconds.append(perf_counter() - begin)
        apart = float((found[1] - found[0]).square().mean().sqrt())
        print(f"{count} samples: {seconds[0]:.2f} s one step after the other, {seconds[1]:.2f} s in parallel, ", end="")
        print(f"{apart:.1e} apart in root mean square")
    seconds, values = [], []
    for method in ("dopri5", "secant"):
        begin = perf_counter()
        values.append(log_density(net, measured, found[0][:1], method))
        seconds.append(perf_counter() - begin)
    print(
        f"density of a sample: {seconds[0]:.2f} s in steps (dopri5), {seconds[1]:.2f} s in parallel (collocation), ",
        end="",
    )
    print(f"{float((values[1] - values[0]).abs().max()):.1e} apart in the logarithm")
    # many densities keep the machine busy one step after the other, too
    learned, known = log_density(net, measured, grid, "dopri5").exp(), exact(grid, measured, LEAST)
    mass = float(learned.mean()) * (2 * EDGE) ** 2
    overlap = float(torch.minimum(learned / learned.mean(), known / known.mean()).mean())
    print(f"{len(grid)} densities add up to {mass:.3f}; {overlap:.0%} in common with the exact posterior")
    given.out.mkdir(parents=True, exist_ok=True)
    picture(found[1], grid, learned, known).savefig(given.out / "posterior.png", dpi=110)


if __name__ == "__main__":
    main()
