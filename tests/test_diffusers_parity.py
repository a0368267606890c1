"""A pipeline that runs in parallel gives what the untouched pipeline gives."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import numpy as np
import pipelines
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pipelines import ROUNDING, SIZE, assert_same, counting, digits, generator, stable_diffusion

import picardsolve as ps
from picardsolve.integrations.diffusers import sample, sampler

# diffusers' schedulers make numpy arrays of tensors, in ways that numpy 2 wants torch to support differently
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

# each example runs a pipeline twice; to shrink a failure would take minutes
few = settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
PROMPT = {"prompt": "a cat", "height": SIZE, "width": SIZE, "output_type": "latent"}

# ---- random schedulers

spacings = st.sampled_from(["leading", "trailing", "linspace"])
predictions = st.sampled_from(["epsilon", "v_prediction", "sample"])
limits = st.sampled_from([{"clip_sample": False}, {"clip_sample": True}, {"clip_sample": False, "thresholding": True}])


@st.composite
def ddpm(draw):
    return DDPMScheduler(
        **pipelines.SD_BETAS,
        **draw(limits),
        variance_type=draw(st.sampled_from(["fixed_small", "fixed_large"])),
        timestep_spacing=draw(spacings),
        prediction_type=draw(predictions),
    )


@st.composite
def ddim(draw):
    return DDIMScheduler(
        **pipelines.SD_BETAS,
        **draw(limits),
        set_alpha_to_one=draw(st.booleans()),
        timestep_spacing=draw(spacings),
        prediction_type=draw(predictions),
    )


@st.composite
def dpm_solver(draw):
    return DPMSolverMultistepScheduler(
        **pipelines.SD_BETAS,
        solver_order=draw(st.sampled_from([1, 2, 3])),
        use_karras_sigmas=draw(st.booleans()),
        algorithm_type=draw(st.sampled_from(["dpmsolver++", "sde-dpmsolver++"])),
        final_sigmas_type=draw(st.sampled_from(["zero", "sigma_min"])),
        timestep_spacing=draw(spacings),
        prediction_type=draw(predictions),
    )


@st.composite
def euler(draw):
    return EulerDiscreteScheduler(
        **pipelines.SD_BETAS,
        use_karras_sigmas=draw(st.booleans()),
        timestep_spacing=draw(spacings),
        prediction_type=draw(st.sampled_from(["epsilon", "v_prediction"])),
    )


SCHEDULERS = {"ddpm": ddpm(), "ddim": ddim(), "dpm-solver": dpm_solver(), "euler": euler()}

numerics = st.fixed_dictionaries(
    {
        "window": st.integers(1, 9),
        "iteration": st.sampled_from([None, ps.Picard(), ps.Exponential(), ps.Jacobi()]),
        "guess": st.sampled_from([None, ps.Copy(), ps.FrozenOutput(), ps.FrozenSample()]),
    }
)


# ---- running a pipeline


@dataclass
class Randomness:
    """What a pipeline is given as its generator, made anew for each run."""

    kind: str
    images: int
    seed: int = 5

    def start(self) -> Any:
        torch.manual_seed(self.seed)
        self.given = {
            "one": generator(self.seed),
            "list": [generator(self.seed + k) for k in range(self.images)],
            "global": None,
        }[self.kind]
        return self.given

    def states(self) -> list[torch.Tensor]:
        listed = self.given if isinstance(self.given, list) else [self.given] if self.given else []
        return [torch.get_rng_state(), *(g.get_state() for g in listed)]


def run(pipe: Any, seed: int = 5, **inputs: Any) -> torch.Tensor:
    """The images of the untouched pipeline."""
    return pipe(generator=generator(seed), **inputs).images


def check_against_untouched(pipe, denoiser, randomness, rows_per_image=1, tolerance=0.0, numerics=None, **inputs):
    expected = pipe(generator=randomness.start(), **inputs).images
    states = randomness.states()
    with counting(denoiser) as rows:
        given = randomness.start()
        out = sample(pipe, generator=given, tolerance=tolerance, **(numerics or {"window": 4}), **inputs)
    assert_same(out.images, expected)
    assert all(torch.equal(now, then) for now, then in zip(randomness.states(), states, strict=True))
    report = out.report
    assert report.steps == len(pipe.scheduler.timesteps)
    assert report.rounds == len(rows) <= report.steps
    assert report.evaluations * rows_per_image == sum(rows)
    assert report.samples * report.width * rows_per_image == max(rows)
    assert report.misses == 0


# ---- tolerance zero


@pytest.mark.parametrize("family", SCHEDULERS)
@few
@given(data=st.data(), numerics=numerics)
def test_stable_diffusion_at_tolerance_zero(family, data, numerics):
    images = data.draw(st.integers(1, 3), "images")
    guidance = data.draw(st.sampled_from([1.0, 4.0]), "guidance")
    pipe = stable_diffusion(data.draw(SCHEDULERS[family]))
    check_against_untouched(
        pipe,
        pipe.unet,
        Randomness(data.draw(st.sampled_from(["one", "list", "global"]), "generator"), images),
        rows_per_image=2 if guidance > 1 else 1,
        numerics=numerics,
        **PROMPT,
        num_inference_steps=data.draw(st.integers(6, 14), "steps"),
        num_images_per_prompt=images,
        guidance_scale=guidance,
        eta=data.draw(st.sampled_from([0.0, 0.7]), "eta"),  # ignored by schedulers that have none
    )


@pytest.mark.parametrize("family", ["ddpm", "ddim", "dpm-solver"])
@few
@given(data=st.data(), numerics=numerics)
def test_trained_pipeline_at_tolerance_zero(family, data, numerics):
    images = data.draw(st.integers(1, 3), "images")
    pipe = digits(data.draw(SCHEDULERS[family]))
    randomness = Randomness(data.draw(st.sampled_from(["one", "list", "global"]), "generator"), images)
    steps = data.draw(st.integers(6, 20), "steps")
    check_against_untouched(
        pipe,
        pipe.unet,
        randomness,
        numerics=numerics,
        batch_size=images,
        num_inference_steps=steps,
        output_type="pt",
    )


MORE_SCHEDULERS = {
    "PNDM": diffusers.PNDMScheduler,
    "PLMS": partial(diffusers.PNDMScheduler, skip_prk_steps=True),
    "UniPC": partial(diffusers.UniPCMultistepScheduler, solver_order=3),
    "DEIS": diffusers.DEISMultistepScheduler,
    "Heun": diffusers.HeunDiscreteScheduler,
    "KDPM2 ancestral": diffusers.KDPM2AncestralDiscreteScheduler,
    "Euler ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "DPM-Solver single": diffusers.DPMSolverSinglestepScheduler,
    "LCM": diffusers.LCMScheduler,
}


@pytest.mark.parametrize("name", MORE_SCHEDULERS)
def test_more_schedulers_at_tolerance_zero(name):
    pipe = stable_diffusion(MORE_SCHEDULERS[name]())
    inputs = {**PROMPT, "num_inference_steps": 8, "num_images_per_prompt": 2}
    check_against_untouched(pipe, pipe.unet, Randomness("one", 2), 2, **inputs)


def test_single_precision_at_tolerance_zero():
    pipe = digits(dtype=torch.float32)
    inputs = {"batch_size": 2, "num_inference_steps": 20, "output_type": "pt"}
    out = sample(pipe, generator=generator(5), tolerance=0.0, window=8, **inputs)
    # batching moves the denoiser's output by about ten units in the last place, 1e-6, once in every step
    assert_same(out.images, run(pipe, **inputs), 20 * 1e-6)
    assert out.report.misses == 0


OTHERS = {
    "SDXL": (pipelines.sdxl, PROMPT),
    "SD3": (pipelines.sd3, PROMPT),
    "Flux": (pipelines.flux, {**PROMPT, "max_sequence_length": 32}),
    "DiT": (pipelines.dit, {"class_labels": [1, 2], "output_type": "pt"}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_pipelines_at_tolerance_zero(name):
    make, inputs = OTHERS[name]
    pipe = make()
    denoiser = pipe.unet if name == "SDXL" else pipe.transformer
    # Flux has its guidance embedded; DiT hands both halves of its guidance to the scheduler as states
    rows = 1 if name in ("Flux", "DiT") else 2
    check_against_untouched(pipe, denoiser, Randomness("one", 1), rows, num_inference_steps=8, **inputs)


def test_image_to_image_runs_a_part_of_the_timesteps():
    pipe = stable_diffusion(cls=StableDiffusionImg2ImgPipeline)
    image = torch.rand(1, 3, SIZE, SIZE, generator=generator(0), dtype=torch.float64)
    inputs = {"prompt": "a cat", "image": image, "strength": 0.6, "num_inference_steps": 15, "output_type": "latent"}
    out = sample(pipe, generator=generator(5), tolerance=0.0, window=4, **inputs)
    assert_same(out.images, run(pipe, **inputs))
    assert out.report.steps == 9
    assert out.report.width == 4


# ---- a positive tolerance

BETAS = {"beta_start": 1e-4, "beta_end": 0.02}  # those that the digits were trained with
TRAINED = {
    "DDPM-100": (partial(DDPMScheduler, **BETAS), 100),
    "DDIM-50": (partial(DDIMScheduler, **BETAS), 50),
    "DDIM-50 thresholded": (partial(DDIMScheduler, **BETAS, thresholding=True), 50),  # without a step table
    "DPM-Solver-25": (partial(DPMSolverMultistepScheduler, **BETAS), 25),
}


def check_close_to_untouched(pipe: Any, randomness: Randomness, numerics: dict[str, Any], **inputs: Any) -> Any:
    """A round accepts states that moved by less than the tolerance, so that each round leaves about that error."""
    inputs["output_type"] = "pt"
    expected = pipe(generator=randomness.start(), **inputs).images
    states = randomness.states()
    out = sample(pipe, generator=randomness.start(), tolerance=1e-3, **numerics, **inputs)
    assert all(torch.equal(now, then) for now, then in zip(randomness.states(), states, strict=True))
    error, size = (torch.linalg.vector_norm(images.flatten(1), dim=1) for images in (out.images - expected, expected))
    assert (error <= 1e-3 * out.report.rounds * size).all(), (error / size, out.report)
    return out.report


@pytest.mark.parametrize(("name", "images"), list(zip(TRAINED, (1, 3, 1, 3), strict=True)))
def test_a_tolerance_saves_half_the_rounds(name, images):
    make, steps = TRAINED[name]
    inputs = {"batch_size": images, "num_inference_steps": steps}
    report = check_close_to_untouched(
        digits(make(), torch.float32), Randomness("one", images), {"window": 32}, **inputs
    )
    assert report.rounds < steps / 2


@pytest.mark.parametrize("name", TRAINED)
@few
@given(
    images=st.integers(1, 2),
    numerics=numerics,
    kind=st.sampled_from(["one", "list", "global"]),
    steps=st.integers(10, 20),
)
def test_any_numerics_at_a_tolerance(name, images, numerics, kind, steps):
    pipe = digits(TRAINED[name][0](), torch.float32)
    report = check_close_to_untouched(
        pipe, Randomness(kind, images), numerics, batch_size=images, num_inference_steps=steps
    )
    assert report.rounds <= steps


@pytest.mark.parametrize("make", [EulerDiscreteScheduler, diffusers.HeunDiscreteScheduler])
def test_a_tolerance_with_schedulers_that_scale_their_input(make):
    """Every state of a window is scaled for its own step: else it is accepted late, or its output not used."""
    pipe, inputs = stable_diffusion(make()), {**PROMPT, "num_inference_steps": 20}
    expected = run(pipe, **inputs)
    report = (out := sample(pipe, generator=generator(5), tolerance=1e-3, window=8, **inputs)).report
    assert_same(out.images, expected, 1e-3 * report.rounds)
    assert report.rounds < report.steps / 2
    assert report.misses == 0


# ---- what a caller sees


@pytest.mark.parametrize("window", [1, 3, 16])
def test_callbacks_see_every_step(window):
    def watch(pipe, i, t, tensors):
        seen.append((i, int(t), torch.from_numpy(tensors["latents"].numpy().copy())))
        return {}

    pipe, inputs = stable_diffusion(), {**PROMPT, "num_inference_steps": 10, "callback_on_step_end": watch}
    seen = expected = []
    run(pipe, **inputs)
    seen = []
    sample(pipe, generator=generator(5), tolerance=0.0, window=window, **inputs)
    assert [(i, t) for i, t, _ in seen] == [(i, t) for i, t, _ in expected]
    for (_, _, now), (_, _, then) in zip(seen, expected, strict=True):
        assert_same(now, then)


def halve(latents):
    return 0.5 * latents


def halve_a_copy(latents):
    return torch.from_numpy(0.5 * latents.numpy())


def edited(edit, when, images):
    """An untouched and a parallel run with a callback that edits the latents after some steps."""

    def change(pipe, i, t, tensors):
        return {"latents": edit(tensors["latents"])} if i in when else {}

    pipe = stable_diffusion()
    inputs = {**PROMPT, "num_inference_steps": 16, "num_images_per_prompt": images, "callback_on_step_end": change}
    expected = run(pipe, **inputs)
    out = sample(pipe, generator=generator(5), tolerance=1e-3, window=8, **inputs)
    assert_same(out.images, expected, 1e-3 * out.report.rounds)
    assert out.report.rounds <= 16
    return out


def test_a_callback_that_edits_the_latents_costs_misses():
    before = run(stable_diffusion(), **PROMPT, num_inference_steps=16)
    runs = [edited(halve, {step}, 1) for step in range(5, 10)]
    assert sum(out.report.misses for out in runs) > 0
    for out in runs:
        assert (out.images - before).abs().max() > 0.1 * before.abs().max()  # the edit matters


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("edit", [halve, halve_a_copy])
def test_a_callback_that_edits_the_latents_in_every_step(edit, images):
    edited(edit, range(16), images)


def test_two_runs_in_one_context():
    pipe = stable_diffusion()
    runs = [{**PROMPT, "num_inference_steps": 6}, {**PROMPT, "num_inference_steps": 11, "num_images_per_prompt": 2}]
    expected = [run(pipe, seed, **inputs) for seed, inputs in enumerate(runs)]
    with sampler(pipe, tolerance=0.0, window=5) as context:
        for seed, inputs in enumerate(runs):
            assert_same(run(pipe, seed, **inputs), expected[seed])
            assert context.report.steps == inputs["num_inference_steps"]
            assert context.report.samples == inputs.get("num_images_per_prompt", 1)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_output_types(output_type):
    def array(images):
        return torch.stack([torch.from_numpy(np.asarray(image).astype(np.float64)) for image in images])

    pipe = stable_diffusion()
    inputs = {**PROMPT, "num_inference_steps": 6, "output_type": output_type}
    expected = run(pipe, **inputs)
    out = sample(pipe, generator=generator(5), tolerance=0.0, window=3, **inputs)
    assert type(out.images) is type(expected)
    assert_same(array(out.images), array(expected), 1 / 255 if output_type == "pil" else ROUNDING)


def test_without_a_dictionary():
    pipe = stable_diffusion()
    inputs = {**PROMPT, "num_inference_steps": 6, "return_dict": False}
    expected = pipe(generator=generator(5), **inputs)
    out = sample(pipe, generator=generator(5), tolerance=0.0, window=3, **inputs)
    assert isinstance(out, tuple)
    assert len(out) == len(expected)
    assert_same(out[0], expected[0])
    assert out.report.steps == 6
