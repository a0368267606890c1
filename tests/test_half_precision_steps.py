"""Pipelines in half precision: a table takes the steps of schedulers that round what they return, and only that."""

import copy
import functools
from typing import Any

import diffusers
import pytest
import torch
from pipelines import SD_BETAS, SIZE, generator, stable_diffusion

from picardsolve.integrations.diffusers import denoise, sample

# diffusers' schedulers make numpy arrays of tensors, in ways that numpy 2 wants torch to support differently
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

STEPS = 24
HALF = [torch.bfloat16, torch.float16]
ONCE = ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"]
EACH = ["DDIMScheduler", "DEISMultistepScheduler"]  # round all their operations
TAKEN: list[
    int
] = []  # schedulers by identity, one for every step; as a global variable of a library's function: unseen


@pytest.fixture(params=ONCE + EACH)
def cls(request, monkeypatch):
    """A scheduler whose steps are counted."""
    found: Any = getattr(diffusers, request.param)
    step = found.step

    @functools.wraps(step)
    def counted(self, *args, **kwargs):
        TAKEN.append(id(self))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(found, "step", counted)
    TAKEN.clear()
    return found


def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x.roll(1, 1)) + 0.1 * x + 0.3 * (1e-3 * t.reshape(-1, 1, 1, 1)).to(x.dtype).sin()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


@pytest.mark.parametrize("dtype", HALF)
def test_steps(cls, dtype):
    def made() -> Any:
        scheduler = cls(clip_sample=False) if cls.__name__ == "DDIMScheduler" else cls()
        scheduler.set_timesteps(STEPS)
        return scheduler

    x = torch.randn(1, 4, 16, 16, generator=generator(0))
    scheduler, ours = made(), made()
    x = state = (x * getattr(scheduler, "init_noise_sigma", 1)).to(dtype)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(state, t) if hasattr(scheduler, "scale_model_input") else state
        state = scheduler.step(model(scaled, t), t, state, return_dict=False)[0]
    found, report = denoise(model, ours, x, window=8)
    assert found.dtype == state.dtype == dtype
    assert report.rounds < STEPS
    assert distance(found, state) <= report.tolerance * report.rounds / 2
    steps = TAKEN.count(id(ours))
    assert steps < STEPS / 2 if cls.__name__ in ONCE else steps == STEPS


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("cls", ONCE[:2], indirect=True)
@pytest.mark.filterwarnings("ignore:.*half precision.*", "ignore:.*float16.*")
def test_pipelines(cls, dtype):
    pipe = stable_diffusion(cls(**SD_BETAS))
    for name in ("unet", "vae", "text_encoder"):
        setattr(pipe, name, copy.deepcopy(getattr(pipe, name)).to(dtype))
    given: dict[str, Any] = {"height": SIZE, "width": SIZE, "output_type": "latent", "num_inference_steps": STEPS}
    expected = pipe("a cat", generator=generator(0), **given).images
    TAKEN.clear()
    out = sample(pipe, "a cat", window=8, generator=generator(0), **given)
    assert out.images.dtype == expected.dtype == dtype
    assert out.report.sequential is None
    assert distance(out.images, expected) <= out.report.tolerance * out.report.rounds / 2
    assert TAKEN.count(id(pipe.scheduler)) < STEPS / 2
