"""Who looks at the scheduler between two steps sees it after its own steps; where nobody can, a table takes them."""

import functools
import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from pipelines import SD_BETAS, SIZE, generator, stable_diffusion
from torch import Tensor

from picardsolve.integrations.diffusers import denoise, sample, sampler

# diffusers' schedulers make numpy arrays of tensors, in ways that numpy 2 wants torch to support differently
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

STEPS, TOLERANCE = 24, 1e-3
GIVEN = {"prompt": "a cat", "height": SIZE, "width": SIZE, "output_type": "latent", "num_inference_steps": STEPS}


TAKEN: list[
    int
] = []  # schedulers by identity, one for every step; as a global variable of a library's function: unseen


@pytest.fixture
def taken(monkeypatch):
    """The schedulers that take steps."""
    step = DPMSolverMultistepScheduler.step

    @functools.wraps(step)
    def counted(self, *args, **kwargs):
        TAKEN.append(id(self))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(DPMSolverMultistepScheduler, "step", counted)
    TAKEN.clear()
    return TAKEN


def pipeline() -> Any:
    return stable_diffusion(DPMSolverMultistepScheduler(**SD_BETAS))


def remembered(scheduler: Any) -> list[Tensor]:
    return [output.clone() for output in scheduler.model_outputs if output is not None]


def check(seen: list[Any], expected: list[Any]) -> None:
    """Alike to the tolerance, for as many steps."""
    assert len(seen) == len(expected) == STEPS
    for one, other in zip(seen, expected, strict=True):
        assert len(one) == len(other)
        for now, then in zip(one, other, strict=True):
            assert float((now - then).norm()) <= 20 * TOLERANCE * float(then.norm())


def test_nobody_looks(taken):
    pipe = pipeline()
    out = sample(pipe, window=8, generator=generator(0), **GIVEN)
    assert taken.count(id(pipe.scheduler)) < STEPS / 2
    assert out.report.sequential is None


def test_nobody_looks_at_a_model_without_a_pipeline(taken):
    scheduler = DPMSolverMultistepScheduler(**SD_BETAS)
    scheduler.set_timesteps(STEPS)
    denoise(lambda x, t: 0.5 * torch.tanh(x), scheduler, torch.randn(1, 4, 4, 4, generator=generator(0)), window=8)
    assert taken.count(id(scheduler)) < STEPS / 2


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.filterwarnings("ignore:.*callback.*:FutureWarning")
def test_a_callback_reads_the_scheduler(old, taken):
    def read(first: Any, *rest: Any) -> dict:
        seen.append(remembered(pipe.scheduler))
        return {}

    pipe = pipeline()
    named: dict[str, Any] = {"callback": read, "callback_steps": 1} if old else {"callback_on_step_end": read}
    seen = expected = []
    pipe(generator=generator(0), **GIVEN, **named)
    taken.clear()
    seen = []
    out = sample(pipe, window=8, generator=generator(0), **GIVEN, **named)
    check(seen, expected)
    assert out.report.rounds < STEPS / 2
    assert taken.count(id(pipe.scheduler)) == STEPS


def test_a_loop_of_the_users_reads_the_scheduler():
    def loop(seen: list[Any]) -> Tensor:
        x = torch.randn(1, 4, SIZE // 2, SIZE // 2, generator=generator(0), dtype=torch.float64)
        pipe.scheduler.set_timesteps(STEPS)
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, t, prompt)[0], t, x).prev_sample
            seen.append(remembered(pipe.scheduler))
        return x

    pipe, seen, expected = pipeline(), [], []
    with torch.no_grad():
        prompt = pipe.encode_prompt("a cat", "cpu", 1, False)[0]
        loop(expected)
        with sampler(pipe, window=8) as run:
            loop(seen)
    check(seen, expected)
    assert run.report.rounds < STEPS / 2


class Tuned(DPMSolverMultistepScheduler):
    """A scheduler of the user's whose steps do what nobody here can see: they write to a file."""

    path: str

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        """Step, and note it."""
        with open(self.path, "a") as file:
            file.write(f"{id(self)}\n")
        return super().step(model_output, timestep, sample, **kwargs)


def test_a_scheduler_of_the_users_takes_its_steps(tmp_path):
    scheduler = Tuned(**SD_BETAS)
    scheduler.path = str(tmp_path / "steps")
    pipe = stable_diffusion(scheduler)
    report = sample(pipe, window=8, generator=generator(0), **GIVEN).report
    assert report.rounds < STEPS / 2
    assert Path(scheduler.path).read_text().split().count(str(id(pipe.scheduler))) == STEPS


@pytest.mark.parametrize("written", range(2, 12))
def test_a_loop_writes_past_the_version_counter(written):
    """In one step, which is a round or a replay."""

    def loop() -> Tensor:
        x = torch.randn(1, 4, SIZE // 2, SIZE // 2, generator=generator(0), dtype=torch.float64)
        pipe.scheduler.set_timesteps(STEPS)
        for i, t in enumerate(pipe.scheduler.timesteps):
            if i == written:
                x.data.mul_(1.5)
            x = pipe.scheduler.step(pipe.unet(x, t, prompt)[0], t, x).prev_sample
        return x

    pipe: DiffusionPipeline = pipeline()
    with torch.no_grad():
        prompt = pipe.encode_prompt("a cat", "cpu", 1, False)[0]
        expected = loop()
        with sampler(pipe, window=8):
            found = loop()
    assert float((found - expected).norm()) <= 20 * TOLERANCE * float(expected.norm())


# three more are in the newest diffusers only
SERVED = [
    "CMStochasticIterative",
    "DDIM",
    "DDPM",
    "DEISMultistep",
    "DPMSolverMultistep",
    "DPMSolverMultistepInverse",
    "DPMSolverSinglestep",
    "EDMDPMSolverMultistep",
    "EDMEuler",
    "EulerAncestralDiscrete",
    "EulerDiscrete",
    "FlowMatchEulerDiscrete",
    "FlowMatchHeunDiscrete",
    "FlowMatchLCM",
    "HeunDiscrete",
    "LCM",
    "LMSDiscrete",
    "PNDM",
    "TCD",
    "UniPCMultistep",
]


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.filterwarnings("ignore")
def test_schedulers_that_a_table_serves(name, monkeypatch):
    cls: Any = getattr(diffusers, f"{name}Scheduler")
    step, takes = cls.step, inspect.signature(cls.step).parameters

    @functools.wraps(step)
    def counted(self, *args, **kwargs):
        TAKEN.append(id(self))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(cls, "step", counted)
    scheduler = cls()
    scheduler.set_timesteps(STEPS)
    x = torch.randn(1, 4, 8, 8, generator=generator(0)) * getattr(scheduler, "init_noise_sigma", 1)
    extra: Any = {"generator": generator(1)} if "generator" in takes else {}
    TAKEN.clear()
    _, report = denoise(lambda x, t: 0.3 * torch.tanh(x), scheduler, x, window=8, **extra)
    assert report.sequential is None
    assert TAKEN.count(id(scheduler)) < report.steps / 2
