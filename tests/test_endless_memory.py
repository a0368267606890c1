"""UniPC, whose memory never ends, in runs of more steps than a table remembers: its own loop is the oracle."""

import functools
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from pipelines import CASES, SD_BETAS, assert_same, generator, stable_diffusion
from torch import Tensor

from picardsolve.integrations.diffusers import denoise, sample

# diffusers' schedulers make numpy arrays of tensors, in ways that numpy 2 wants torch to support differently
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

TOLERANCE, STEPS = 1e-4, 40
TAKEN: list[int] = []  # as a global variable of a library's function: unseen
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "order 3": {"solver_order": 3},
    "order 1": {"solver_order": 1},
    "bh1": {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
    "predicts noise": {"predict_x0": False, "final_sigmas_type": "sigma_min"},
    "Karras": {"use_karras_sigmas": True},
    "flow": {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    "corrector from the eighth step on": {"disable_corrector": list(range(8))},
    "corrector till the eighth step": {"disable_corrector": list(range(8, STEPS))},
    "v, order never lowered": {
        "prediction_type": "v_prediction",
        "solver_order": 3,
        "lower_order_final": False,
        "final_sigmas_type": "sigma_min",
    },
}


def model(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x.roll(1, 1)) + 0.1 * x + 0.3 * (1e-3 * t.reshape(-1, 1, 1, 1)).to(x.dtype).sin()


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """The scheduler of every step, copies included."""
    step = UniPCMultistepScheduler.step

    @functools.wraps(step)
    def counted(self, *args, **kwargs):
        TAKEN.append(id(self))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(UniPCMultistepScheduler, "step", counted)
    return TAKEN


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_loop(name, dtype, taken):
    made: list[Any] = [UniPCMultistepScheduler(**CONFIGS[name]) for _ in range(3)]
    ours, theirs, first = made
    for scheduler in made:
        scheduler.set_timesteps(STEPS)
    x = start = torch.randn(2, 4, 8, 8, generator=generator(0), dtype=dtype)
    for t in theirs.timesteps:
        x = theirs.step(model(x, t), t, x, return_dict=False)[0]
    denoise(model, first, start, window=12, tolerance=TOLERANCE)  # measures the weights, for all alike
    taken.clear()
    found, report = denoise(model, ours, start, window=12, tolerance=TOLERANCE)
    assert report.rounds < STEPS / 2
    assert_same(found, x, TOLERANCE * report.rounds)
    assert len(taken) < STEPS  # real ones, and one at each return to them; copies would take those of every round
    assert_same(ours.last_sample, theirs.last_sample, TOLERANCE * report.rounds)
    for mine, own in zip(ours.model_outputs, theirs.model_outputs, strict=True):
        assert_same(mine, own, 10 * TOLERANCE * report.rounds)  # the predicted sample divides by the signal
    assert ours.step_index == theirs.step_index


def edited(factor: float, when: range, steps: int, **config: Any) -> None:
    """A pipeline whose states are changed between the steps, with what the scheduler remembers left as it is."""

    def change(pipe, i, t, tensors):
        return {"latents": factor * tensors["latents"]} if i in when else {}

    pipe = stable_diffusion(UniPCMultistepScheduler(**SD_BETAS, **config))
    given: dict[str, Any] = {"prompt": "a cat", "height": 16, "width": 16, "output_type": "latent"}
    given |= {"num_inference_steps": steps, "callback_on_step_end": change}
    expected = pipe(generator=generator(5), **given).images
    out = sample(pipe, generator=generator(5), tolerance=1e-3, window=8, **given)
    assert_same(out.images, expected, 1e-3 * out.report.rounds)


@pytest.mark.parametrize("when", [range(20, 21), range(3, 24, 5), range(0)], ids=str)
@pytest.mark.parametrize("order", [2, 3])
def test_states_that_are_changed_between_the_steps(order, when):
    edited(0.5, when, 24, solver_order=order)


def test_inpainting():
    """Mixes the known part in between the steps."""
    (case,) = (case for case in CASES if case.name == "SD inpainting, 4 channels")
    pipe = case.make()
    pipe.scheduler = UniPCMultistepScheduler(**SD_BETAS)
    given = {**case.inputs, "num_inference_steps": 24}
    expected = pipe(generator=generator(5), **given).images
    out = sample(pipe, generator=generator(5), tolerance=1e-3, window=8, **given)
    assert_same(torch.as_tensor(out.images), torch.as_tensor(expected), 1e-3 * out.report.rounds)
