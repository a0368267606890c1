"""What the adapter costs beside the denoiser: Stable Diffusion's loop around a denoiser that takes 20 ms a call."""

import os
import statistics
import sys
import time
import weakref
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from pipelines import SD_BETAS, generator, stable_diffusion

from picardsolve.integrations.diffusers import sample

WAIT, STEPS, WINDOW, RUNS = 20e-3, 50, 16, 7


class Log:
    """What the denoiser took."""

    seconds, calls = 0.0, 0


class Denoiser:
    """In the place of a U-Net: a cheap nonlinear map, and the wait of a large one.

    The log is held by a weak reference: what a denoiser holds and changes counts as a memory of its own, and such
    denoisers run one step at a time.
    """

    def __init__(self, log: Log):
        self.log = weakref.ref(log)
        self.mix = 0.3 * torch.randn(4, 4, generator=generator(0))

    def __call__(self, x, t, *args, **kwargs):
        """Predict, and note the time."""
        start, log = time.perf_counter(), self.log()
        out = torch.tanh(torch.einsum("ij,bjhw->bihw", self.mix, x)) + 0.1 * x
        time.sleep(max(0.0, WAIT - (time.perf_counter() - start)))
        log.seconds += time.perf_counter() - start
        log.calls += 1
        return (out,)


def measure(scheduler, size: int) -> tuple[list[float], list[float], list[int], float]:
    """Milliseconds beside the denoiser, of whole runs: untouched and in parallel; the rounds, and the distance."""
    pipe = stable_diffusion(scheduler)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.float()
    log = Log()
    pipe.unet.forward = Denoiser(log)
    pipe.set_progress_bar_config(disable=True)
    given = {"height": 2 * size, "width": 2 * size, "output_type": "latent", "num_inference_steps": STEPS}
    rests, rounds, images = ([], []), [], []
    try:
        for run in range(RUNS + 1):
            for kind, call in enumerate((pipe, lambda *args, **kw: sample(pipe, *args, window=WINDOW, **kw))):
                log.seconds, log.calls, start = 0.0, 0, time.perf_counter()
                out = call("a cat", generator=generator(run), **given)
                rests[kind].append(1e3 * (time.perf_counter() - start - log.seconds))
                images.append(out.images)
            rounds.append(log.calls)
    finally:
        del pipe.unet.forward
    distance = float((images[-1] - images[-2]).norm() / images[-2].norm())
    return rests[0][1:], rests[1][1:], rounds[1:], distance


def main() -> None:
    """Print the table."""
    print(f"\nThe adapter's own cost: Stable Diffusion with guidance, {STEPS} steps, window {WINDOW}, tolerance 1e-3,")
    print(
        f"a denoiser of {1e3 * WAIT:.0f} ms; beside the denoiser, and beyond what the untouched pipeline spends there"
    )
    print(f"load {os.getloadavg()[0]:.1f}")
    print("scheduler         latents  rounds  untouched, a step  beyond, a round (median, best)  of a round  distance")
    for cls in (
        DDIMScheduler,
        EulerDiscreteScheduler,
        DPMSolverMultistepScheduler,
        DDPMScheduler,
        UniPCMultistepScheduler,
    ):
        for size in (16, 64):
            config = {"clip_sample": False} if cls in (DDIMScheduler, DDPMScheduler) else {}
            before, after, rounds, distance = measure(cls(**SD_BETAS, **config), size)
            usual = statistics.median(before)
            beyond = [(rest - usual) / count for rest, count in zip(after, rounds, strict=True)]
            median = statistics.median(beyond)
            name = cls.__name__.removesuffix("Scheduler")
            print(
                f"{name:18s}{f'4x{size}x{size}':>7s}  {statistics.median(rounds):6.0f}  "
                f"{usual / STEPS:14.2f} ms  {median:17.2f} ms, {min(beyond):5.2f} ms  {median / (1e3 * WAIT):9.0%}  "
                f"{distance:8.1e}"
            )


if __name__ == "__main__":
    main()
