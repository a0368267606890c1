"""Pipelines on a device that is not the host's: the images of the CPU in as many rounds, and what a round asks for.

The digits pipeline leaves its timesteps on the host, as `DDPMPipeline` does; Stable Diffusion has them on the device.
"""

import copy
import functools
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from pipelines import SD_BETAS, digits, stable_diffusion
from pipelines.parts import quiet
from simulated_device import DEVICE, SimulatedDevice
from tally import Tally

from picardsolve.integrations.diffusers import denoise, sample

# diffusers' schedulers make numpy arrays of tensors, in ways that numpy 2 wants torch to support differently
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

# on average of a round beside the network, beginning and end included: kernels, copies to the device, waits
KINDS = ("kernel", "copy to the device", "wait")
LIMITS = {"DDIM": (115, 5, 3), "DDPM": (130, 7, 3), "DPM-Solver++": (90, 4, 2.5)}
# the innermost functions of ours around the network
NETWORK = ("run/denoiser_calls.py _call", "run/batching.py call", "run/batching.py directly")
SCHEDULERS = {
    "DDIM": (DDIMScheduler, 36, 12),
    "DDPM": (DDPMScheduler, 64, 32),
    "DPM-Solver++": (DPMSolverMultistepScheduler, 25, 8),
}


def moved(pipe: Any) -> Any:
    """A copy of a pipeline on the device."""
    parts = {name: copy.deepcopy(part) for name, part in pipe.components.items()}
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.to(DEVICE)
    return quiet(type(pipe)(**parts))


def images(out: Any) -> torch.Tensor:
    return torch.as_tensor(out.images).cpu()


def arguments(steps: int, kind: str) -> dict[str, Any]:
    return {"num_inference_steps": steps, "output_type": kind, "generator": torch.Generator().manual_seed(0)}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_digits(name):
    cls, steps, width = SCHEDULERS[name]
    pipe = digits(cls.from_config(digits().scheduler.config), torch.float32)
    given = functools.partial(arguments, steps, "np")
    expected = sample(pipe, window=width, tolerance=1e-3, **given())
    with SimulatedDevice() as device:
        there = moved(pipe)
        device.tally.clear()
        found = sample(there, window=width, tolerance=1e-3, **given())
    assert not found.report.sequential
    assert found.report.rounds == expected.report.rounds
    torch.testing.assert_close(images(found), images(expected), rtol=1e-4, atol=1e-4)
    beside = Tally({key: number for key, number in device.tally.items() if not key[1].endswith(NETWORK)})
    costs = {kind: beside.of(kind) / found.report.rounds for kind in KINDS}
    assert all(costs[kind] <= most for kind, most in zip(KINDS, LIMITS[name], strict=True)), costs


def test_stable_diffusion():
    """In double precision, with guidance and a prompt.

    DDIM is taken, for schedulers that are probed get a generator of the timesteps' device, which "meta" has none of.
    """
    pipe = stable_diffusion(DDIMScheduler(**SD_BETAS, clip_sample=False))
    given = functools.partial(arguments, 12, "latent")
    expected = sample(pipe, "a cat", window=6, tolerance=1e-3, **given())
    with SimulatedDevice():
        there = moved(pipe)
        found = sample(there, "a cat", window=6, tolerance=1e-3, **given())
        assert found.images.device == DEVICE
        result = images(found)
    assert not found.report.sequential
    assert found.report.rounds == expected.report.rounds
    torch.testing.assert_close(result, images(expected), rtol=1e-7, atol=1e-7)


UNIPC = diffusers.UniPCMultistepScheduler
# kernels a round beside the model, all sizes alike
LOOPS: dict[str, tuple[Any, int]] = {
    "Euler": (diffusers.EulerDiscreteScheduler, 120),
    "flow matching": (diffusers.FlowMatchEulerDiscreteScheduler, 120),
    "Heun": (diffusers.HeunDiscreteScheduler, 300),
    "LMS": (diffusers.LMSDiscreteScheduler, 300),
    "DEIS": (diffusers.DEISMultistepScheduler, 300),
    "DEIS, order 3": (partial(diffusers.DEISMultistepScheduler, solver_order=3), 300),
    "DPM-Solver++, order 3": (partial(DPMSolverMultistepScheduler, solver_order=3), 300),
    "single steps": (diffusers.DPMSolverSinglestepScheduler, 300),
    "PNDM": (diffusers.PNDMScheduler, 300),
    "PLMS": (partial(diffusers.PNDMScheduler, skip_prk_steps=True), 300),
    "UniPC": (UNIPC, 300),
    "UniPC, order 3": (partial(UNIPC, solver_order=3), 300),
    "UniPC, flow": (
        partial(UNIPC, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
        300,
    ),
    "UniPC, Karras, bh1": (
        partial(UNIPC, use_karras_sigmas=True, solver_type="bh1", final_sigmas_type="sigma_min"),
        300,
    ),
}


@pytest.mark.parametrize(("width", "samples"), [(8, 1), (32, 1), (8, 4)])
@pytest.mark.parametrize("name", LOOPS)
def test_loops(name, width, samples):
    cls, most = LOOPS[name]
    _check_loop(cls, most, 40, width, samples)


@pytest.mark.parametrize("steps", [8, 12, 16])
@pytest.mark.parametrize("order", [2, 3])
def test_short_loops_of_endless_memory(order, steps):
    """As cheap as long ones: their steps are not taken for steps with a memory as long as the loop."""
    _check_loop(partial(UNIPC, solver_order=order), 300, steps, 8, 4)


def _check_loop(cls: Any, most: float, steps: int, width: int, samples: int) -> None:
    """Kernels and waits of a round beside the denoiser."""
    with SimulatedDevice() as device:
        x = torch.randn(samples, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        for _ in range(2):  # the second finds the scheduler's weights measured
            scheduler = cls()
            scheduler.set_timesteps(steps)
            device.tally.clear()
            _, report = denoise(_model, scheduler, x * getattr(scheduler, "init_noise_sigma", 1), window=width)
    beside = Tally({key: number for key, number in device.tally.items() if not key[1].endswith("calls.py forward")})
    costs = {kind: beside.of(kind) / report.rounds for kind in KINDS}
    assert not report.sequential
    assert report.rounds < report.steps / (2 if steps > 16 else 1)
    assert costs["kernel"] <= most, costs
    assert costs["wait"] <= 3, costs  # two in a round without a comparison of the table


def _model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.3 * torch.tanh(x) + 1e-4 * t.to(x.device, x.dtype).reshape(-1, 1, 1, 1)
