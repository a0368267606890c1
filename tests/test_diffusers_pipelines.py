"""Every pipeline, and every scheduler that it takes: the same result, and fewer rounds where that is possible."""

import importlib
import inspect
import pkgutil
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pipelines import CASES, SD_BETAS, Case, assert_same, generator

import picardsolve as ps
from picardsolve.integrations.diffusers import Report, denoise, sample, sampler

pytestmark = [
    # diffusers' schedulers make numpy arrays of tensors, in ways that numpy 2 wants torch to support differently
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),  # Mochi's transformer asks for float32
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),  # torchsde's rounding, of untouched runs too
    pytest.mark.filterwarnings("ignore:`timesteps` were passed without `sigmas`:FutureWarning"),
]

WINDOW, TOLERANCE = 6, 1e-3
# These compute a part of their network in single precision, which batching moves by 1e-6.
SINGLE = {"Kandinsky 5, image", "Kandinsky 5, video", "score SDE VE", "Karras VE"}
ONE_BY_ONE = {  # report.sequential
    "score SDE VE": "has no step",
    "Karras VE": "step takes",
    "SAG": "processor.attention_probs",
    "Flux 2 Klein, cached references": "failed on",
    "CogVideoX, its DPM-Solver": "step takes",
    "Cosmos": "steps several states",
    "Cosmos, no guidance": "steps several states",
}
NO_GAIN = {  # the loop changes the states between steps, or gives steps more than states and outputs
    "SD inpainting, 4 channels",
    "SDXL inpainting",
    "Flux, inpainting",
    "Kandinsky 2.2 prior",
    "LTX, first frame given",
    "CogVideoX, dynamic guidance",
    "consistency model",
}
SLOW = {  # gain little in the first dozen steps
    "DeepFloyd IF",
    "SD3, skip-layer guidance",
    "HiDream",
    "Wan 2.2, two experts",
    "HunyuanVideo 1.5, guidance with momentum",
    "Stable Audio",
}
REFUSED = {"LTX 2": "makes a deep copy of its scheduler"}
FEATURES = [case for case in CASES if case.name not in REFUSED]


def tensor_of(case: Case, out: Any) -> torch.Tensor:
    return torch.as_tensor(case.result(out))


def both(case: Case, scheduler: Any = None, steps: int | None = None, **numerics: Any) -> tuple[Any, Any, Report]:
    """The untouched pipeline's result, the parallel one's, and what that cost; they leave the same randomness."""
    arguments = case.arguments() if steps is None else case.arguments(num_inference_steps=steps)
    results, states, report = [], [], Report()
    for parallel in (False, True):
        pipe, g = case.make(), generator(5)
        pipe.scheduler = pipe.scheduler if scheduler is None else scheduler()
        torch.manual_seed(1)
        if parallel:
            out = sample(pipe, generator=g, **numerics, **arguments)
            report = out.report
        else:
            out = pipe(generator=g, **arguments)
        results.append(tensor_of(case, out))
        states.append((g.get_state(), torch.get_rng_state()))
    for before, after in zip(*states, strict=True):
        assert torch.equal(before, after)
    return *results, report


def check_close(actual: torch.Tensor, expected: torch.Tensor, report: Report) -> None:
    """A round accepts states that moved by less than the tolerance: each round leaves about that error."""
    assert actual.shape == expected.shape
    distance = torch.linalg.vector_norm((actual - expected).double())
    assert float(distance) <= TOLERANCE * report.rounds * float(torch.linalg.vector_norm(expected.double()))


# ---- every pipeline


@pytest.mark.parametrize("case", FEATURES, ids=str)
def test_every_pipeline_at_tolerance_zero(case):
    expected, actual, report = both(case, window=4, tolerance=0.0)
    assert_same(actual, expected, 1e-4 if case.name in SINGLE else 1e-5)
    assert report.misses <= (case.name == "Kandinsky 2.2 prior")
    if case.name in ONE_BY_ONE:
        assert ONE_BY_ONE[case.name] in report.sequential
        return
    assert report.sequential is None
    assert report.rounds <= report.steps
    assert report.width >= min(4, report.steps) - 1
    assert report.company < 1e-5


@pytest.mark.parametrize("case", FEATURES, ids=str)
def test_every_pipeline_at_a_tolerance(case):
    steps = 20 if case.name in SLOW else 12
    expected, actual, report = both(case, steps=steps, window=8, tolerance=TOLERANCE)
    check_close(actual, expected, report)
    if case.name in ONE_BY_ONE or case.name in NO_GAIN:
        assert report.evaluations <= 5 * report.steps * report.samples  # what was tried in vain
    else:
        assert report.sequential is None
        assert report.rounds < 0.9 * report.steps


def test_rows_that_a_loop_overwrites_are_no_edit():
    """DiT steps both halves of its guided batch, with noise of their own, and overwrites one with the other."""
    case = next(case for case in CASES if case.name == "DiT")
    scheduler = partial(with_betas, "DDPMScheduler", clip_sample=False)
    expected, actual, report = both(case, scheduler, steps=20, window=8, tolerance=TOLERANCE)
    check_close(actual, expected, report)
    assert report.rounds < 0.9 * report.steps
    assert report.notes == []


@pytest.mark.parametrize("case", [case for case in CASES if case.name in REFUSED], ids=str)
def test_refused_pipelines_are_refused_before_the_denoiser_is_called(case):
    def called(*args):
        raise AssertionError("the denoiser was called")

    pipe = case.make()
    hook = pipe.transformer.register_forward_pre_hook(called)
    try:
        with pytest.raises(RuntimeError, match=REFUSED[case.name]):
            sample(pipe, generator=generator(5), **case.arguments())
    finally:
        hook.remove()
    assert "step" not in vars(pipe.scheduler)


# ---- every scheduler in many pipelines


def with_betas(name: str, **config: Any) -> Any:
    cls = getattr(diffusers, name)
    accepted = inspect.signature(cls.__init__).parameters
    return cls(**{key: value for key, value in {**SD_BETAS, **config}.items() if key in accepted})


BETAS = {  # schedulers for the usual pipelines, with what shows more of them
    "DDIMScheduler": [{}, {"clip_sample": False, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}],
    "DDPMScheduler": [{}, {"clip_sample": False, "variance_type": "fixed_large", "timestep_spacing": "linspace"}],
    "PNDMScheduler": [{}, {"skip_prk_steps": True, "set_alpha_to_one": True}],
    "LMSDiscreteScheduler": [{}, {"use_karras_sigmas": True}],
    "EulerDiscreteScheduler": [{}, {"use_karras_sigmas": True, "prediction_type": "v_prediction"}],
    "EulerAncestralDiscreteScheduler": [{}, {"timestep_spacing": "trailing"}],
    "HeunDiscreteScheduler": [{}, {"use_karras_sigmas": True}],
    "KDPM2DiscreteScheduler": [{}],
    "KDPM2AncestralDiscreteScheduler": [{}],
    "DPMSolverMultistepScheduler": [
        {},
        {"solver_order": 3, "use_karras_sigmas": True, "timestep_spacing": "trailing"},
        {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "sigma_min"},
        {"thresholding": True, "prediction_type": "sample"},
    ],
    "DPMSolverSinglestepScheduler": [{}, {"solver_order": 3, "lower_order_final": True}],
    "DPMSolverSDEScheduler": [{"noise_sampler_seed": 3}],
    "DEISMultistepScheduler": [{}, {"solver_order": 3}],
    "UniPCMultistepScheduler": [
        {},
        {"solver_order": 3},
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {"disable_corrector": [0, 1, 2]},
    ],
    "SASolverScheduler": [{}, {"predictor_order": 3, "corrector_order": 3}],
    "IPNDMScheduler": [{}],
    "LCMScheduler": [{}],
    "TCDScheduler": [{}],
    "DDIMParallelScheduler": [{}],
    "DDPMParallelScheduler": [{}],
    "CogVideoXDDIMScheduler": [{}],
}
FLOW = {
    "FlowMatchEulerDiscreteScheduler": [{"shift": 3.0}, {"stochastic_sampling": True}],
    "FlowMatchHeunDiscreteScheduler": [{}],
    "FlowMatchLCMScheduler": [{}],
    "UniPCMultistepScheduler": [{"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}],
    "DPMSolverMultistepScheduler": [{"prediction_type": "flow_prediction", "use_flow_sigmas": True}],
}


def rows() -> list[tuple[Case, str, dict[str, Any]]]:
    """Every configuration of every scheduler in two of its pipelines, others for each."""
    made = []
    for kind, schedulers in (("betas", BETAS), ("flow", FLOW)):
        cases = [case for case in CASES if case.schedulers == kind]
        configs = [(name, config) for name, listed in schedulers.items() for config in listed]
        for i, (name, config) in enumerate(configs):
            apart = -(-len(cases) // 2)
            made += [(case, name, config) for case in cases[i % apart :: apart] if not unfit(case, name)]
    return made


def unfit(case: Case, name: str) -> bool:
    """Whether the untouched pipeline does not run with a scheduler, or not to a result that means anything."""
    # Heun's second stage starts from a view of the state, which this pipeline has overwritten by then
    if name == "FlowMatchHeunDiscreteScheduler" and case.name == "Kandinsky 5, video":
        return True
    # IPNDM cannot add noise to an image; its times are fractions of one, all of which count as the last part
    parts = ("image to image", "inpainting", "first part of the steps")
    return name == "IPNDMScheduler" and any(part in case.name for part in parts)


@pytest.mark.parametrize(
    ("case", "name", "config"),
    rows(),
    ids=lambda value: str(value) if not isinstance(value, dict) else ",".join(map(str, value.values())),
)
def test_every_scheduler_in_many_pipelines(case, name, config):
    expected, actual, report = both(case, partial(with_betas, name, **config), window=WINDOW, tolerance=TOLERANCE)
    check_close(actual, expected, report)
    assert report.sequential is None
    assert report.rounds <= report.steps


# ---- any of it

few = settings(max_examples=12, phases=[Phase.explicit, Phase.generate])
spacing = st.sampled_from(["leading", "trailing", "linspace"])
prediction = st.sampled_from(["epsilon", "v_prediction"])


@few
@given(data=st.data())
def test_any_scheduler_any_numerics(data):
    """A scheduler, its configuration, steps, window, batch, guidance and tolerance, all drawn."""
    name = data.draw(st.sampled_from([name for name in BETAS if name != "DPMSolverSDEScheduler"]), "scheduler")
    config = data.draw(st.sampled_from(BETAS[name]), "configuration")
    config = {"timestep_spacing": data.draw(spacing), "prediction_type": data.draw(prediction), **config}
    images, guidance = data.draw(st.integers(1, 3), "images"), data.draw(st.sampled_from([1.0, 5.0]), "guidance")
    case = next(case for case in CASES if case.name == "SD")
    inputs = {**case.inputs, "num_images_per_prompt": images, "guidance_scale": guidance}
    case = replace(case, inputs=inputs, steps=data.draw(st.integers(5, 16), "steps"))
    tolerance = data.draw(st.sampled_from([0.0, TOLERANCE]), "tolerance")
    numerics = {
        "window": data.draw(st.integers(1, 9), "window"),
        "max_batch": data.draw(st.one_of(st.none(), st.integers(1, 20)), "max_batch"),
        "iteration": data.draw(st.sampled_from([None, ps.Picard(), ps.Exponential(), ps.Jacobi()]), "iteration"),
        "guess": data.draw(st.sampled_from([None, ps.Copy(), ps.FrozenOutput(), ps.FrozenSample()]), "guess"),
    }
    expected, actual, report = both(case, partial(with_betas, name, **config), tolerance=tolerance, **numerics)
    check_close(actual, expected, report)
    if tolerance == 0:
        assert_same(actual, expected, 1e-5)
        assert report.misses == 0
    assert report.sequential is None
    assert report.rounds <= report.steps
    assert report.width <= numerics["window"]


# ---- every scheduler in a loop of its own

TOKENS = {"AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler"}
TOKENS |= {"VQDiffusionScheduler"}
NO_LOOP = {  # why the loop of `denoise` is not theirs
    "KarrasVeScheduler": "step takes",
    "CogVideoXDPMScheduler": "step takes",
    "ScoreSdeVeScheduler": "has no step",
    "ScoreSdeVpScheduler": "has no step",
}
OTHER_LOOP = {  # the scheduler itself does not run in it: it asks for
    "DDPMWuerstchenScheduler",  # a vector of times (run above in Stable Cascade)
    "RePaintScheduler",  # an image and a mask
    "HeliosScheduler",  # a pyramid of sizes
    "HeliosDMDScheduler",
    "PiflowScheduler",  # an output on a grid of times
    "RFD4ProteinaScheduler",  # proteins
    "SCMScheduler",  # all but the last of its times (run below)
}
STEPS = {"ConsistencyDecoderScheduler": 2}


def schedulers() -> dict[str, type]:
    """Every scheduler that diffusers ships, exported or not."""
    found = {}
    for module in pkgutil.walk_packages(diffusers.schedulers.__path__, "diffusers.schedulers."):
        for name, cls in list(vars(importlib.import_module(module.name)).items()):
            if name.endswith("Scheduler") and isinstance(cls, type) and hasattr(cls, "from_config"):
                found[name] = cls
    return found


SCHEDULERS = schedulers()
MATRIX = 0.4 * torch.randn(6, 6, generator=generator(0), dtype=torch.float64)


def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    mixed = torch.einsum("ij,bj...->bi...", MATRIX.to(x.dtype), x.clamp(-30, 30))
    return torch.tanh(mixed) + 1e-4 * torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1, 1, 1)


def by_hand(scheduler: Any, x: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(model(scaled, t), t, x, **extra, return_dict=False)[0]
    return x


@pytest.mark.parametrize("tolerance", [0.0, TOLERANCE])
@pytest.mark.parametrize("name", sorted(SCHEDULERS.keys() - TOKENS - NO_LOOP.keys() - OTHER_LOOP))
def test_every_scheduler_in_a_loop_of_its_own(name, tolerance):
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(num_inference_steps=STEPS.get(name, 12))
    takes = "generator" in inspect.signature(scheduler.step).parameters
    scale = float(getattr(scheduler, "init_noise_sigma", 1))
    x = scale * torch.randn(2, 6, 4, 4, generator=generator(1), dtype=torch.float64)
    given, again = generator(3), generator(3)
    torch.manual_seed(0)
    expected = by_hand(deepcopy(scheduler), x, {"generator": given} if takes else {})
    torch.manual_seed(0)
    seeded = {"generator": again} if takes else {}
    actual, report = denoise(model, scheduler, x, window=5, tolerance=tolerance, **seeded)
    check_close(actual, expected, report)
    if tolerance == 0:
        assert_same(actual, expected, 1e-6)
        assert report.misses == 0
    assert torch.equal(given.get_state(), again.get_state())
    assert report.sequential is None
    assert report.rounds <= report.steps


@pytest.mark.parametrize("name", sorted(TOKENS))
def test_schedulers_of_tokens_are_refused(name):
    scheduler = object.__new__(SCHEDULERS[name])
    with pytest.raises(TypeError, match=rf"^scheduler: {name} steps integer tokens.*call the pipeline itself\.$"):
        denoise(model, scheduler, torch.zeros(1, 6, 4, 4))


@pytest.mark.parametrize("name", NO_LOOP)
def test_schedulers_of_another_loop_are_refused(name):
    with pytest.raises(TypeError, match=rf"^scheduler: {name}.*{NO_LOOP[name]}"):
        denoise(model, SCHEDULERS[name](), torch.zeros(1, 6, 4, 4))


def test_a_loop_over_a_part_of_the_timesteps():
    """SCM's loop leaves out the last one."""
    results = []
    for parallel in (False, True):
        scheduler, module, g = diffusers.SCMScheduler(), torch.nn.Identity(), generator(3)
        module.forward = model
        scheduler.set_timesteps(4, intermediate_timesteps=None)
        x = torch.randn(2, 6, 4, 4, generator=generator(1), dtype=torch.float64)
        owner = SimpleNamespace(scheduler=scheduler, components={"model": module})
        with sampler(owner, tolerance=0.0, window=3) if parallel else nullcontext() as run:
            for t in scheduler.timesteps[:-1]:
                x = scheduler.step(module(x, t), t, x, generator=g, return_dict=False)[0]
        results.append(x)
    assert_same(results[1], results[0], 1e-6)
    assert run.report.steps == run.report.rounds == 4
