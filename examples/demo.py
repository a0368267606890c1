"""A pretrained pipeline and an ODE, solved step by step and in parallel: the same answer in a fraction of the rounds.

``make demo`` runs this. It prints two tables and writes three pictures into ``demo-output``.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import matplotlib as mpl
import numpy as np
import torch
import torchdiffeq
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.utils import logging as diffusers_logging
from train_digits import confidence

import picardsolve as ps
from picardsolve.integrations import diffusers as parallel

mpl.use("Agg")
from matplotlib import pyplot as plt

SAMPLERS = [  # name, scheduler, steps, window, tolerance
    ("DDPM-1000", DDPMScheduler, 1000, 64, 1e-3),
    ("DDIM-100", DDIMScheduler, 100, 12, 1e-3),
    ("DPM-Solver++-50", DPMSolverMultistepScheduler, 50, 10, 1e-3),
]


def pipeline() -> DDPMPipeline:
    """The digits pipeline of this repository, as any other pretrained one is loaded."""
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    pipe = DDPMPipeline.from_pretrained(Path(__file__).parent / "digits")
    pipe.set_progress_bar_config(leave=False, mininterval=0.5)
    return pipe


def compare(pipe: DDPMPipeline, steps: int, window: int, tolerance: float, seeds: range) -> dict:
    """Sample every seed with the untouched pipeline, then in parallel."""
    images, reports, seconds = ([], []), [], ([], [])
    for seed in seeds:
        for kind in (0, 1):
            generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
            if kind == 0:
                out = pipe(num_inference_steps=steps, generator=generator, output_type="np")
            else:
                out = parallel.sample(
                    pipe,
                    num_inference_steps=steps,
                    generator=generator,
                    output_type="np",
                    window=window,
                    tolerance=tolerance,
                )
                reports.append(out.report)
            seconds[kind].append(time.perf_counter() - start)
            images[kind].append(out.images[0, ..., 0])
    return {"images": images, "reports": reports, "seconds": seconds}


def sampling(out: Path, seeds: range) -> None:
    """The table and the two pictures of the pipeline."""
    pipe = pipeline()
    compare(pipe, 5, 2, 1e-3, range(1))  # the first calls of a process are slower
    print("A pretrained diffusers pipeline (examples/digits), one image at a time, median of", len(seeds), "seeds")
    print(
        "sampler          steps  window  rounds  worst  evaluations/N  sequential  parallel  ratio  largest pixel diff"
    )
    rows, agreement = [], []
    for name, scheduler, steps, window, tolerance in SAMPLERS:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        got = compare(pipe, steps, window, tolerance, seeds)
        rounds = [report.rounds for report in got["reports"]]
        work = statistics.median(report.evaluations for report in got["reports"]) / steps
        before, after = (statistics.median(times) for times in got["seconds"])
        difference = max(float(np.abs(a - b).max()) for a, b in zip(*got["images"], strict=True))
        print(
            f"{name:16s} {steps:5d}  {window:6d}  {statistics.median(rounds):6.0f}  {max(rounds):5d}  {work:13.2f}"
            f"  {before:8.2f} s  {after:6.2f} s  {before / after:5.2f}  {difference:18.1e}"
        )
        rows += [(f"{name}\n{kind}", row) for kind, row in zip(("sequential", "parallel"), got["images"], strict=True)]
        agreement.append((name, *(confidence(_samples(row)) for row in got["images"])))
        if name == "DDPM-1000":
            figure = got["reports"][0].plot()
            figure.savefig(out / "convergence.png", dpi=130)
            plt.close(figure)
    print("\nA classifier of the real digits: share of samples with a class of probability >= 0.9")
    for name, sequential, in_parallel in agreement:
        same = (sequential.classes == in_parallel.classes).mean()
        print(
            f"{name:16s} sequential {sequential.confident:.0%}, parallel {in_parallel.confident:.0%}, same class "
            f"{same:.0%} (real digits held out: {sequential.real:.0%})"
        )
    _picture(rows, out / "samples.png")


def _samples(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images))[:, None] * 2 - 1


def _picture(rows: list, path: Path) -> None:
    columns = len(rows[0][1])
    figure, axes = plt.subplots(len(rows), columns, figsize=(0.8 * columns + 1.6, 0.85 * len(rows)))
    for (name, images), line in zip(rows, axes, strict=True):
        for image, axis in zip(images, line, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def pendulums(count: int = 16) -> tuple[Callable, torch.Tensor]:
    """A ring of pendulums coupled by springs, a travelling disturbance: (angles, velocities), float64."""

    def drift(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        angle, velocity = y.chunk(2, -1)
        spring = angle.roll(1, -1) - 2 * angle + angle.roll(-1, -1)
        return torch.cat([velocity, spring - torch.sin(angle)], -1)

    place = torch.arange(count, dtype=torch.float64)
    bump = 2.5 * torch.exp(-(((place - count / 4) / (count / 25)) ** 2))
    return drift, torch.cat([bump, torch.zeros_like(bump)])


def ode(out: Path) -> None:
    """The same for an ODE of scientific code, where one import changes: torchdiffeq's odeint and ours."""
    drift, y0 = pendulums()
    print("\nAn ODE: a ring of 16 coupled pendulums, t from 0 to 20; torchdiffeq.odeint against picardsolve.odeint")
    print("method  steps  window  calls one by one  rounds  evaluations/N  sequential  parallel  ratio  largest diff")
    for method, steps, window in (("euler", 10000, 500), ("rk4", 4000, 200)):
        t, calls = torch.linspace(0, 20, steps + 1, dtype=torch.float64), []

        def counted(t: torch.Tensor, y: torch.Tensor, calls: list = calls) -> torch.Tensor:
            calls.append(len(y) if y.dim() > 1 else 1)
            return drift(t, y)

        start = time.perf_counter()
        expected = torchdiffeq.odeint(counted, y0, t, method=method)
        middle = time.perf_counter()
        before = len(calls)
        options = {"vectorized": True, "window": window}
        got = ps.odeint(counted, y0, t, method=method, rtol=1e-6, atol=1e-6, options=options)
        seconds = middle - start, time.perf_counter() - middle
        print(
            f"{method:6s}  {steps:5d}  {window:6d}  {before:16d}  {len(calls) - before:6d}  "
            f"{sum(calls[before:]) / before:13.2f}  {seconds[0]:8.2f} s  {seconds[1]:6.2f} s  "
            f"{seconds[0] / seconds[1]:5.2f}  {float((got - expected).abs().max()):12.1e}"
        )
    solution = ps.solve(ps.ODE(drift), y0, t[:1001], integrator=ps.Euler(), window=200, tol=1e-6)
    figure = solution.plot()
    figure.savefig(out / "ode.png", dpi=130)
    plt.close(figure)


def main() -> None:
    """Run both, and say where the pictures are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sampling(args.out, range(args.seeds))
    ode(args.out)
    print(f"\nPictures: {', '.join(str(args.out / name) for name in ('samples.png', 'convergence.png', 'ode.png'))}")


if __name__ == "__main__":
    main()
