"""Side by side with diffusers' own ParaDiGMS (Shih et al. 2023): rounds at matched error, and what it cannot run.

``python tests/benchmarks/paradigms.py`` prints three tables in under three minutes on one core. Both sides are given
the same networks, scheduler settings, steps, windows and seeds.
"""

import os
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parents[1]))

import diffusers
import mixture
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionParadigmsPipeline, StableDiffusionPipeline
from diffusers.configuration_utils import register_to_config
from pipelines import SD_BETAS, SIZE, counting, generator, stable_diffusion
from pipelines.parts import unet
from pipelines.unet_family import DIGITS
from torch import Tensor

from picardsolve.integrations.diffusers import sample

SEEDS = range(8)
LADDER = [float(f"{digit}e-{power}") for power in range(2, 7) for digit in (5, 2, 1)]  # tolerances of ours
SCHEDULERS = {  # the ordinary one, and the one for ParaDiGMS
    "DDPM": (diffusers.DDPMScheduler, diffusers.DDPMParallelScheduler),
    "DDIM": (diffusers.DDIMScheduler, diffusers.DDIMParallelScheduler),
    "Euler": (diffusers.EulerDiscreteScheduler, diffusers.EulerDiscreteScheduler),
    "DPM-Solver++": (diffusers.DPMSolverMultistepScheduler, diffusers.DPMSolverMultistepScheduler),
}
TRAILING, TO_ONE, UNCLIPPED = {"timestep_spacing": "trailing"}, {"set_alpha_to_one": True}, {"clip_sample": False}
SIZED = {"height": SIZE, "width": SIZE, "output_type": "latent"}


# ---- networks that both pipelines can call


class TextBlind(diffusers.UNet2DModel):
    """A network without a condition, called as one with text."""

    def forward(self, sample: Tensor, timestep: Any, return_dict: bool = True, **_: Any) -> Any:
        return super().forward(sample, timestep, return_dict=return_dict)


class ExactScore(diffusers.ModelMixin, diffusers.ConfigMixin):
    """The mixture's exact predicted noise on Stable Diffusion's schedule."""

    @register_to_config
    def __init__(self, in_channels: int = 1, sample_size: int = 8, time_cond_proj_dim: int | None = None):
        super().__init__()
        self.mixture = mixture.Mixture()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.register_buffer("signal", (1 - betas).cumprod(0))

    def forward(self, sample: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        signal = self.signal[timestep.expand(len(sample))]
        return (self.mixture.epsilon(sample.flatten(1), signal.sqrt(), (1 - signal).sqrt()).view_as(sample),)


@dataclass(frozen=True)
class Model:
    """A network, with what else both pipelines need to call it.

    Attributes:
        name: for the table.
        parts: of the pipelines.
        inputs: of their calls.
        config: of all schedulers.
        rows: of the network's batch, for one state.
    """

    name: str
    parts: dict[str, Any]
    inputs: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    rows: int = 1


def random_sd(dtype: torch.dtype = torch.float32) -> Model:
    """Stable Diffusion with random weights, and guidance."""
    pipe = stable_diffusion()
    parts = {name: deepcopy(getattr(pipe, name)).to(dtype) for name in ("unet", "text_encoder", "vae")}
    return Model("SD, random", parts, {**SIZED, "prompt": "a cat", "guidance_scale": 7.5}, SD_BETAS, rows=2)


def _text_blind(name: str, net: Any, config: dict[str, Any]) -> Model:
    text = {"prompt_embeds": torch.zeros(1, 1, 1, dtype=net.dtype), "guidance_scale": 1.0}
    return Model(name, {"unet": net, "text_encoder": None, "tokenizer": None}, {**SIZED, **text}, config)


def trained_digits() -> Model:
    """The trained network of ``examples/digits``, with the settings of its own scheduler."""
    net = TextBlind.from_pretrained(DIGITS, subfolder="unet", low_cpu_mem_usage=False).eval()
    net.register_to_config(time_cond_proj_dim=None)  # the pipelines look it up
    return _text_blind("digits, trained", net, {})


# ---- runs


def theirs(pipe: Any, window: int, tolerance: float, **inputs: Any) -> Tensor:
    return pipe(parallel=window, tolerance=tolerance, **inputs).images


def ours(pipe: Any, window: int, tolerance: float, **inputs: Any) -> Tensor:
    return sample(pipe, window=window, tolerance=tolerance, **inputs).images


Run = Callable[..., Tensor]


def distance(actual: Tensor, expected: Tensor) -> float:
    """RMS of the difference, relative to RMS of what is expected."""
    actual, expected = actual.double(), expected.double()
    return float((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@dataclass(frozen=True)
class Cost:
    """Of the same sampler run for several seeds: an entry each."""

    rounds: Sequence[int]
    evaluations: Sequence[float]
    width: Sequence[int]
    errors: Sequence[float]

    def as_exact_as(self, other: "Cost") -> bool:
        """Whether neither the median nor the worst error is larger."""
        return all(of(self.errors) <= of(other.errors) for of in (statistics.median, max))


@dataclass(frozen=True)
class Sampling:
    """A sampler on a model, and how wide a window it is given."""

    model: Model
    scheduler: str
    steps: int
    window: int
    config: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)  # inputs
    cls: type = StableDiffusionPipeline

    def pipe(self, run: Run | None = None) -> Any:
        scheduler = SCHEDULERS[self.scheduler][run is theirs](**self.model.config, **self.config)
        return stable_diffusion(
            scheduler, StableDiffusionParadigmsPipeline if run is theirs else self.cls, **self.model.parts
        )

    def inputs(self, generators: Any) -> dict[str, Any]:
        return {**self.model.inputs, **self.more, "num_inference_steps": self.steps, "generator": generators}

    def sequential(self, seeds: Sequence[int]) -> Tensor:
        """All seeds in one batch: each has its own generator, and is moved by rounding only."""
        inputs = self.inputs([generator(seed) for seed in seeds])
        return self.pipe()(**inputs, num_images_per_prompt=len(seeds)).images

    def cost(self, run: Run, tolerance: float, expected: Tensor, seeds: Sequence[int] = SEEDS) -> Cost:
        """Every seed is run by itself: both sides move a batch at the pace of its slowest sample."""
        pipe, found = self.pipe(run), []
        for seed, wanted in zip(seeds, expected, strict=True):
            with counting(pipe.unet) as rows:
                (image,) = run(pipe, self.window, tolerance, **self.inputs(generator(seed)))
            states = [row // self.model.rows for row in rows]
            found.append((len(states), sum(states) / self.steps, max(states), distance(image, wanted)))
        return Cost(*zip(*found, strict=True))


# ---- at matched error


def samplings() -> list[tuple[Sampling, dict[float, float]]]:
    """What ParaDiGMS runs correctly; with tolerances of theirs, and for each the first of ours to try."""
    sd, digits = random_sd(), trained_digits()
    ddpm, ddim = {**UNCLIPPED, **TRAILING}, {**UNCLIPPED, **TO_ONE}
    unclipped = Model("digits, no clip", digits.parts, digits.inputs, UNCLIPPED)
    return [
        (Sampling(sd, "DDPM", 100, 25, ddpm), {0.1: 2e-2, 0.01: 2e-3}),
        (Sampling(sd, "DDIM", 100, 16, ddim), {0.1: 5e-2, 0.01: 2e-3}),
        (Sampling(sd, "DDIM", 50, 16, ddim), {0.1: 5e-2, 0.01: 5e-3}),
        (Sampling(digits, "DDPM", 1000, 48, TRAILING), {0.1: 5e-4}),
        (Sampling(digits, "DDPM", 100, 25, TRAILING), {0.1: 5e-4, 0.01: 5e-4}),
        (Sampling(digits, "DDIM", 100, 16, TO_ONE), {0.1: 1e-2, 0.01: 5e-4}),
        (Sampling(digits, "DDIM", 50, 16, TO_ONE), {0.1: 1e-2, 0.01: 1e-3}),
        (Sampling(unclipped, "DDIM", 100, 16, TO_ONE), {0.1: 5e-3, 0.01: 1e-3}),
        (Sampling(unclipped, "DDIM", 50, 16, TO_ONE), {0.1: 5e-3, 0.01: 5e-4}),
    ]


def as_exact(sampling: Sampling, goal: Cost, first: float, expected: Tensor) -> tuple[float, Cost]:
    """Ours at the first tolerance of the ladder, from the given one down, with errors no larger than the goal's."""
    tolerances = [tolerance for tolerance in LADDER if tolerance <= first]
    for tolerance in tolerances:
        cost = sampling.cost(ours, tolerance, expected)
        if cost.as_exact_as(goal):
            break
    return tolerance, cost


def both(values: Sequence[float], form: str) -> str:
    """Median and worst."""
    return f"{format(statistics.median(values), form)} / {format(max(values), form)}"


def matched_error() -> None:
    """Print the costs of both sides where their measured errors match."""
    print(
        "StableDiffusionParadigmsPipeline and picardsolve at matched measured error; median / worst of 8 seeds\n\n"
        "Error: RMS distance of the final latents to those of the sequential pipeline with the same noise, relative\n"
        "to their RMS. A tolerance of theirs is relative to the noise of a step, one of ours to the state: ours is 1,\n"
        "2 or 5 times a power of ten at which neither the median nor the worst error is larger than theirs.\n\n"
        "model            sampler    window  side    tolerance  rounds       evaluations/N  width  error              "
        " rounds,\n" + 99 * " " + "theirs : ours"
    )
    for sampling, tolerances in samplings():
        expected = sampling.sequential(SEEDS)
        name = f"{sampling.model.name:15s}  {sampling.scheduler}-{sampling.steps:<4d}  {sampling.window:6d}"
        for tolerance, first in tolerances.items():
            before = sampling.cost(theirs, tolerance, expected)
            lower, after = as_exact(sampling, before, first, expected)
            ratio = f"{statistics.median(before.rounds) / statistics.median(after.rounds):.2f}"
            end = ratio if after.as_exact_as(before) else "not as exact"
            for side, tol, cost, more in (("theirs", tolerance, before, ""), ("ours", lower, after, "  " + end)):
                print(
                    f"{name}  {side:6s}  {tol:<9g}  {both(cost.rounds, '4.1f'):11s}  "
                    f"{both(cost.evaluations, '5.2f'):13s}  {max(cost.width):5d}  {both(cost.errors, '.1e')}{more}"
                )


# ---- what only one side runs


def trials() -> dict[str, Sampling]:
    """Calls that ParaDiGMS gets wrong or refuses, after one that it gets right."""
    sd, half = random_sd(), random_sd(torch.float16)
    learned = unet(gain=1.0, cross_attention_dim=32, attention_head_dim=4, out_channels=8).float()
    variance = Model(sd.name, {**sd.parts, "unet": learned}, sd.inputs, sd.config)
    ddpm, ddim, final = {**UNCLIPPED, **TRAILING}, {**UNCLIPPED, **TO_ONE}, {**UNCLIPPED, "set_alpha_to_one": False}
    leading, linspace = ({**UNCLIPPED, "timestep_spacing": spacing} for spacing in ("leading", "linspace"))
    small_log, learned_range = ({**ddpm, "variance_type": kind} for kind in ("fixed_small_log", "learned_range"))
    watch = {"callback": lambda *_: None, "callback_steps": 1}
    image = {"image": torch.rand(1, 3, SIZE, SIZE, generator=generator(0)), "strength": 0.8}
    return {
        "DDIM-50, set_alpha_to_one=True": Sampling(sd, "DDIM", 50, 16, ddim),
        "DDIM-50, set_alpha_to_one=False": Sampling(sd, "DDIM", 50, 16, final),
        "DDIM-50, set_alpha_to_one=False, window 1": Sampling(sd, "DDIM", 50, 1, final),
        "DDPM-30, trailing": Sampling(sd, "DDPM", 30, 16, ddpm),
        "DDPM-20, linspace": Sampling(sd, "DDPM", 20, 16, linspace),
        "DDPM-50, variance_type=fixed_small_log": Sampling(sd, "DDPM", 50, 16, small_log),
        "DDPM-50, variance_type=learned_range": Sampling(variance, "DDPM", 50, 16, learned_range),
        "DDIM-50, eta=0.5": Sampling(sd, "DDIM", 50, 16, ddim, {"eta": 0.5}),
        "Euler-30": Sampling(sd, "Euler", 30, 16),
        "DPM-Solver++-30": Sampling(sd, "DPM-Solver++", 30, 16),
        "DDIM-50 with a callback": Sampling(sd, "DDIM", 50, 16, ddim, watch),
        "DDIM-50, image to image": Sampling(sd, "DDIM", 50, 16, ddim, image, StableDiffusionImg2ImgPipeline),
        "DDIM-50, float16": Sampling(half, "DDIM", 50, 16, ddim),
        "DDPM-1000, leading, offset 1 (their docs)": Sampling(sd, "DDPM", 1000, 16, leading),
    }


def attempt(sampling: Sampling, run: Run, expected: Tensor | None) -> tuple[str, str]:
    """How far seed 0 ends from what is expected, or what was raised; and the rounds."""
    with counting(sampling.model.parts["unet"]) as rows:
        try:
            image = run(sampling.pipe(run), sampling.window, 1e-3, **sampling.inputs(generator(0)))
        except Exception as error:
            told = f"{type(error).__name__}: {error}".rstrip(": ")
            return told if len(told) <= 46 else told[:43] + "...", ""
    return "ran" if expected is None else f"{distance(image, expected):.1e}", str(len(rows))


def print_row(case: str, cells: Sequence[str]) -> None:
    print(f"{case:43s}  {cells[0]:46s}  {cells[1]:>6s}  {cells[2]:46s}  {cells[3]:>6s}".rstrip())


def one_sided() -> None:
    """Print what both sides do with calls that ParaDiGMS gets wrong."""
    print(
        "\n\nWhat ParaDiGMS gets wrong, run now: distance to the sequential pipeline as above, and rounds. Random SD,\n"
        "one seed, tolerance 1e-3 (of each side's own kind), window 16 where no other is given. The first row is one\n"
        "that it gets right, to compare with; what has a star, the sequential pipeline does not run either.\n"
    )
    print_row("case", ["theirs", "rounds", "ours", "rounds"])
    for name, sampling in trials().items():
        try:
            expected = sampling.sequential([0])
        except Exception:
            expected, name = None, f"{name} *"
        print_row(name, [*attempt(sampling, theirs, expected), *attempt(sampling, ours, expected)])


def false_convergence() -> None:
    """Print the worst of many seeds on the exact score, where a state may rest for a round before it moves on."""
    seeds, model = range(64), _text_blind("exact score", ExactScore(), SD_BETAS)
    sampling = Sampling(model, "DDIM", 200, 32, {**UNCLIPPED, **TO_ONE})
    expected = sampling.sequential(seeds)
    before = sampling.cost(theirs, 0.1, expected, seeds)
    name = f"DDIM-200 on an exact score, window 32, {len(seeds)} seeds"
    print(f"\n\n{name}; median / worst distance, median rounds; theirs at tolerance 0.1, its default\n")
    print_row("tolerance of ours", ["theirs", "rounds", "ours", "rounds"])
    for tolerance in (0.1, 3e-3):
        cells = []
        for cost in (before, sampling.cost(ours, tolerance, expected, seeds)):
            lost = sum(error > 0.3 for error in cost.errors)
            cells += [f"{both(cost.errors, '.1e')}, above 0.3: {lost}", f"{statistics.median(cost.rounds):g}"]
        print_row(f"{tolerance:g}", cells)


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both pipelines use what diffusers has deprecated
        matched_error()
        one_sided()
        false_convergence()


if __name__ == "__main__":
    main()
