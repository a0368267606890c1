"""What a plan costs with a real network: the 1-d convolutional U-Net of Diffusion Policy beside an MLP.

Both are trained on the spot on the task of `policy`, the U-Net at reduced width. Loops: diffusers' own, one that is as
lean as by hand, and the plan in parallel. Milliseconds are those of the process on one thread, of the wall clock on
two threads and on two devices; the ways take turns.

python tests/benchmarks/policy_networks.py
"""

import argparse
import os
import statistics
import sys
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from policy import ACTION, HORIZON, OBSERVED, cosine_betas, expert
from policy import Policy as Mlp
from torch import Tensor, nn

import picardsolve as ps
from picardsolve.integrations.policies import ParallelPolicy
from picardsolve.integrations.policies.one_by_one import Faster

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "diffusion_policy"))
from samplers import scheduler_of

_KERNEL, _GROUPS, _EMBEDDED = 5, 8, 64


def _convolution(inwards: int, outwards: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(inwards, outwards, _KERNEL, padding=_KERNEL // 2), nn.GroupNorm(_GROUPS, outwards), nn.Mish()
    )


class _Residual(nn.Module):
    """Two convolutions, between which each channel is scaled and shifted by the condition."""

    def __init__(self, inwards: int, outwards: int, condition: int):
        super().__init__()
        self.first, self.second = _convolution(inwards, outwards), _convolution(outwards, outwards)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * outwards))
        self.skip = nn.Conv1d(inwards, outwards, 1) if inwards != outwards else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[..., None].chunk(2, 1)
        return self.second(scale * self.first(x) + shift) + self.skip(x)


class UNet(nn.Module):
    """A U-Net over time with the step and the observation as its condition (Chi et al. 2023, section 3).

    Args:
        widths: channels of each level; the paper has (256, 512, 1024).
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128)):
        super().__init__()
        self.register_buffer("frequency", torch.exp(torch.linspace(0, -9.2, _EMBEDDED // 2)))
        self.time = nn.Sequential(nn.Linear(_EMBEDDED, 4 * _EMBEDDED), nn.Mish(), nn.Linear(4 * _EMBEDDED, _EMBEDDED))
        condition, sizes = _EMBEDDED + OBSERVED, (ACTION, *widths)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (a, b) in enumerate(zip(sizes[:-1], widths, strict=True)):
            shrink = nn.Conv1d(b, b, 3, 2, 1) if level < len(widths) - 1 else nn.Identity()
            self.down.append(nn.ModuleList([_Residual(a, b, condition), _Residual(b, b, condition), shrink]))
        self.middle = nn.ModuleList(_Residual(widths[-1], widths[-1], condition) for _ in range(2))
        for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True):
            grow = nn.ConvTranspose1d(b, b, 4, 2, 1)
            self.up.append(nn.ModuleList([_Residual(2 * a, b, condition), _Residual(b, b, condition), grow]))
        self.out = nn.Sequential(_convolution(widths[0], widths[0]), nn.Conv1d(widths[0], ACTION, 1))

    def forward(self, x: Tensor, t: Tensor, observed: Tensor) -> Tensor:
        """``x`` (rows, 32), ``t`` (rows,), ``observed`` (rows, 4)."""
        phase = t[:, None] * self.frequency
        condition = torch.cat([self.time(torch.cat([phase.sin(), phase.cos()], 1)), observed], 1)
        h, skips = x.view(-1, HORIZON, ACTION).transpose(1, 2), []
        for one, two, shrink in self.down:
            h = two(one(h, condition), condition)
            skips.append(h)
            h = shrink(h)
        for block in self.middle:
            h = block(h, condition)
        for one, two, grow in self.up:
            h = grow(two(one(torch.cat([h, skips.pop()], 1), condition), condition))
        return self.out(h).transpose(1, 2).flatten(1)


def trained(net: nn.Module, iterations: int, batch: int = 64) -> nn.Module:
    """A network that predicts the noise in plans of `policy.expert`."""
    generator, alpha_bar = torch.Generator().manual_seed(0), (1 - cosine_betas()).cumprod(0).float()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        observed, plan = expert(generator, batch)
        t, noise = torch.randint(100, (batch,), generator=generator), torch.randn(plan.shape, generator=generator)
        level = alpha_bar[t][:, None]
        loss = (net(level.sqrt() * plan + (1 - level).sqrt() * noise, t.float(), observed) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return net.eval().requires_grad_(False)


def policy_of(net: nn.Module, scheduler: Any, way: str = "", **given: Any) -> ParallelPolicy:
    """A policy that has one way to make plans, whatever the clock says."""

    def model(x: Tensor, t: Tensor, observed: Tensor) -> Tensor:
        return net(x.flatten(1), t.float(), observed).view(x.shape)

    policy = ParallelPolicy(model, scheduler, (HORIZON, ACTION), **given)
    found = Faster([1.0] * 3, [2.0] * 3) if way == "alone" else Faster([2.0] * 3, [1.0] * 3)
    policy._faster = {(1, torch.device("cpu")): found}
    return policy


class Lean:
    """All steps one after the other, with the numbers of a scheduler, and no more: a hundred steps, too."""

    def __init__(self, net: nn.Module, scheduler: Any):
        self._policy, self._net = policy_of(net, scheduler), net

    @torch.inference_mode()
    def __call__(self, observed: Tensor) -> None:
        steps = self._policy._steps
        x, noise = self._policy._noise.draw(1, observed.device)
        earlier = torch.zeros_like(x)
        for n, (c, d, p, r, s, q, *lagged) in enumerate(steps.numbers):
            out = self._net(x, steps.timesteps[n : n + 1].float(), observed)
            sample = torch.add(c * x, out, alpha=d)
            x = (p * x).add_(sample, alpha=q)
            if lagged:
                x.add_(earlier, alpha=lagged[0])
                earlier = sample
            if r:
                x.add_(sample.clamp_(-steps.limit, steps.limit), alpha=r)
            if s and noise is not None:
                x.add_(noise[n], alpha=s)


def diffusers_loop(net: nn.Module, scheduler: Any, observed: Tensor) -> None:
    """The loop of every example of diffusers."""
    scheduler.set_timesteps(len(scheduler.timesteps))
    x = torch.randn(1, HORIZON * ACTION)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t[None].float(), observed), t, x).prev_sample


def compared(name: str, net: nn.Module, sampler: str, threads: int, plans: int) -> None:
    """Print a line for a network and a sampler."""
    torch.set_num_threads(threads)
    scheduler, generator = scheduler_of(sampler), torch.Generator().manual_seed(1)
    few = len(scheduler.timesteps) <= 20
    policies = {"parallel": policy_of(net, scheduler)}
    if few:
        policies["one by one"] = policy_of(net, scheduler, "alone")
    if threads == 1:
        policies["two devices"] = policy_of(net, scheduler, devices=["cpu", "cpu"])
    ways: dict[str, Any] = {"diffusers": lambda o: diffusers_loop(net, scheduler, o), "lean": Lean(net, scheduler)}
    ways |= {way: policy.plan for way, policy in policies.items()}
    clock = process_time if threads == 1 else perf_counter
    times: dict[str, list[float]] = {way: [] for way in ways}
    rounds, rows = [], []
    for _ in range(plans):
        observed, _ = expert(generator, 1)
        for way, make in ways.items():
            begun = (perf_counter if way == "two devices" else clock)()
            made = make(observed)
            times[way].append((perf_counter if way == "two devices" else clock)() - begun)
            if way == "parallel":
                rounds.append(made.rounds)
                rows.append(made.evaluations)
    least = {way: min(spent) * 1e3 for way, spent in times.items()}
    middle = {way: statistics.median(spent) * 1e3 for way, spent in times.items()}
    shown = "  ".join(f"{way} {least[way]:.1f}/{middle[way]:.1f}" for way in ways)
    gain = middle["lean"] / min(middle["parallel"], middle.get("one by one", torch.inf))
    print(
        f"{name:6s} {sampler:16s} threads {threads}  rounds {statistics.median(rounds):.3g}/{max(rounds)}  rows "
        f"{statistics.median(rows):.0f}  ms least/median: {shown}  {gain:.2f} times as fast as the lean loop",
        flush=True,
    )


def main() -> None:
    """Train both networks and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--plans", type=int, default=30)
    arguments.add_argument("--iterations", type=int, default=600)
    arguments.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    asked = arguments.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    nets = {"MLP": trained(Mlp(), 2 * asked.iterations), "U-Net": trained(UNet(), asked.iterations)}
    sizes = ", ".join(f"{name} {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M" for name, net in nets.items())
    print(f"picardsolve {ps.__version__}; {sizes}; load {os.getloadavg()[0]:.1f}; two devices: wall clock", flush=True)
    for threads in asked.threads:
        for name, net in nets.items():
            for sampler in ("ddpm-100", "ddim-15", "dpm-solver++-15"):
                compared(name, net, sampler, threads, asked.plans)


if __name__ == "__main__":
    main()
