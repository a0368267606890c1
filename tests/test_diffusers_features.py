"""What users of diffusers do around a pipeline's call: callbacks, hooks, caches, types, compilation, threads, loops."""

import copy
import inspect
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import MagCacheConfig, apply_first_block_cache
from peft import LoraConfig
from pipelines import CASES, SD_BETAS, SIZE, assert_same, counting, flux, generator, sd3, sdxl, stable_diffusion
from pipelines.parts import unet
from torch import Tensor, nn

from picardsolve.integrations.diffusers import denoise, sample, sampler

pytestmark = [
    # diffusers' schedulers make numpy arrays of tensors, in ways that numpy 2 wants torch to support differently
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

TOLERANCE = 1e-3
LATENT = SIZE // 2
SQUARE = {"height": SIZE, "width": SIZE, "output_type": "latent"}
PROMPT = {"prompt": "a cat", **SQUARE}
both_tolerances = pytest.mark.parametrize("tolerance", [0.0, TOLERANCE])


def with_betas(cls: type, **config: Any) -> Any:
    """A scheduler for latents, which have no range to be clipped to."""
    accepted = inspect.signature(cls.__init__).parameters
    return cls(**{key: value for key, value in {**SD_BETAS, "clip_sample": False}.items() if key in accepted}, **config)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def untouched(pipe: Any, seed: int = 5, **inputs: Any) -> Any:
    return pipe(**{"generator": generator(seed), **inputs}).images


def parallel(pipe: Any, seed: int = 5, window: Any = None, tolerance: float = TOLERANCE, **inputs: Any) -> Any:
    """The images and the report."""
    window = window or (6 if tolerance else 3)
    out = sample(pipe, window=window, tolerance=tolerance, **{"generator": generator(seed), **inputs})
    return out.images, out.report


def check(actual: Tensor, expected: Tensor, report: Any, tolerance: float = TOLERANCE) -> None:
    """To rounding, or: each round leaves an error of about the tolerance."""
    assert type(actual) is Tensor
    if tolerance == 0:
        assert_same(actual, expected)
        return
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert distance(actual, expected) <= tolerance * report.rounds, (distance(actual, expected), report)


def distance(actual: Tensor, expected: Tensor) -> float:
    """Relative, in double precision."""
    assert actual.dtype == expected.dtype
    actual, expected = actual.double(), expected.double()
    return float(torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected))


def apart(one: Tensor, other: Tensor, steps: int = 12) -> bool:
    """Whether two results differ by more than a parallel run's may."""
    return distance(one, other) > 2 * TOLERANCE * steps


def stable_diffusion_of_copies(dtype: torch.dtype = torch.float64, scheduler: Any = None) -> Any:
    """With modules of its own, for tests that change them."""
    pipe = stable_diffusion(scheduler)
    for name in ("unet", "vae", "text_encoder"):
        setattr(pipe, name, copy.deepcopy(getattr(pipe, name)).to(dtype))
    return pipe


# ---- 1. the call's arguments

TIMESTEPS = [999, 940, 860, 800, 700, 580, 500, 390, 300, 210, 130, 60, 20]
SIGMAS = [14.6, 11.0, 8.0, 6.1, 4.4, 3.1, 2.2, 1.5, 1.0, 0.6, 0.3, 0.1]
FLOW_SIGMAS = [1.0, 0.96, 0.9, 0.81, 0.7, 0.55, 0.42, 0.3, 0.18, 0.1, 0.04]
STEPS = {"num_inference_steps": 12}
TWO = {"prompt": ["a cat", "two dogs"], "negative_prompt": ["a dog", ""], **SQUARE, **STEPS}

ARGUMENTS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "latents": (stable_diffusion, {**PROMPT, **STEPS, "latents": noise(1, 4, LATENT, LATENT)}),
    "latents of two images": (
        stable_diffusion,
        {**PROMPT, **STEPS, "latents": noise(2, 4, LATENT, LATENT), "num_images_per_prompt": 2},
    ),
    "latents, SDXL": (sdxl, {**PROMPT, **STEPS, "latents": noise(1, 4, LATENT, LATENT)}),
    "timesteps, DDPM": (lambda: stable_diffusion(with_betas(DDPMScheduler)), {**PROMPT, "timesteps": TIMESTEPS}),
    "timesteps, Euler": (
        lambda: stable_diffusion(with_betas(EulerDiscreteScheduler)),
        {**PROMPT, "timesteps": TIMESTEPS},
    ),
    "timesteps, DPM-Solver": (
        lambda: stable_diffusion(with_betas(DPMSolverMultistepScheduler)),
        {**PROMPT, "timesteps": TIMESTEPS},
    ),
    "sigmas, Euler": (lambda: stable_diffusion(with_betas(EulerDiscreteScheduler)), {**PROMPT, "sigmas": SIGMAS}),
    "sigmas, SDXL": (sdxl, {**PROMPT, "sigmas": SIGMAS}),
    "sigmas, SD3": (sd3, {**PROMPT, "max_sequence_length": 32, "sigmas": FLOW_SIGMAS}),
    "sigmas, Flux": (flux, {**PROMPT, "max_sequence_length": 32, "sigmas": FLOW_SIGMAS}),
    "rescaled guidance": (stable_diffusion, {**PROMPT, **STEPS, "guidance_rescale": 0.7}),
    "several prompts": (stable_diffusion, TWO),
    "several prompts, Flux": (flux, {"prompt": ["a cat", "two dogs"], "max_sequence_length": 32, **SQUARE, **STEPS}),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name):
    make, inputs = ARGUMENTS[name]
    pipe = make()
    expected = untouched(pipe, **inputs)
    for tolerance in (0.0, TOLERANCE):
        actual, report = parallel(pipe, tolerance=tolerance, **inputs)
        check(actual, expected, report, tolerance)
        assert report.steps == len(pipe.scheduler.timesteps)
        assert report.sequential is None
    assert report.rounds < report.steps


@both_tolerances
@pytest.mark.parametrize("make", [DDIMScheduler, EulerAncestralDiscreteScheduler])
def test_a_generator_for_every_image_of_every_prompt(make, tolerance):
    pipe = stable_diffusion(with_betas(make))
    inputs = {**TWO, "num_images_per_prompt": 2}
    given, again = ([generator(seed) for seed in (3, 4, 5, 6)] for _ in range(2))
    expected = untouched(pipe, generator=given, **inputs)
    actual, report = parallel(pipe, tolerance=tolerance, generator=again, **inputs)
    check(actual, expected, report, tolerance)
    assert report.samples == 4
    for one, other in zip(given, again, strict=True):
        assert torch.equal(one.get_state(), other.get_state())
    single = untouched(pipe, generator=generator(3), **{**PROMPT, **STEPS, "negative_prompt": "a dog"})
    assert_same(actual[:1], single, 1e-5 if tolerance == 0 else tolerance * report.rounds)


@pytest.mark.parametrize("later", [0.5, 6.0])
def test_the_scale_of_a_lora(later):
    def rescale(pipe, i, t, tensors):
        if i == 5:
            pipe._cross_attention_kwargs = {"scale": later}
        return {}

    pipe = stable_diffusion_of_copies()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
        pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False))
    pipe.unet.double()
    inputs = {**PROMPT, **STEPS, "cross_attention_kwargs": {"scale": 0.5}, "callback_on_step_end": rescale}
    expected = untouched(pipe, **inputs)
    for scale in (None, {"scale": 6.0 if later == 0.5 else 0.5}):
        other = untouched(pipe, **PROMPT, **STEPS, cross_attention_kwargs=scale)
        assert apart(other, expected)  # the scale matters
    for tolerance in (0.0, TOLERANCE):
        actual, report = parallel(pipe, tolerance=tolerance, **inputs)
        check(actual, expected, report, tolerance)
        assert report.sequential is None
    assert torch.equal(untouched(pipe, **inputs), expected)  # the adapter is left as it was


@pytest.mark.parametrize(("part", "output_type"), [("slicing", "pt"), ("tiling", "np"), ("tiling", "pil")])
def test_an_autoencoder_in_parts(part, output_type):
    def array(images: Any) -> Tensor:
        return torch.stack([torch.from_numpy(np.asarray(image).astype(np.float64)) for image in images])

    pipe = stable_diffusion_of_copies()
    inputs = {**TWO, "output_type": output_type, "num_inference_steps": 5}
    whole = array(untouched(pipe, **inputs))
    getattr(pipe.vae, f"enable_{part}")()
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = LATENT // 2, SIZE // 2
    expected = untouched(pipe, **inputs)
    actual, report = parallel(pipe, tolerance=0.0, **inputs)
    assert type(actual) is type(expected)
    assert_same(array(actual), array(expected), 1 / 255 if output_type == "pil" else 1e-5)
    assert report.sequential is None
    if part == "tiling":
        assert not torch.equal(array(expected), whole)


# ---- 1. callbacks


def with_callback(callback: Callable[..., Any], **inputs: Any) -> dict[str, Any]:
    return {**PROMPT, **STEPS, "callback_on_step_end": callback, **inputs}


@both_tolerances
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_a_callback_that_reads(scheduler, tolerance):
    def read(pipe, i, t, tensors):
        assert tensors.keys() == {"latents", "prompt_embeds"}
        latents = tensors["latents"]
        norm = float(latents.norm())
        values = [latents.mean().item(), latents.max().item(), norm, *latents.flatten()[:3].tolist()]
        array = latents.detach().cpu().numpy().copy()
        seen.append((i, float(t), torch.from_numpy(array), torch.tensor(values), tensors["prompt_embeds"]))
        assert pipe.num_timesteps == 12
        return {}

    pipe = stable_diffusion(with_betas(scheduler))
    inputs = with_callback(read, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])
    seen = expected = []
    image = untouched(pipe, **inputs)
    seen = []
    actual, report = parallel(pipe, tolerance=tolerance, **inputs)
    check(actual, image, report, tolerance)
    assert [(i, t) for i, t, *_ in seen] == [(i, t) for i, t, *_ in expected]
    for (_, _, latents, values, prompt), (_, _, latents_, values_, prompt_) in zip(seen, expected, strict=True):
        check(latents, latents_, report, tolerance)
        torch.testing.assert_close(values, values_, rtol=1e-5, atol=max(1e-5, 0.1 * tolerance * report.rounds))
        assert_same(prompt, prompt_)


KEPT = {
    "latents": lambda x: x,
    "a clone": lambda x: x.clone(),
    "on the CPU": lambda x: x.detach().cpu(),
    "the first": lambda x: x[0],
    "in single precision": lambda x: x.float(),
    "half of it": lambda x: 0.5 * x,
    "a norm": lambda x: x.norm(),
}


@both_tolerances
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_a_callback_that_keeps_what_it_sees(scheduler, tolerance):
    def keep(pipe, i, t, tensors):
        stored.append({name: keeps(tensors["latents"]) for name, keeps in KEPT.items()})
        times.append(t)
        return tensors

    pipe = stable_diffusion(with_betas(scheduler))
    stored, times = expected, expected_times = [], []
    untouched(pipe, **with_callback(keep))
    stored, times = [], []
    _, report = parallel(pipe, tolerance=tolerance, **with_callback(keep))
    assert len(stored) == 12
    for one, other in zip(stored, expected, strict=True):
        for name in KEPT:
            check(one[name], other[name], report, tolerance)
    assert [type(t) for t in times] == [Tensor] * 12
    assert [float(t) for t in times] == [float(t) for t in expected_times]


@both_tolerances
def test_a_callback_that_decodes_previews(tolerance):
    def preview(pipe, i, t, tensors):
        if i % 4 == 3:
            decoded = pipe.vae.decode(tensors["latents"] / pipe.vae.config.scaling_factor).sample
            images.append(pipe.image_processor.postprocess(decoded, output_type="np"))
        return {}

    pipe = stable_diffusion()
    images = expected = []
    image = untouched(pipe, **with_callback(preview))
    images = []
    actual, report = parallel(pipe, tolerance=tolerance, **with_callback(preview))
    check(actual, image, report, tolerance)
    for one, other in zip(images, expected, strict=True):
        check(torch.from_numpy(one), torch.from_numpy(other), report, tolerance)


def attentive() -> Any:
    """With a U-Net that follows its prompt, which the small random one hardly does."""
    pipe = stable_diffusion_of_copies()
    with torch.no_grad():
        for name, weight in pipe.unet.named_parameters():
            if ".attn2." in name and weight.dim() > 1:
                weight.mul_(10 if "to_out" in name else 5)
    return pipe


def dynamic_guidance(pipe, i, t, tensors, step):
    """As in the documentation of diffusers."""
    if i == step:
        pipe._guidance_scale = 0.0
        tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
    return tensors


def ramped_guidance(pipe, i, t, tensors, step):
    pipe._guidance_scale = 7.5 + 6.0 * max(0, i - step)
    return {}


def other_guidance(pipe, i, t, tensors, step):
    if i == step:
        pipe._guidance_scale = 25.0
    return {}


def other_prompt(pipe, i, t, tensors, step):
    return {"prompt_embeds": -tensors["prompt_embeds"]} if i == step else {}


def other_prompt_in_place(pipe, i, t, tensors, step):
    if i == step:
        tensors["prompt_embeds"][1:] *= -1
    return {}


def other_prompts(pipe, i, t, tensors, step):
    return {"prompt_embeds": -0.9 * tensors["prompt_embeds"]} if i >= step else {}


def latents_in_place(pipe, i, t, tensors, step):
    if i == step:
        tensors["latents"][:, :, :3] = 0.25
    return {}


CHANGES = [
    *[dynamic_guidance, ramped_guidance, other_guidance],
    *[other_prompt, other_prompt_in_place, other_prompts, latents_in_place],
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_callback_that_changes_the_rest_of_the_run(change):
    pipe, names = attentive(), ["latents", "prompt_embeds"]
    before = untouched(pipe, **PROMPT, **STEPS)
    for step, tolerance in [(6, 0.0), (3, TOLERANCE)]:
        inputs = with_callback(partial(change, step=step), callback_on_step_end_tensor_inputs=names)
        expected = untouched(pipe, **inputs)
        actual, report = parallel(pipe, tolerance=tolerance, **inputs)
        check(actual, expected, report, tolerance)
        assert report.rounds <= report.steps
        assert apart(before, expected)


@both_tolerances
@pytest.mark.parametrize(("step", "output_type"), [(0, "latent"), (5, "latent"), (5, "pt"), (11, "latent")])
def test_a_callback_that_interrupts(step, output_type, tolerance):
    def interrupt(pipe, i, t, tensors):
        calls.append(i)
        if i == step:
            pipe._interrupt = True
        return {}

    pipe, calls = stable_diffusion(), []
    inputs = with_callback(interrupt, output_type=output_type)
    expected = untouched(pipe, **inputs)
    assert calls == list(range(step + 1))
    calls.clear()
    actual, report = parallel(pipe, tolerance=tolerance, **inputs)
    check(actual, expected, report, tolerance)
    assert calls == list(range(step + 1))
    assert report.rounds <= step + 1
    if output_type == "pt":  # and the next run is a whole one
        actual, report = parallel(pipe, tolerance=tolerance, **PROMPT, **STEPS)
        check(actual, untouched(pipe, **PROMPT, **STEPS), report, tolerance)


# ---- 2. max_batch


@pytest.mark.parametrize(
    ("images", "limit", "tolerance"),
    [(1, 1, 0.0), (1, 7, TOLERANCE), (2, 3, TOLERANCE), (2, 9, 0.0), (2, 100, TOLERANCE)],
)
def test_no_call_has_more_rows_than_max_batch(images, limit, tolerance):
    pipe, inputs = stable_diffusion(), {**PROMPT, **STEPS, "num_images_per_prompt": images}
    with counting(pipe.unet) as rows:
        expected = untouched(pipe, **inputs)
    step = max(rows)
    assert step == 2 * images
    with counting(pipe.unet) as rows:
        free, without = parallel(pipe, window=6, tolerance=tolerance, **inputs)
    assert without.calls == without.rounds == len(rows)
    assert max(rows) == 12 * images
    with counting(pipe.unet) as rows:
        actual, report = parallel(pipe, window=6, tolerance=tolerance, max_batch=limit, **inputs)
    check(actual, expected, report, tolerance)
    assert max(rows) <= max(limit, step)
    assert_same(actual, free)
    assert report.rounds == without.rounds
    assert report.calls == len(rows) >= report.rounds
    assert report.evaluations * 2 == sum(rows)
    assert report.evaluations >= without.evaluations
    assert (report.calls > report.rounds) == (limit < 12 * images)


@both_tolerances
def test_max_batch_with_two_calls_a_step(tolerance):
    pipe, more = flux(), {"negative_prompt": "a dog", "true_cfg_scale": 4.0, "max_sequence_length": 32}
    inputs = {**PROMPT, **STEPS, **more}
    expected = untouched(pipe, **inputs)
    _, without = parallel(pipe, window=6, tolerance=tolerance, **inputs)
    with counting(pipe.transformer) as rows:
        actual, report = parallel(pipe, window=6, tolerance=tolerance, max_batch=3, **inputs)
    check(actual, expected, report, tolerance)
    assert max(rows) == 3
    assert report.rounds == without.rounds
    assert report.calls == len(rows) > without.calls > without.rounds


# ---- 3. window="auto"

MATRIX = 0.4 * noise(4, 4)


def cheap(x: Tensor, t: Tensor) -> Tensor:
    mixed = torch.einsum("ij,bj...->bi...", MATRIX, x)
    return torch.tanh(mixed) + 1e-4 * torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1, 1, 1)


def ddim(steps: int) -> Any:
    scheduler = with_betas(DDIMScheduler)
    scheduler.set_timesteps(steps)
    return scheduler


def by_hand(steps: int, x: Tensor) -> Tensor:
    scheduler = ddim(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(cheap(x, t), t, x).prev_sample
    return x


class Clock:
    """A time that passes only in the denoiser, so that what is decided by the clock is the same everywhere."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    for module in ("denoiser_calls", "loop", "window"):
        monkeypatch.setattr(f"picardsolve.integrations.diffusers.run.{module}.perf_counter", made)
    return made


def test_auto_is_sequential_where_time_grows_with_the_rows(clock):
    def model(x, t):
        clock.sleep(0.002 * len(x))
        return cheap(x, t)

    x = noise(1, 4, 4, 4, seed=1)
    actual, report = denoise(model, ddim(60), x, window="auto", tolerance=TOLERANCE)
    check(actual, by_hand(60, x), report)
    assert isinstance(report.sequential, str)
    assert len(report.sequential.split()) > 3
    assert report.sequential in str(report)
    assert report.round_seconds[-1][0] == 1
    assert report.evaluations < 3 * 60  # what was tried in vain


def test_auto_is_parallel_where_every_call_takes_the_same_time(clock):
    def model(x, t):
        clock.sleep(0.004)
        return cheap(x, t)

    x = noise(1, 4, 4, 4, seed=1)
    actual, report = denoise(model, ddim(60), x, window="auto", tolerance=TOLERANCE)
    check(actual, by_hand(60, x), report)
    assert report.sequential is None
    assert report.rounds < 0.6 * 60
    assert report.width > 1


@pytest.mark.parametrize("limit", [2, 3, 8, 20])
def test_auto_within_max_batch(limit, clock):
    def model(x, t):
        rows.append(len(x))
        clock.sleep(0.002)
        return cheap(x, t)

    x, rows = noise(2, 4, 4, 4, seed=1), []
    actual, report = denoise(model, ddim(40), x, window="auto", max_batch=limit, tolerance=TOLERANCE)
    check(actual, by_hand(40, x), report)
    assert report.width <= limit // 2
    assert max(rows) <= limit


@pytest.mark.parametrize(("limit", "tolerance"), [(None, TOLERANCE), (2, TOLERANCE), (10, TOLERANCE), (10, 0.0)])
def test_auto_in_a_pipeline(limit, tolerance):
    pipe, inputs = stable_diffusion(), {**PROMPT, "num_inference_steps": 24}
    expected = untouched(pipe, **inputs)
    with counting(pipe.unet) as rows:
        actual, report = parallel(pipe, window="auto", tolerance=tolerance, max_batch=limit, **inputs)
    check(actual, expected, report, tolerance)
    assert report.calls == len(rows)
    if limit is not None:
        assert report.width <= limit // 2
        assert max(rows) <= limit


# ---- 4. types

HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("make", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_at_tolerance_zero(dtype, make):
    pipe, inputs = stable_diffusion_of_copies(dtype, with_betas(make)), {**PROMPT, **STEPS}
    expected = untouched(pipe, **inputs)
    assert expected.dtype == dtype
    actual, report = parallel(pipe, tolerance=0.0, **inputs)
    assert type(actual) is Tensor
    assert distance(actual, expected) < 4 * torch.finfo(dtype).eps
    assert report.tolerance == 0
    assert report.sequential is None


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_a_tolerance_below_the_resolution_is_raised_and_noted(dtype):
    pipe, inputs = stable_diffusion_of_copies(dtype), {**PROMPT, **STEPS}
    small = 1e-5 if dtype in HALVES else 1e-9
    expected = untouched(pipe, **inputs)
    actual, report = parallel(pipe, tolerance=small, **inputs)
    assert report.tolerance >= torch.finfo(dtype).eps > small
    assert report.tolerance < 20 * torch.finfo(dtype).eps
    assert distance(actual, expected) < report.tolerance * report.rounds
    assert any("tolerance" in note.lower() and note.endswith(".") for note in report.notes)
    assert all(note in str(report) for note in report.notes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_tolerance_above_the_resolution_is_left_alone(dtype):
    pipe, inputs = stable_diffusion_of_copies(dtype), {**PROMPT, **STEPS}
    expected = untouched(pipe, **inputs)
    actual, report = parallel(pipe, tolerance=TOLERANCE, **inputs)
    check(actual, expected, report)
    assert report.tolerance == TOLERANCE
    assert report.notes == []


@both_tolerances
def test_autocast(tolerance):
    pipe, inputs = stable_diffusion_of_copies(torch.float32), {**PROMPT, **STEPS}
    plain = untouched(pipe, **inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = untouched(pipe, **inputs)
        actual, report = parallel(pipe, tolerance=tolerance, **inputs)
    assert distance(plain, expected) > 1e-4  # the cast matters
    assert distance(actual, expected) < 4 * torch.finfo(torch.bfloat16).eps + tolerance * report.rounds
    assert report.rounds < report.steps or tolerance == 0


@both_tolerances
def test_inference_mode(tolerance):
    pipe, inputs = stable_diffusion(), {**PROMPT, **STEPS}
    with torch.inference_mode():
        expected = untouched(pipe, **inputs)
        actual, report = parallel(pipe, tolerance=tolerance, **inputs)
    check(actual, expected, report, tolerance)
    assert report.sequential is None
    assert report.rounds < report.steps or tolerance == 0


# ---- 5. torch.compile


class Backend:
    """Of torch.compile: runs the graph as it is; keeps the graphs, and the rows of latents of every call."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []
        self.rows: list[int] = []

    def __call__(self, graph: Any, example: Any) -> Any:
        self.graphs.append(graph)

        def run(*inputs: Any) -> Any:
            shapes = [tuple(x.shape) for x in inputs if isinstance(x, Tensor)]
            self.rows += [shape[0] for shape in shapes if shape[1:] == (4, LATENT, LATENT)][:1]
            return graph.forward(*inputs)

        return run


@contextmanager
def dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    try:
        yield
    finally:
        torch._dynamo.reset()


def compiled(pipe: Any, name: str, how: str) -> Backend:
    backend, module = Backend(), getattr(pipe, name)
    if how == "wrapped":
        setattr(pipe, name, torch.compile(module, backend=backend, dynamic=False))
    else:
        module.compile(backend=backend, dynamic=False)
    return backend


def state_of_compilation(module: Any) -> Any:
    parts = dict(module.named_modules())
    names = ("forward", "_compiled_call_impl")
    return [(name, set(vars(part)), [vars(part).get(key) for key in names]) for name, part in parts.items()]


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_compilations_do_not_grow_with_the_rounds(how):
    def run(call: Callable[..., Any], steps: int, **numerics: Any) -> Any:
        return call(pipe, num_inference_steps=steps, **numerics)

    with dynamo():
        pipe = Loop(Net(), with_betas(DDIMScheduler), plain)
        expected = {steps: run(untouched, steps) for steps in (9, 13, 30)}
        backend = compiled(pipe, "net", how)
        run(untouched, 2)
        once, before, graphs = len(backend.graphs), state_of_compilation(pipe.net), []
        assert once >= 1
        for steps in (9, 13, 30):
            backend.rows.clear()
            actual, report = run(parallel, steps, window=8)
            check(actual, expected[steps], report)
            assert report.sequential is None
            assert report.rounds < steps
            assert len(backend.rows) == report.rounds == report.calls  # every call ran compiled
            assert {rows for rows in backend.rows if rows > 2} == {16}
            assert report.evaluations == sum(backend.rows)
            assert state_of_compilation(pipe.net) == before
            graphs.append(len(backend.graphs))
        assert graphs == graphs[:1] * 3
        assert graphs[0] <= 3 * once


def test_a_compiled_unet():
    with dynamo():
        # of one level, for tracing takes a second for each
        blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
        pipe, inputs = stable_diffusion(), {**PROMPT, "num_inference_steps": 9}
        pipe.unet = unet(1.0, cross_attention_dim=32, attention_head_dim=4, block_out_channels=(8,), **blocks)
        expected = untouched(pipe, **inputs)
        backend = compiled(pipe, "unet", "wrapped")
        before = state_of_compilation(pipe.unet)
        actual, report = parallel(pipe, window=4, max_batch=6, **inputs)
        check(actual, expected, report)
        assert report.sequential is None
        assert report.rounds < 9
        assert set(backend.rows) == {2, 6}
        assert report.evaluations * 2 == sum(backend.rows)
        assert len(backend.graphs) <= 8
        assert state_of_compilation(pipe.unet) == before


# ---- 6. hooks of accelerate


class Watch(ModelHook):
    """Counts calls, and their rows."""

    def __init__(self) -> None:
        self.before: list[int] = []
        self.after = 0

    def pre_forward(self, module, *args, **kwargs):
        self.before.append(len(args[0]))
        return args, kwargs

    def post_forward(self, module, output):
        self.after += 1
        return output


@both_tolerances
def test_hooks_see_every_real_call(tolerance):
    pipe, inputs, watch = stable_diffusion_of_copies(), {**PROMPT, **STEPS}, Watch()
    expected = untouched(pipe, **inputs)
    add_hook_to_module(pipe.unet, watch)
    hooked, names = vars(pipe.unet)["forward"], set(vars(pipe.unet))
    actual, report = parallel(pipe, tolerance=tolerance, **inputs)
    check(actual, expected, report, tolerance)
    assert len(watch.before) == watch.after == report.calls
    assert sum(watch.before) == 2 * report.evaluations
    assert max(watch.before) > 2
    assert report.rounds < report.steps or tolerance == 0
    assert vars(pipe.unet)["forward"] is hooked
    assert set(vars(pipe.unet)) == names
    assert torch.equal(untouched(pipe, **inputs), expected)
    remove_hook_from_module(pipe.unet)
    assert pipe.unet.forward.__func__ is type(pipe.unet).forward


def test_hooks_that_align_devices():
    pipe, inputs = stable_diffusion_of_copies(), {**PROMPT, **STEPS}
    expected = untouched(pipe, **inputs)
    add_hook_to_module(pipe.unet, AlignDevicesHook("cpu", io_same_device=True))
    hooked = vars(pipe.unet)["forward"]
    actual, report = parallel(pipe, **inputs)
    check(actual, expected, report)
    assert report.rounds < report.steps
    assert vars(pipe.unet)["forward"] is hooked


@pytest.mark.parametrize("hooked_before", [True, False])
def test_hooks_put_anew_between_two_runs_of_a_context(hooked_before):
    """As pipelines with offloading do at the end of every call."""
    pipe, inputs, watches = stable_diffusion_of_copies(), {**PROMPT, **STEPS}, []

    def hook() -> Any:
        watches.append(Watch())
        remove_hook_from_module(pipe.unet)
        add_hook_to_module(pipe.unet, watches[-1])
        return vars(pipe.unet)["forward"]

    expected = untouched(pipe, **inputs)
    if hooked_before:
        hook()
    with sampler(pipe, window=6, tolerance=TOLERANCE) as run:
        for _ in range(3):
            actual = untouched(pipe, **inputs)
            check(actual, expected, run.report)
            assert run.report.sequential is None
            assert run.report.rounds < run.report.steps
            if watches:
                assert len(watches[-1].before) == watches[-1].after == run.report.calls
            hooked = hook()
    assert vars(pipe.unet)["forward"] is hooked
    with counting(pipe.unet) as rows:
        assert torch.equal(untouched(pipe, **inputs), expected)
    assert rows == [2] * 12
    pipe.unet.forward = hooked
    remove_hook_from_module(pipe.unet)
    assert pipe.unet.forward.__func__ is type(pipe.unet).forward
    assert torch.equal(untouched(pipe, **inputs), expected)


def test_hooks_put_anew_by_the_pipeline_itself():
    class Offloaded(diffusers.StableDiffusionPipeline):
        def maybe_free_model_hooks(self):
            remove_hook_from_module(self.unet)
            watches.append(Watch())
            add_hook_to_module(self.unet, watches[-1])

    pipe, inputs, watches = stable_diffusion(cls=Offloaded), {**PROMPT, **STEPS}, []
    pipe.unet = copy.deepcopy(pipe.unet)
    expected = untouched(pipe, **inputs)
    with sampler(pipe, window=6, tolerance=TOLERANCE) as run:
        for _ in range(2):
            check(untouched(pipe, **inputs), expected, run.report)
            assert run.report.rounds < run.report.steps
            assert len(watches[-2].before) == watches[-2].after == run.report.calls
        hooked = vars(pipe.unet)["forward"]
    assert vars(pipe.unet)["forward"] is hooked
    watch = watches[-1]
    assert torch.equal(untouched(pipe, **inputs), expected)
    assert watch.before == [2] * 12


# ---- 7. step caches


def flux_of_copies(dtype: torch.dtype = torch.float64) -> tuple[Any, dict[str, Any]]:
    pipe = flux()
    pipe.transformer = copy.deepcopy(pipe.transformer).to(dtype)
    return pipe, {**PROMPT, "max_sequence_length": 32, "num_inference_steps": 12}


def cogvideox_of_copies() -> tuple[Any, dict[str, Any]]:
    case = next(case for case in CASES if case.name == "CogVideoX")
    pipe = case.make()
    pipe.transformer = copy.deepcopy(pipe.transformer)
    return pipe, case.arguments()


def _attention_broadcast(pipe: Any) -> Any:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: pipe._current_timestep
    )


def _faster(pipe: Any) -> Any:
    return FasterCacheConfig(
        spatial_attention_timestep_skip_range=(-1, 1000),
        unconditional_batch_timestep_skip_range=(-1, 1000),
        current_timestep_callback=lambda: pipe._current_timestep,
        attention_weight_callback=lambda _: 0.3,
        tensor_format="BFCHW",
    )


CACHES = {
    "first block, Flux": (flux_of_copies, lambda pipe: FirstBlockCacheConfig(threshold=0.2)),
    "Taylor, Flux": (flux_of_copies, lambda pipe: TaylorSeerCacheConfig(taylor_factors_dtype=torch.float64)),
    "attention broadcast, CogVideoX": (cogvideox_of_copies, _attention_broadcast),
    "attention broadcast, Flux": (flux_of_copies, _attention_broadcast),
    "faster, CogVideoX": (cogvideox_of_copies, _faster),
    "MagCache, Flux": (flux_of_copies, lambda pipe: MagCacheConfig(mag_ratios=torch.ones(12), num_inference_steps=12)),
}


def output(pipe: Any, **inputs: Any) -> Tensor:
    out = pipe(generator=generator(5), **inputs)
    return out.images if hasattr(out, "images") else out.frames


@contextmanager
def not_called(module: nn.Module) -> Iterator[None]:
    def called(*args: Any) -> None:
        raise AssertionError("the denoiser was called")

    hook = module.register_forward_pre_hook(called)
    try:
        yield
    finally:
        hook.remove()


refused = pytest.raises(TypeError, match=r"(?is)transformer.*cache")


@pytest.mark.parametrize("name", CACHES)
def test_step_caches_are_refused(name):
    make, config = CACHES[name]
    pipe, inputs = make()
    expected = output(pipe, **inputs)
    names = set(vars(pipe.scheduler))
    pipe.transformer.enable_cache(config(pipe))
    assert pipe.transformer.is_cache_enabled
    with not_called(pipe.transformer):
        with refused:
            sample(pipe, generator=generator(5), **inputs)
        with refused, sampler(pipe):
            output(pipe, **inputs)
    assert set(vars(pipe.scheduler)) == names
    pipe.transformer.disable_cache()
    with sampler(pipe, window=4, tolerance=0.0) as run:
        assert_same(output(pipe, **inputs), expected)
    assert run.report.sequential is None
    assert run.report.width > 1


@pytest.mark.parametrize("name", CACHES)
def test_step_caches_enabled_in_the_context_are_refused(name):
    make, config = CACHES[name]
    pipe, inputs = make()
    expected = output(pipe, **inputs)
    with sampler(pipe, window=4, tolerance=0.0) as run:
        pipe.transformer.enable_cache(config(pipe))
        with not_called(pipe.transformer), refused:
            output(pipe, **inputs)
        pipe.transformer.disable_cache()
        assert_same(output(pipe, **inputs), expected)
        assert run.report.sequential is None
        assert run.report.width > 1
    assert torch.equal(output(pipe, **inputs), expected)


def test_a_cache_applied_by_hand_is_refused():
    pipe, inputs = flux_of_copies()
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.2))
    with not_called(pipe.transformer), refused:
        sample(pipe, generator=generator(5), **inputs)


def test_layerwise_casting_is_not_refused():
    pipe, inputs = flux_of_copies(torch.float32)
    given = {"prompt_embeds": noise(1, 7, 32), "pooled_prompt_embeds": noise(1, 32, seed=1)}
    inputs = {**inputs, "prompt": None, **{name: value.float() for name, value in given.items()}}
    plain = untouched(pipe, **inputs)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    expected = untouched(pipe, **inputs)
    assert not torch.equal(plain, expected)
    for tolerance in (0.0, TOLERANCE):
        actual, report = parallel(pipe, tolerance=tolerance, **inputs)
        assert type(actual) is Tensor
        assert distance(actual, expected) < (1e-5 if tolerance == 0 else tolerance * report.rounds)
        assert report.sequential is None
    assert report.rounds < report.steps


# ---- 8. threads, and pipelines within pipelines


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """What they return, run at once; the first error of any is raised."""
    results: list[Any] = [None] * len(functions)
    errors: list[BaseException] = []

    def run(k: int) -> None:
        try:
            results[k] = functions[k]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return results


def two_for_threads(make: type) -> list[Any]:
    """Two that share their modules, but no tokenizer: a fast one keeps its padding in itself, so two threads spoil it.

    Untouched pipelines that share one make wrong images in threads, too.
    """
    pipes = [stable_diffusion(with_betas(make)) for _ in range(2)]
    for pipe in pipes:
        pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    return pipes


@pytest.mark.parametrize("in_step", [True, False])
@pytest.mark.parametrize("make", [DDIMScheduler, EulerAncestralDiscreteScheduler])
def test_two_pipelines_in_two_threads(make, in_step):
    def meet(pipe, i, t, tensors):
        if in_step and i < 9:  # they take turns
            barrier.wait(120)
        return {}

    pipes = two_for_threads(make)
    assert pipes[0].unet is pipes[1].unet
    for trial in range(2):
        calls = [
            {**PROMPT, "num_inference_steps": 9 + trial, "seed": trial},
            {**PROMPT, "num_inference_steps": 14 - trial, "seed": 7, "num_images_per_prompt": 1 + trial % 2},
        ]
        barrier = threading.Barrier(1)
        alone = [
            parallel(pipe, tolerance=TOLERANCE, callback_on_step_end=meet, **inputs)
            for pipe, inputs in zip(pipes, calls, strict=True)
        ]
        barrier = threading.Barrier(2)
        together = in_threads(
            *(
                lambda pipe=pipe, inputs=inputs: parallel(
                    pipe, tolerance=TOLERANCE, callback_on_step_end=meet, **inputs
                )
                for pipe, inputs in zip(pipes, calls, strict=True)
            )
        )
        for (actual, report), (expected, before), inputs in zip(together, alone, calls, strict=True):
            assert_same(actual, expected, 1e-9)
            assert report.rounds == before.rounds < report.steps == inputs["num_inference_steps"]
            assert report.evaluations == before.evaluations


def test_two_equal_pipelines_that_start_at_once():
    """With a schedule that no run before had, so that nothing is known of its steps."""
    often = sys.getswitchinterval()
    pipes = two_for_threads(EulerDiscreteScheduler)
    for trial in range(6):
        calls = [
            partial(parallel, pipe, seed=seed, **PROMPT, sigmas=[sigma + 1e-3 * trial for sigma in SIGMAS])
            for seed, pipe in enumerate(pipes)
        ]
        try:
            sys.setswitchinterval(1e-5)
            together = in_threads(*calls)
        finally:
            sys.setswitchinterval(often)
        for (actual, report), call in zip(together, calls, strict=True):
            expected, alone = call()
            assert report.sequential is None
            assert report.rounds == alone.rounds < report.steps
            assert_same(actual, expected, 1e-9)


@both_tolerances
def test_an_untouched_pipeline_in_another_thread(tolerance):
    """While another is in the middle of a parallel run."""

    def meanwhile(pipe, i, t, tensors):
        if i in (2, 7):
            results.extend(in_threads(other))
        return {}

    def other() -> Any:
        assert vars(third.scheduler).keys() == names
        return untouched(third, seed=8, **inputs)

    pipe, third, results = stable_diffusion(), stable_diffusion(with_betas(EulerDiscreteScheduler)), []
    inputs = {**PROMPT, **STEPS}
    expected, expected_third = untouched(pipe, **inputs), untouched(third, seed=8, **inputs)
    names = vars(third.scheduler).keys()
    actual, report = parallel(pipe, tolerance=tolerance, callback_on_step_end=meanwhile, **inputs)
    check(actual, expected, report, tolerance)
    assert report.rounds < report.steps or tolerance == 0
    assert len(results) == 2
    for result in results:
        assert torch.equal(result, expected_third)


def test_a_scheduler_in_two_contexts_is_refused_in_another_thread_too():
    pipe = stable_diffusion()
    other = stable_diffusion(pipe.scheduler)
    expected = untouched(pipe, **PROMPT, **STEPS)
    with sampler(pipe, window=6, tolerance=0.0) as run:
        for again in (pipe, other):
            with pytest.raises(RuntimeError, match=r"^sampler: "):
                in_threads(lambda again=again: sample(again, **PROMPT, **STEPS))
        assert_same(untouched(pipe, **PROMPT, **STEPS), expected)
        assert run.report.sequential is None
    assert torch.equal(untouched(pipe, **PROMPT, **STEPS), expected)


@both_tolerances
@pytest.mark.parametrize("how", ["untouched", "sample", "denoiser"])
def test_a_callback_that_runs_another_pipeline(how, tolerance):
    def run_other(pipe, i, t, tensors):
        if i in (0, 3, 8):
            if how == "untouched":
                inner.append(untouched(other, seed=8, **short))
            elif how == "sample":
                inner.append(parallel(other, seed=8, window=3, tolerance=0.0, **short)[0])
            else:
                inner.append(pipe.unet(x, 500, text).sample)
        return {}

    pipe, other, inner = stable_diffusion(), stable_diffusion(with_betas(EulerDiscreteScheduler)), []
    short = {**PROMPT, "num_inference_steps": 5, "num_images_per_prompt": 2}
    x, text = noise(3, 4, LATENT, LATENT), noise(3, 7, 32)
    expected = untouched(pipe, **PROMPT, **STEPS)
    with torch.no_grad():
        expected_inner = pipe.unet(x, 500, text).sample if how == "denoiser" else untouched(other, seed=8, **short)
    actual, report = parallel(pipe, tolerance=tolerance, callback_on_step_end=run_other, **PROMPT, **STEPS)
    check(actual, expected, report, tolerance)
    assert report.steps == 12
    assert report.rounds < 12 or tolerance == 0
    assert len(inner) == 3
    for result in inner:
        check(result, expected_inner, report, 0.0)
    assert torch.equal(untouched(pipe, **PROMPT, **STEPS), expected)


# ---- 9. NaN


@both_tolerances
@pytest.mark.parametrize(("make", "bad"), [(DDIMScheduler, 0), (EulerDiscreteScheduler, 0), (DDIMScheduler, 1)])
def test_nan_in_a_sample_hides_no_other(bad, make, tolerance):
    latents = noise(2, 4, LATENT, LATENT)
    latents[bad, 1, 2, 3] = float("nan")
    pipe, inputs = stable_diffusion(with_betas(make)), {**PROMPT, **STEPS, "num_images_per_prompt": 2}
    expected = untouched(pipe, latents=latents, **inputs)
    assert expected[bad].isnan().any()
    assert not expected[1 - bad].isnan().any()
    actual, report = parallel(pipe, latents=latents, tolerance=tolerance, **inputs)
    assert torch.equal(actual.isnan(), expected.isnan())
    check(actual[1 - bad], expected[1 - bad], report, tolerance)
    assert not any("changed" in note for note in report.notes)  # nobody did


# ---- 10. other loops


class Net(nn.Module):
    """A small denoiser."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inner, self.outer = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        with torch.no_grad():
            self.outer.weight.mul_(4)  # the state is to matter
        self.double().eval()

    def forward(self, x: Tensor, t: Any) -> Tensor:
        t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1, 1, 1)
        return self.outer(torch.tanh(self.inner(x) + 1e-3 * t))


class Loop(DiffusionPipeline):
    """A pipeline whose loop is given: it makes one iteration's latents of (pipeline, latents, t)."""

    def __init__(self, net: Any, scheduler: Any, loop: Any = None):
        super().__init__()
        self.register_modules(net=net, scheduler=scheduler)
        self.loop = loop

    @torch.no_grad()
    def __call__(self, num_inference_steps: int = 20, generator: Any = None) -> Any:
        self.scheduler.set_timesteps(num_inference_steps)
        latents = noise(2, 4, LATENT, LATENT, seed=3) * self.scheduler.init_noise_sigma
        return SimpleNamespace(images=self.loop(self, latents, generator))

    def once(self, latents: Tensor, t: Any, generator: Any = None) -> Tensor:
        prediction = self.net(self.scheduler.scale_model_input(latents, t), t)
        return self.scheduler.step(prediction, t, latents, return_dict=False)[0]


def plain(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for t in pipe.scheduler.timesteps:
        x = pipe.once(x, t)
    return x


def indexed(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for i in range(len(pipe.scheduler.timesteps)):
        t = pipe.scheduler.timesteps[i]
        x = pipe.once(x, t)
    return x


def counted_down(pipe: Any, x: Tensor, g: Any) -> Tensor:
    i, timesteps = 0, pipe.scheduler.timesteps
    while i < 20:
        x = pipe.once(x, timesteps[i])
        i += 1
    return x


def of_numbers(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for t in pipe.scheduler.timesteps.tolist():
        x = pipe.once(x, t)
    return x


def of_a_list(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for t in list(pipe.scheduler.timesteps):
        x = pipe.once(x, t)
    return x


def of_pairs(pipe: Any, x: Tensor, g: Any) -> Tensor:
    timesteps = pipe.scheduler.timesteps
    for t, after in zip(timesteps, [*timesteps[1:], timesteps.new_zeros(())], strict=True):
        x = pipe.once(x, t) + 1e-5 * float(after)
    return x


NOT_OVER_TIMESTEPS = [indexed, counted_down, of_numbers]


def precomputed(pipe: Any, x: Tensor, g: Any) -> Tensor:
    weights = [1 - 3e-4 * float(t) for t in pipe.scheduler.timesteps]
    for i, t in enumerate(pipe.scheduler.timesteps):
        prediction = weights[i] * pipe.net(pipe.scheduler.scale_model_input(x, t), t)
        x = pipe.scheduler.step(prediction, t, x, return_dict=False)[0]
    return x


def looked_at_first(pipe: Any, x: Tensor, g: Any) -> Tensor:
    timesteps = pipe.scheduler.timesteps
    assert len([t for t in timesteps if t > 0]) == int((timesteps > 0).sum())
    assert [float(t) for t in timesteps] == timesteps.tolist()
    with pipe.progress_bar(total=len(timesteps)) as bar:
        for t in timesteps:
            x = pipe.once(x, t)
            bar.update()
    return x


def skipping(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for i, t in enumerate(pipe.scheduler.timesteps):
        if i % 3 == 1:
            continue
        x = pipe.once(x, t)
    return x


def skipping_high_noise(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for t in pipe.scheduler.timesteps:
        if t > 700:
            continue
        x = pipe.once(x, t)
    return x


def ending_early(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for i, t in enumerate(pipe.scheduler.timesteps):
        if i == 11:
            break
        x = pipe.once(x, t)
    return x


def guided_in_an_interval(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for t in pipe.scheduler.timesteps:
        prediction = pipe.net(pipe.scheduler.scale_model_input(x, t), t)
        if 200 < t < 700:
            prediction = 2 * prediction - pipe.net(pipe.scheduler.scale_model_input(-x, t), t)
        x = pipe.scheduler.step(prediction, t, x, return_dict=False)[0]
    return x


def guided_in_half_of_the_steps(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for i, t in enumerate(pipe.scheduler.timesteps):
        prediction = pipe.net(pipe.scheduler.scale_model_input(x, t), t)
        if i >= 10:
            prediction = 2 * prediction - pipe.net(pipe.scheduler.scale_model_input(-x, t), t)
        x = pipe.scheduler.step(prediction, t, x, return_dict=False)[0]
    return x


def of_other_inputs_every_time(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for i, t in enumerate(pipe.scheduler.timesteps):
        prediction = pipe.net((1 if i % 4 else -1) * pipe.scheduler.scale_model_input(x, t), t)
        x = pipe.scheduler.step(prediction, t, x, return_dict=False)[0]
    return x


def of_other_times(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for i, t in enumerate(pipe.scheduler.timesteps):
        prediction = pipe.net(pipe.scheduler.scale_model_input(x, t), t if i % 4 else 0.5 * t)
        x = pipe.scheduler.step(prediction, t, x, return_dict=False)[0]
    return x


def drawing(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for t in pipe.scheduler.timesteps:
        x = pipe.once(x, t)
        x = x + 0.05 * torch.randn_like(x)
    return x


def drawing_from_the_generator(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for t in pipe.scheduler.timesteps:
        x = pipe.once(x + 0.05 * torch.randn(x.shape, generator=g, dtype=x.dtype), t)
    return x


def drawing_unless_late(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for t in pipe.scheduler.timesteps:
        x = pipe.once(x, t)
        if t > 300:
            x = x + 0.05 * torch.randn_like(x)
    return x


def drawing_numbers_of_python(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for t in pipe.scheduler.timesteps:
        x = pipe.once(x, t) * float(1 + 0.05 * torch.rand(()))
    return x


def accumulating(pipe: Any, x: Tensor, g: Any) -> Tensor:
    out = torch.zeros_like(x)
    for t in pipe.scheduler.timesteps:
        prediction = pipe.net(pipe.scheduler.scale_model_input(x, t), t)
        out[:, :, ::2] += 0.1 * prediction[:, :, ::2]
        out[:, :, 1::2] *= 0.9
        x = pipe.scheduler.step(prediction, t, x, return_dict=False)[0]
    return x + out


def overwriting_outputs(pipe: Any, x: Tensor, g: Any) -> Tensor:
    for t in pipe.scheduler.timesteps:
        prediction = pipe.net(pipe.scheduler.scale_model_input(x, t), t)
        prediction *= 0.8
        prediction[:, :, 1] = 0.1
        x = pipe.scheduler.step(prediction, t, x, return_dict=False)[0]
    return x


def feeding_back(pipe: Any, x: Tensor, g: Any) -> Tensor:
    out = torch.zeros_like(x)
    for t in pipe.scheduler.timesteps:
        prediction = pipe.net(pipe.scheduler.scale_model_input(x, t), t)
        out[:, :, ::2] += 0.1 * prediction[:, :, ::2]
        x = pipe.scheduler.step(prediction + out, t, x, return_dict=False)[0]
    return x


def writing_rows(pipe: Any, x: Tensor, g: Any) -> Tensor:
    """As pipelines with overlapping views of a panorama do."""
    value, count = torch.zeros_like(x), torch.zeros_like(x)
    for t in pipe.scheduler.timesteps:
        value.zero_()
        count.zero_()
        prediction = pipe.net(pipe.scheduler.scale_model_input(x, t), t)
        for begin in (0, 2, 4):
            value[:, :, begin : begin + 4] += prediction[:, :, begin : begin + 4]
            count[:, :, begin : begin + 4] += 1
        x = pipe.scheduler.step(torch.where(count > 0, value / count, value), t, x, return_dict=False)[0]
    return x


LOOPS = [
    *[plain, *NOT_OVER_TIMESTEPS, of_a_list, of_pairs, precomputed, looked_at_first],
    *[skipping, skipping_high_noise, ending_early],
    *[guided_in_an_interval, guided_in_half_of_the_steps, of_other_inputs_every_time, of_other_times],
    *[drawing, drawing_from_the_generator, drawing_unless_late, drawing_numbers_of_python],
    *[accumulating, overwriting_outputs, feeding_back, writing_rows],
]
PARALLEL = [plain, precomputed, looked_at_first]
LOOP_SCHEDULERS = {
    "DDPM": lambda: with_betas(DDPMScheduler),
    "Euler": lambda: with_betas(EulerDiscreteScheduler),
    "DPM-Solver": lambda: with_betas(DPMSolverMultistepScheduler),
}


@pytest.mark.parametrize(
    ("loop", "scheduler"),
    # every loop with two of the three
    [(loop, name) for k, loop in enumerate(LOOPS) for i, name in enumerate(LOOP_SCHEDULERS) if (i + k) % 3],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_loops(loop, scheduler):
    def run(call: Callable[..., Any], **numerics: Any) -> tuple[Any, list[Tensor]]:
        pipe, g = Loop(Net(), LOOP_SCHEDULERS[scheduler](), loop), generator(5)
        pipe.set_progress_bar_config(disable=True)
        torch.manual_seed(1)
        result = call(pipe, generator=g, **numerics)
        return result, [g.get_state(), torch.get_rng_state()]

    expected, states = run(untouched)
    for tolerance in (0.0, TOLERANCE):
        (actual, report), after = run(parallel, tolerance=tolerance)
        check(actual, expected, report, tolerance)
        assert all(torch.equal(one, other) for one, other in zip(after, states, strict=True))
        if loop in NOT_OVER_TIMESTEPS:
            assert torch.equal(actual, expected)
            assert isinstance(report.sequential, str)
            assert len(report.sequential.split()) > 3
            assert report.sequential in str(report)
        if loop in PARALLEL:
            assert report.sequential is None
            assert report.steps == 20
            assert report.rounds < 0.8 * 20 or tolerance == 0


# ---- 11. the report


@pytest.mark.parametrize("images", [1, 2])
def test_the_report(images):
    pipe, inputs = stable_diffusion(), {**PROMPT, "num_inference_steps": 36, "num_images_per_prompt": images}
    parallel(pipe, **inputs)  # a first call tells nothing of how long the later ones take
    with counting(pipe.unet) as rows:
        began = time.perf_counter()
        _, report = parallel(pipe, **inputs)
        seconds = time.perf_counter() - began
    assert report.steps == 36
    assert report.samples == images
    assert report.rounds == len(rows) < 36
    assert report.misses == 0
    for count, noun in [(36, "steps"), (report.rounds, "rounds"), (report.evaluations, "evaluations"), (0, "misses")]:
        assert f"{count} {noun}" in str(report)
    assert 0 < report.seconds <= seconds
    assert len(report.round_seconds) == report.rounds
    assert all(width >= 1 and spent > 0 for width, spent in report.round_seconds)
    assert sum(spent for _, spent in report.round_seconds) <= seconds
    for gain in (report.predicted_gain, report.measured_gain):
        assert isinstance(gain, float)
        assert 0 < gain < 36


@pytest.mark.parametrize(("window", "tolerance"), [(1, TOLERANCE), (5, 0.0), (5, TOLERANCE), (16, TOLERANCE)])
def test_the_history_adds_up_to_the_steps(window, tolerance):
    _, report = parallel(stable_diffusion(), window=window, tolerance=tolerance, **PROMPT, num_inference_steps=30)
    assert report.misses == 0
    plain_steps = report.rounds - len(report.history)  # a round each
    assert plain_steps >= 0
    assert sum(int(told.stride) for told in report.history) + plain_steps == 30
    ends = [int(told.begin + told.stride) for told in report.history]
    for told, end in zip(report.history, ends, strict=True):
        assert 0 <= int(told.begin) <= int(told.begin) + int(told.stride) <= 30
        assert 1 <= int(told.width) <= window
        assert int(told.stride) <= int(told.width)
        assert end == int(told.begin) + int(told.stride)
    begins = [int(told.begin) for told in report.history]
    assert begins == sorted(begins)
    assert all(end <= begin for end, begin in zip(ends, begins[1:], strict=False))


def test_the_plot_of_a_report():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figures = pytest.importorskip("matplotlib.figure")
    _, report = parallel(stable_diffusion(), **PROMPT, **STEPS, num_images_per_prompt=2)
    for figure in (report.plot(), report.plot(1)):
        assert isinstance(figure, figures.Figure)
        assert figure.axes
    figure.savefig(file := io.BytesIO(), dpi=30)
    assert file.getvalue()
    pyplot.close("all")


@both_tolerances
@pytest.mark.parametrize("make", [stable_diffusion, sd3])
def test_the_progress_bar_of_the_pipeline(make, tolerance):
    pipe, file = make(), io.StringIO()
    pipe.set_progress_bar_config(file=file, disable=False, mininterval=0.0)
    _, report = parallel(pipe, tolerance=tolerance, **PROMPT, **STEPS)
    last = file.getvalue().replace("\n", "\r").rstrip("\r").split("\r")[-1]
    assert "12/12" in last
    assert "100%" in last
    assert f"rounds={report.rounds}" in last
    file.truncate(0)
    untouched(pipe, **PROMPT, **STEPS)
    assert "rounds" not in file.getvalue()


# ---- 12. afterwards


def traces(pipe: Any) -> dict[str, Any]:
    """Whatever a context may have left behind."""
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    classes = {*type(pipe.scheduler).__mro__, *type(pipe).__mro__, nn.Module, Tensor}
    classes |= {cls for part in modules.values() for cls in type(part).__mro__}
    return {
        "scheduler": set(vars(pipe.scheduler)),
        "pipeline": set(vars(pipe)),
        "modules": {
            (name, path): set(vars(part)) for name, whole in modules.items() for path, part in whole.named_modules()
        },
        "classes": {cls: dict(vars(cls)) for cls in classes if cls is not object},
        "functions": {name: getattr(torch, name) for name in dir(torch) if inspect.isroutine(getattr(torch, name))},
        "modes": torch.overrides._get_current_function_mode_stack(),
        "grad": torch.is_grad_enabled(),
        "hooks": [len(whole._forward_pre_hooks) + len(whole._forward_hooks) for whole in modules.values()],
    }


def raise_at(step: int, error: type[BaseException]) -> Callable[..., Any]:
    def fail(pipe, i, t, tensors):
        if i == step:
            raise error("in the callback")
        return {}

    return fail


ENDINGS = {
    "success": (None, None),
    "an error in a callback": (ZeroDivisionError, "callback"),
    "an error that a loop on windows might raise": (RuntimeError, "callback"),
    "an interrupt in a callback": (KeyboardInterrupt, "callback"),
    "an interrupt in the denoiser": (KeyboardInterrupt, "denoiser"),
    "an error in the denoiser": (ZeroDivisionError, "denoiser"),
}


@pytest.mark.parametrize(("make", "tolerance"), [(DDIMScheduler, TOLERANCE), (DPMSolverMultistepScheduler, 0.0)])
@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_left_behind(ending, make, tolerance):
    def fail(module, args):
        calls.append(1)
        if len(calls) == 5:
            raise error("in the denoiser")

    (error, where), calls = ENDINGS[ending], []
    pipe, inputs = stable_diffusion(with_betas(make)), {**PROMPT, **STEPS}
    expected = untouched(pipe, **inputs)
    before = traces(pipe)
    hook = pipe.unet.conv_in.register_forward_pre_hook(fail) if where == "denoiser" else None
    more = {"callback_on_step_end": raise_at(4, error)} if where == "callback" else {}
    try:
        with pytest.raises(error, match=f"^in the {where}$") if error else nullcontext():
            parallel(pipe, tolerance=tolerance, **inputs, **more)
    finally:
        if hook is not None:
            hook.remove()
    after = traces(pipe)
    for name in before:
        assert after[name] == before[name], name
    assert type(pipe.scheduler.timesteps) is Tensor
    scheduler = copy.deepcopy(pipe.scheduler)
    assert vars(scheduler).keys() == before["scheduler"]
    assert torch.equal(scheduler.timesteps, pipe.scheduler.timesteps)
    for value in vars(pipe.scheduler).values():
        for part in value if isinstance(value, list) else [value]:
            assert not isinstance(part, Tensor) or type(part) is Tensor
    assert torch.equal(untouched(pipe, **inputs), expected)
    actual, report = parallel(pipe, tolerance=tolerance, **inputs)
    check(actual, expected, report, tolerance)
    assert report.sequential is None
