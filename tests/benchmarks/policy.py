"""A small Diffusion Policy: plans of 16 actions past an obstacle, on either side, as an expert would take them.

The network is trained on the spot, in half a minute on one core; the chain has what plans have and images have not: few
numbers, a condition that fixes most of them, and two ways that are equally good.
"""

import math
import statistics
from itertools import pairwise

import torch
from chains import Samples, measured
from torch import Tensor, nn

import picardsolve as ps

HORIZON, ACTION, OBSERVED = 16, 2, 4
_STEPS, _BATCH, _FREQUENCIES = 2500, 512, 16


def expert(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Observations (start and goal) and plans: positions on an arc around the origin, left or right of it."""
    start = torch.stack([-0.9 + 0.1 * torch.randn(count, generator=generator), _sideways(generator, count)], 1)
    goal = torch.stack([0.9 + 0.1 * torch.randn(count, generator=generator), _sideways(generator, count)], 1)
    side = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    bend = side * (0.5 + 0.1 * torch.rand(count, generator=generator))
    t = torch.linspace(0, 1, HORIZON)[None, :, None]
    plan = start[:, None] + t * (goal - start)[:, None]
    plan[..., 1] += bend[:, None] * torch.sin(math.pi * t[..., 0])
    return torch.cat([start, goal], 1), plan.flatten(1)


def _sideways(generator: torch.Generator, count: int) -> Tensor:
    return 0.15 * torch.randn(count, generator=generator)


class Policy(nn.Module):
    """Predicts the noise in a plan, given the step and the observation."""

    def __init__(self):
        super().__init__()
        sizes = [HORIZON * ACTION + 2 * _FREQUENCIES + OBSERVED, 256, 256, 256]
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Mish())]
        self.net = nn.Sequential(*layers, nn.Linear(256, HORIZON * ACTION))
        self.register_buffer("frequency", torch.exp(torch.linspace(0, -6, _FREQUENCIES)))

    def forward(self, x: Tensor, t: Tensor, observed: Tensor) -> Tensor:
        """``x`` (rows, 32), ``t`` (rows,), ``observed`` (rows, 4)."""
        phase = t[:, None] * self.frequency
        return self.net(torch.cat([x, phase.sin(), phase.cos(), observed], 1))


def cosine_betas(steps: int = 100) -> Tensor:
    """Diffusion Policy's ``squaredcos_cap_v2`` (Nichol & Dhariwal 2021, eq. 17)."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    level = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - level[1:] / level[:-1]).clamp(max=0.999)


def trained() -> tuple[ps.Denoiser, ps.schedules.Schedule]:
    """The policy as a denoiser of plans, in double precision, and its schedule."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net, schedule = Policy(), ps.schedules.from_betas(cosine_betas())
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for _ in range(_STEPS):
        observed, plan = expert(generator, _BATCH)
        t, noise = torch.randint(100, (_BATCH,), generator=generator), torch.randn(plan.shape, generator=generator)
        alpha, sigma = (level(t.double()).float()[:, None] for level in (schedule.alpha, schedule.sigma))
        loss = (net(alpha * plan + sigma * noise, t.float(), observed) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    net = net.double().requires_grad_(False)
    return ps.Denoiser(lambda x, t, observed: net(x, t, observed), schedule), schedule


def plans(term: ps.Denoiser, integrator: ps.Integrator, steps: int, seed: int) -> Samples:
    """Eight plans to be made, and those that the sequential sampler makes."""
    generator = torch.Generator().manual_seed(seed)
    observed, _ = expert(generator, 8)
    y0 = torch.randn(8, HORIZON * ACTION, generator=generator, dtype=torch.float64)
    stride = 100 // steps
    ts = ps.grids.given([*(n * stride for n in reversed(range(steps))), -1])
    given = {"integrator": integrator, "brownian": ps.BrownianPath(seed), "cond": {"observed": observed.double()}}
    return Samples(term, y0, ts, given, ps.sequential(term, y0, ts, save="last", **given).ys[0])


def main() -> None:
    """Print rounds, work and measured error for each way to solve a plan."""
    term, _ = trained()
    print("A small policy, plans of 16 x 2; RMS error to the sequential plan; median / worst of 8 seeds")
    print("chain     window  method                               tol    rounds      evaluations/N  error")
    ways = [("Picard, Copy, increment", ps.presets.paradigms(tol)) for tol in (0.3, 0.1)]
    for iteration in (ps.Picard(), ps.Secant(), ps.MultiSecant()):
        for stop, tols in (("error", (0.03, 0.01)), ("increment", (0.3, 0.1))):
            parts = {"iteration": iteration, "guess": ps.FrozenSample(), "stop": stop}
            name = f"{type(iteration).__name__}, FrozenSample, {stop}"
            ways += [(name, {**parts, "tol": tol}) for tol in tols]
    for label, integrator, steps, window in (
        ("DDPM-100", ps.DDPM(), 100, 100),
        ("DDPM-100", ps.DDPM(), 100, 25),
        ("DDIM-20", ps.DDIM(), 20, 20),
    ):
        samples = plans(term, integrator, steps, 3)
        for name, how in ways:
            got = measured(samples, **how, window=window)
            middle = [statistics.median(values) for values in (got.rounds, got.work, got.error)]
            print(
                f"{label:9s} {window:6d}  {name:35s}  {how['tol']:<4g}  {middle[0]:4.1f} / {max(got.rounds):3d}  "
                f"{middle[1]:6.2f} / {max(got.work):5.2f}  {middle[2]:.1e} / {max(got.error):.1e}"
            )


if __name__ == "__main__":
    main()
