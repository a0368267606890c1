"""``make bench``: every figure of the README, both sides measured in one run, medians and worst of eight seeds."""

import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

import picardsolve as ps

SEEDS = 8


def digits() -> None:
    """The digits pipeline: wall clock of ``pipe(...)`` and of ``sample(pipe, ...)``, seed by seed."""
    import demo

    pipe = demo.pipeline()
    pipe.set_progress_bar_config(disable=True)
    demo.compare(pipe, 5, 2, 1e-3, range(1))
    print(f"\nDigits pipeline, one image, {torch.get_num_threads()} threads; median / worst of 8 seeds")
    print(
        "sampler          window  tolerance  rounds      evaluations/N  sequential  parallel   ratio        pixel diff"
    )
    cases = [
        ("DDPM-1000", DDPMScheduler, ((64, 3e-3), (64, 1e-3), (100, 1e-3))),
        ("DDIM-100", DDIMScheduler, ((12, 1e-3), (25, 3e-3))),
        ("DPM-Solver++-50", DPMSolverMultistepScheduler, ((10, 1e-3), (16, 3e-3))),
    ]
    for name, scheduler, choices in cases:
        steps = int(name.rsplit("-", 1)[1])
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        for width, tolerance in choices:
            got = demo.compare(pipe, steps, width, tolerance, range(SEEDS))
            rounds = [report.rounds for report in got["reports"]]
            work = [report.evaluations / steps for report in got["reports"]]
            ratio = [before / after for before, after in zip(*got["seconds"], strict=True)]
            pixel = [float(abs(a - b).max()) for a, b in zip(*got["images"], strict=True)]
            before, after = (statistics.median(times) for times in got["seconds"])
            print(
                f"{name:16s} {width:6d}  {tolerance:9g}  {statistics.median(rounds):5.1f} / {max(rounds):3d}  "
                f"{statistics.median(work):6.2f} / {max(work):.2f}  {before:8.2f} s  {after:7.2f} s  "
                f"{statistics.median(ratio):5.2f} / {min(ratio):.2f}  {statistics.median(pixel):.1e} / {max(pixel):.1e}"
            )


def loop_cost() -> None:
    """Time of a solve over the time of its drift calls: drift of 5 ms a call, window 32, state 16x1024 float32."""
    print("\nThe loop's own cost: Euler, window 32, state 16x1024 float32, median and best of 15 solves")
    print("drift                        rounds  drift a call  the rest a round  total / drift alone (median, best)")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1024, 1024, generator=generator) / 32
    y0 = torch.randn(16, 1024, generator=generator)

    def waiting(t, y):
        time.sleep(5e-3)
        return -y

    def matmul(t, y):
        return torch.tanh(y @ weight[:, :256]) @ weight[:256]

    for name, drift, batch_dims in (
        ("5 ms wait", waiting, 0),
        ("5 ms wait, 16 samples", waiting, 1),
        ("matmul", matmul, 0),
    ):
        inside, totals, rests, ratios = [], [], [], []

        def timed(t, y, drift=drift, inside=inside):
            start = time.perf_counter()
            out = drift(t, y)
            inside.append(time.perf_counter() - start)
            return out

        for _ in range(16):
            inside.clear()
            start = time.perf_counter()
            solution = ps.solve(
                ps.ODE(timed),
                y0,
                ps.grids.uniform(0, 2, 200),
                integrator=ps.Euler(),
                window=32,
                atol=1e-4,
                rtol=0.0,
                batch_dims=batch_dims,
                save="last",
            )
            totals.append(time.perf_counter() - start)
            rests.append((totals[-1] - sum(inside)) / solution.stats.rounds)
            ratios.append(totals[-1] / sum(inside))
        print(
            f"{name:28s} {solution.stats.rounds:5d}  {1e3 * statistics.median(inside):9.2f} ms  "
            f"{1e3 * statistics.median(rests[1:]):13.2f} ms  {statistics.median(ratios[1:]):.3f}, {min(ratios[1:]):.3f}"
        )


if __name__ == "__main__":
    digits()
    loop_cost()
