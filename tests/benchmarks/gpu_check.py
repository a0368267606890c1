"""``make gpu-check``: whether the cost model of ``docs/devices.md`` is right on this GPU, and the answers too.

In under four minutes on one CUDA GPU: answers of the core, of collocation, of SDEs, of the digits pipeline and of a
larger random U-Net in half precision beside the CPU's; milliseconds, launches and waits of a round beside what the
model says; seconds of pipelines and solves at windows of 1 to 64 beside the sequential ones. Everything is printed as
Markdown and kept in a JSON file. Without a CUDA GPU it says so and does nothing.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path as File
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(File(__file__).parents[1]))

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from gpu_costs import constants, finish, traced
from pipelines.unet_family import digits
from round_costs import PATHS, problem, rounds_of, seconds_of
from torch import Tensor

import picardsolve as ps
from picardsolve.integrations.diffusers import sample

HOST = torch.device("cpu")
Row = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How much is run: `FULL` on a GPU, `TINY` where only the script itself is tested."""

    repeats: int
    paths: tuple[str, ...]
    batch: int
    size: int
    steps: int
    channels: tuple[int, ...]
    pixels: int
    widths: tuple[int, ...]
    seconds: float  # after which no further section begins


FULL = Scale(2000, tuple(PATHS), 16, 1024, 50, (128, 256, 512), 64, (1, 2, 4, 8, 16, 32, 64), 180.0)
TINY = Scale(20, ("Euler, Picard", "EulerMaruyama, Secant"), 2, 8, 6, (8, 16), 8, (1, 4), 600.0)


def main(arguments: list[str] | None = None) -> int:
    """0 where every answer is the CPU's, or where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=File, default=File("build/gpu-check.json"))
    out = parser.parse_args(arguments).out
    if not torch.cuda.is_available():
        print("gpu-check: skipped, for torch sees no CUDA GPU here.")
        return 0
    torch.backends.cudnn.allow_tf32 = False  # answers are compared with the CPU's
    found = run(torch.device("cuda"), FULL)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nKept in {out}. Please send it to the authors: it says whether docs/devices.md is right about this GPU.")
    return 0 if all(row["agrees"] for row in found.get("answers", ())) else 1


def run(device: torch.device, scale: Scale) -> Row:
    """All sections that there is time for."""
    begun = time.perf_counter()
    found: Row = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "versions": {
            "picardsolve": ps.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "diffusers": diffusers.__version__,
            "python": platform.python_version(),
        },
    }
    print(f"gpu-check on {found['device']}, {found['versions']}")
    sections: dict[str, Callable[[torch.device, Scale], list[Row]]] = {
        "answers": answers,
        "constants": lambda device, scale: [asdict(constants(device, scale.repeats))],
        "rounds": rounds,
        "widths": widths,
        "pipeline": pipeline_widths,
    }
    for name, section in sections.items():
        if time.perf_counter() - begun > scale.seconds:
            found.setdefault("left out", []).append(name)
            continue
        found[name] = section(device, scale)
        table(name, found[name])
    found["seconds"] = time.perf_counter() - begun
    return found


def table(name: str, rows: list[Row]) -> None:
    """Print rows as Markdown."""
    print(f"\n{name}\n\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print(
            "| " + " | ".join(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()) + " |", flush=True
        )


# ---- answers


def answers(device: torch.device, scale: Scale) -> list[Row]:
    """Relative distances between the device's answers and the CPU's, and how large they may be."""
    found = []
    for name, answer, allowed in (
        *((f"{name}, float64", lambda at, name=name: grid(at, scale, name), 1e-5) for name in scale.paths),
        ("collocation, float64", collocation, 1e-6),
        ("sdeint, milstein, float64", sde, 1e-5),  # normals are the same to single precision
        ("digits, DDIM, float32", lambda at: of_digits(at, scale), 5e-3),
        ("U-Net, DDIM, float16 beside float32", lambda at: of_unet(at, scale, parallel=at != HOST), 5e-2),
    ):
        here, there = answer(HOST).double(), answer(device).cpu().double()
        distance = float((there - here).norm() / here.norm())
        found.append({"answer": name, "distance": distance, "allowed": allowed, "agrees": distance <= allowed})
    return found


def grid(device: torch.device, scale: Scale, name: str) -> Tensor:
    """A whole solve of a path."""
    path, size = PATHS[name], min(scale.size, 16)
    y0, mixing = (x.double() for x in problem(scale.batch, size, device))
    term = path.term(lambda t, y: torch.tanh(y @ mixing) - 0.5 * y, lambda function: function)
    ts = ps.grids.uniform(path.times[0], path.times[1] / 10, 64)
    how = {"integrator": path.integrator, "iteration": path.iteration, "batch_dims": 1, "tol": 1e-9}
    return ps.solve(term, y0, ts, **how).ys


def collocation(device: torch.device) -> Tensor:
    """A pendulum."""
    y0 = torch.tensor([1.0, 0.5], dtype=torch.float64, device=device)

    def drift(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[..., 1], -torch.sin(y[..., 0])], -1)

    return ps.odeint(drift, y0, torch.tensor([0.0, 5.0, 20.0]), rtol=1e-9, atol=1e-9, options={"vectorized": True})


class Equation:
    """A small SDE."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift."""
        return torch.sin(y) - y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion."""
        return 0.3 * torch.cos(y)


def sde(device: torch.device) -> Tensor:
    """Its noise is the same on every device."""
    y0 = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4).to(device)
    return ps.sdeint(Equation(), y0, torch.tensor([0.0, 0.5, 1.0]), method="milstein", dt=0.02)


def of_digits(device: torch.device, scale: Scale) -> Tensor:
    """An image of the trained pipeline, in parallel on both devices."""
    pipe = digits(DDIMScheduler.from_config(digits().scheduler.config), torch.float32)
    pipe.to(device)
    try:
        given = {"num_inference_steps": scale.steps, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
        return torch.from_numpy(sample(pipe, window=8, tolerance=1e-3, **given).images)
    finally:
        pipe.to(HOST)


# ---- rounds


def rounds(device: torch.device, scale: Scale) -> list[Row]:
    """Of each path at window 32: what was counted on the simulated device, what the profiler saw, and the time.

    The launches and waits of the drift itself are among the profiler's: four launches a call.
    """
    model, found = constants(device, scale.repeats), []
    for name in scale.paths:
        path = PATHS[name]
        size = 64 if name.endswith("Newton") else scale.size
        counted = max(rounds_of(path, 32, 4), key=lambda x: x.of("kernel"))
        y0, mixing = problem(scale.batch, size, device)

        def drift(t: Tensor, y: Tensor, mixing: Tensor = mixing) -> Tensor:
            return torch.tanh(y @ mixing) - 0.5 * y

        def solved(rounds: int, path: Any = path, y0: Tensor = y0, drift: Any = drift) -> None:
            path.solve(32, y0, drift, lambda function: function, rounds)

        solved(6)
        more, fewer = (traced(lambda many=many: solved(many), device) for many in (16, 6))
        seconds = seconds_of(path, 32, scale.batch, size, device, lambda: finish(device))
        found.append(
            {
                "path": name,
                "operations": counted.of("operation"),
                "kernels": counted.of("kernel"),
                "copies": counted.of("copy to the device"),
                "waits": counted.of("wait"),
                **{f"profiler: {kind}": (more[kind] - fewer[kind]) / 10 for kind in ("launch", "copy", "wait")},
                "ms": 1e3 * min(seconds),
                "ms by the model": model.round(counted),
            }
        )
    return found


# ---- against the sequential solver


def widths(device: torch.device, scale: Scale) -> list[Row]:
    """Seconds of an ODE with a network of matrices for a drift, by the window, beside the sequential solver."""
    y0, mixing = problem(scale.batch, scale.size, device)

    def drift(t: Tensor, y: Tensor) -> Tensor:
        for _ in range(20):
            y = torch.tanh(y @ mixing)
        return y

    ts = ps.grids.uniform(0, 2, 4 * scale.steps)
    how: Row = {"integrator": ps.Euler(), "batch_dims": 1}
    return compared(
        device,
        scale,
        lambda: ps.sequential(ps.ODE(drift), y0, ts, **how).ys[-1],
        lambda width: ps.solve(ps.ODE(drift), y0, ts, window=width, tol=1e-3, **how).ys[-1],
    )


def pipeline_widths(device: torch.device, scale: Scale) -> list[Row]:
    """The same of the larger U-Net in half precision, beside its untouched pipeline."""
    return compared(
        device,
        scale,
        lambda: of_unet(device, scale, parallel=False, steps=scale.steps),
        lambda width: of_unet(device, scale, parallel=True, steps=scale.steps, width=width),
    )


def compared(
    device: torch.device, scale: Scale, untouched: Callable[[], Tensor], solved: Callable[[int], Tensor]
) -> Any:
    """Seconds of both, each once to warm up and once for the clock, and how far apart they are."""
    runs = {
        "sequential": untouched,
        **{f"window {width}": (lambda width=width: solved(width)) for width in scale.widths},
    }
    rows, reference = [], None
    for name, act in runs.items():
        act()
        finish(device)
        start = time.perf_counter()
        out = act()
        finish(device)
        seconds = time.perf_counter() - start
        reference = out if reference is None else reference
        gain = rows[0]["seconds"] / seconds if rows else 1.0
        distance = float((out - reference).double().norm() / reference.double().norm())
        rows.append({"run": name, "seconds": seconds, "gain": gain, "distance": distance})
    return rows


def of_unet(device: torch.device, scale: Scale, parallel: bool, steps: int = 6, width: int = 4) -> Tensor:
    """An image of a random U-Net: in half precision on a GPU, in single precision on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = len(scale.channels)
        network = UNet2DModel(
            sample_size=scale.pixels,
            block_out_channels=scale.channels,
            down_block_types=("DownBlock2D",) * (blocks - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (blocks - 1),
            norm_num_groups=8,
        )
    pipe = DDPMPipeline(network.eval().to(device, torch.float16 if device.type == "cuda" else None), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    given: Row = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
    out = sample(pipe, window=width, **given) if parallel else pipe(**given)
    return torch.from_numpy(out.images)


if __name__ == "__main__":
    sys.exit(main())
