"""The chains that methods are compared on: the exact-score mixture, and a trained network with guidance."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import mixture
import torch
from diffusers import DiTTransformer2DModel
from diffusers.utils import logging
from torch import Tensor

import picardsolve as ps
from picardsolve.fixed_point.guesses import Copy, guess_for
from picardsolve.fixed_point.stopping import Increment
from picardsolve.fixed_point.window import Settings, Window
from picardsolve.integrators import Integrator
from picardsolve.problem.problem import Problem
from picardsolve.problem.state import Layout
from picardsolve.problem.tolerances import Tolerance

DIGITS = Path(__file__).parents[2] / "examples" / "digits_by_class" / "transformer"
GUIDANCE, CLASSES, UNCONDITIONED = 2.0, 10, 1000
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float32)  # of the digits network
SAMPLERS: dict[str, Integrator] = {"DDIM": ps.DDIM(), "DDPM": ps.DDPM(), "DPM-Solver++(2M)": ps.DPMSolver(2)}


@dataclass(frozen=True)
class Samples:
    """Samples of one chain, one for each seed, and what the sequential sampler makes of them.

    Attributes:
        given: what both `picardsolve.solve` and `picardsolve.sequential` are called with.
        reference: ``(B, D)`` the last states of the sequential sampler.
    """

    term: ps.Denoiser
    y0: Tensor
    ts: Tensor
    given: dict[str, Any]
    reference: Tensor

    def error(self, last: Tensor) -> list[float]:
        """Root mean square distance per dimension of last states ``(B, D)`` to the sequential ones."""
        return (last - self.reference).square().mean(-1).sqrt().tolist()


@dataclass(frozen=True)
class Measured:
    """What each sample of a solve took, and how far it ended from the sequential one."""

    rounds: list[int]
    work: list[float]
    error: list[float]
    width: int = field(default=0)


@cache
def samples(model: str, sampler: str, seeds: Sequence[int], steps: int, spacing: str = "leading") -> Samples:
    """Samples of "mixture" or "digits", ``seeds`` telling their starts, their noise and their classes."""
    ts = grid(model, steps, spacing)
    start = [torch.randn(mixture.DIM, generator=torch.Generator().manual_seed(100 + seed)) for seed in seeds]
    y0 = torch.stack(start).double()
    given: dict[str, Any] = {"integrator": SAMPLERS[sampler], "brownian": ps.BrownianPath(seeds[0])}
    if model == "digits":
        given["cond"] = {"label": torch.tensor(seeds) % CLASSES}
    term = _term(model)
    return Samples(term, y0, ts, given, ps.sequential(term, y0, ts, save="last", **given).ys[0])


def grid(model: str, steps: int, spacing: str) -> Tensor:
    """Times from noise to the clean sample.

    Args:
        model: "leading" grids are as its scheduler has them.
        steps: of a grid by "log-SNR" there may be fewer, for times are integers.
        spacing: "leading", or from the first time of the schedule: "trailing", "linspace", "log-SNR".
    """
    if spacing == "leading" and model == "mixture":
        return mixture.grid(steps)
    if spacing == "log-SNR":
        schedule, every = _term(model).schedule, torch.arange(1000)
        level = torch.log(schedule.alpha(every.double()) / schedule.sigma(every.double()))
        wanted = torch.linspace(float(level[-1]), float(level[0]), steps, dtype=level.dtype)
        times = (wanted[:, None] - level).abs().argmin(1).unique().flip(0)
    elif spacing == "linspace":
        times = torch.linspace(999, 0, steps + 1, dtype=torch.float64).round()[:-1]
    elif spacing == "trailing":
        times = torch.tensor([round(1000 - 1000 * n / steps) - 1 for n in range(steps)])
    else:
        times = torch.arange(0, 1000, 1000 // steps).flip(0)
    return ps.grids.given([*times.tolist(), -1])


def _term(model: str) -> ps.Denoiser:
    return mixture.denoiser() if model == "mixture" else digits()


@cache
def digits() -> ps.Denoiser:
    """The network of ``examples/digits_by_class``, guided; both halves of the guidance are one evaluation."""
    logging.set_verbosity_error()
    network = DiTTransformer2DModel.from_pretrained(DIGITS).eval()

    def noise(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        image, t = x.float().reshape(-1, 1, 8, 8), t.round().long()
        labels = torch.cat([label, torch.full_like(label, UNCONDITIONED)])
        out = network(torch.cat([image, image]), timestep=torch.cat([t, t]), class_labels=labels).sample
        conditioned, unconditioned = out.chunk(2)
        return (unconditioned + GUIDANCE * (conditioned - unconditioned)).reshape(x.shape).double()

    return ps.Denoiser(noise, ps.schedules.from_betas(BETAS))


def measured(of: Samples, **settings: Any) -> Measured:
    """Solve in parallel; every evaluation of the drift is counted, each sample's until it ends."""
    solution = ps.solve(of.term, of.y0, of.ts, save="last", **of.given, **settings)
    widths = torch.stack([record.width for record in solution.history])
    each = solution.stats.evaluations / int(widths.sum())  # more than one where derivatives are taken
    rounds, work = (widths > 0).sum(0).tolist(), (each * widths.sum(0) / solution.stats.steps).tolist()
    return Measured(rounds, work, of.error(solution.ys[0]), solution.stats.max_width)


@torch.no_grad()
def rounds_until(of: Samples, limit: float, iteration: Any, guess: Any = None, most: int = 40) -> list[int]:
    """After how many rounds over the full window each sample stays within ``limit`` of the sequential one.

    That is a stop rule which only an oracle has. Rounds are run until all samples are ten times nearer.
    """
    layout, length = Layout.of(of.y0, 1), len(of.ts) - 1
    problem = Problem(of.term, layout, of.ts, of.given.get("cond", {}), of.given["brownian"])
    chain = of.given["integrator"].chain(problem)
    settings = Settings(length, iteration, guess_for(guess or Copy(), problem, chain), Increment(Tolerance()))
    window = Window(chain, layout.pack(of.y0), settings)
    errors = []
    while not window.done and len(errors) < most and not (errors and max(errors[-1]) < limit / 10):
        window.tell(chain.evaluate(window.ask()))
        ends = [window.x[min(length - int(begin), len(window.x) - 1), s] for s, begin in enumerate(window.begin)]
        errors.append(of.error(torch.stack(ends)))
    beyond = torch.tensor(errors) > limit
    return [2 + int(sample.nonzero().max()) if sample.any() else 1 for sample in beyond.T]
