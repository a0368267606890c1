"""What a tolerance was worth on the trained network of ``examples/digits``, beside what was estimated.

``python tests/benchmarks/promises.py`` prints the tables of ``docs/certificates.md`` and ``docs/pipelines.md``; a few
minutes on one core.
"""

import os
import sys
import warnings
from functools import wraps
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from diffusers.utils import logging
from torch import Tensor

import picardsolve as ps
from picardsolve.integrations.diffusers import sample

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def size(state: Tensor) -> Tensor:
    return state.flatten(1).double().square().mean(1).sqrt()


def show(name: str, true: Tensor, estimated: Tensor, bound: Tensor, tol: float, rounds: str) -> None:
    """A row: distances relative to the size of the sequential sample."""
    ratio, worst = (estimated / true).sort().values, true.argmax()
    counts = [len(true), *(int((true <= limit).sum()) for limit in (tol, 0.01)), int((true <= bound).sum())]
    figures = [true.median(), true.max(), estimated.median(), estimated.max(), estimated[worst]]
    cells = [*(f"{count:6d}" for count in counts), *(f"{figure:8.1e}" for figure in figures)]
    cells += [f"{value:6.2g}" for value in (ratio[0], ratio.median(), ratio[-1])]
    print(f"{name:34s} {tol:6g}", *cells, rounds, flush=True)


def solved(unet: Any, name: str, count: int, ts: Tensor, window: int, given: dict[str, Any]) -> None:
    """`picardsolve.solve` of many samples at once, nothing clipped."""
    schedule = ps.schedules.from_betas(torch.linspace(1e-4, 0.02, 1000))
    model = ps.Denoiser(lambda x, t: unet(x, t.round().long()).sample, schedule)
    x = torch.stack([torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(count)])
    reference = ps.sequential(model, x, ts, save="last", **given).ys[-1]
    for tol in (1e-2, 1e-3):
        solution = ps.solve(model, x, ts, window=window, tol=tol, save="last", **given)
        true, certificate = size(solution.ys[-1] - reference) / size(reference), solution.certificate
        claims = (claim[-1] / size(reference) for claim in (certificate.error, certificate.bound))
        show(name, true, *claims, tol, str(solution.stats.rounds))


def sampled(unet: Any, kind: str, clip: bool, window: int, count: int, tol: float = 1e-3) -> None:
    """The pipeline, one sample at a time."""
    scheduler, pipeline = {"DDIM": (DDIMScheduler, DDIMPipeline), "DDPM": (DDPMScheduler, DDPMPipeline)}[kind]
    pipe = pipeline(unet=unet, scheduler=scheduler(clip_sample=clip))
    pipe.set_progress_bar_config(disable=True)
    steps, rows, rounds = {"DDIM": 100, "DDPM": 1000}[kind], [], []
    for seed in range(100, 100 + count):
        inputs = {"num_inference_steps": steps, "output_type": "pt"}
        expected = last_state(pipe, generator=torch.Generator().manual_seed(seed), **inputs)
        given = {"window": window, "tolerance": tol, "generator": torch.Generator().manual_seed(seed)}
        report = sample(pipe, **inputs, **given).report
        assert report.state is not None
        claims = report.certificate.error[-1], report.certificate.bound[-1]
        rows.append([float(part / size(expected)) for part in (size(report.state - expected), *claims)])
        rounds.append(report.rounds)
    name = f"{kind}-{steps}, width {window}, {'clipped' if clip else 'not clipped'}"
    show(name, *torch.tensor(rows, dtype=torch.float64).unbind(1), tol, f"{min(rounds)} to {max(rounds)}")


def last_state(pipe: Any, **inputs: Any) -> Tensor:
    """Of the untouched pipeline."""
    found, real = [], pipe.scheduler.step

    @wraps(real)
    def step(*args: Any, **kwargs: Any) -> Any:
        out = real(*args, **kwargs)
        found.append((out[0] if isinstance(out, tuple) else out.prev_sample).clone())
        return out

    pipe.scheduler.step = step
    try:
        pipe(**inputs)
    finally:
        del pipe.scheduler.step
    return found[-1]


@torch.no_grad()
def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    unet = DDPMPipeline.from_pretrained(DIGITS).unet.eval()
    print(
        "Distances to the sequential sample, relative to its size: of how many samples within the tolerance, 1 %,\n"
        "and the estimated bound; true ones; estimated ones, and that of the worst sample; estimated over\n"
        f"true ones\n{'chain':34s} {'tol':>6s}   runs within    1 %  bound   median    worst  e.median   e.worst "
        "of worst   least median   most rounds"
    )
    if "pipelines" not in sys.argv:
        leading, every = ps.grids.given([*range(990, -1, -10), -1]), ps.grids.uniform(999, -1, 1000)
        noisy = {"integrator": ps.DDPM(), "brownian": ps.BrownianPath(seed=0)}
        solved(unet, "DDIM-100, full window", 64, leading, 100, {"integrator": ps.DDIM()})
        solved(unet, "DDPM-1000, width 40", 16, every, 40, noisy)
    for clip in (True, False):
        sampled(unet, "DDIM", clip, 16, 12)
        sampled(unet, "DDIM", clip, 100, 12)
        sampled(unet, "DDPM", clip, 64, 3)


if __name__ == "__main__":
    main()
