"""The steps of diffusers' schedulers, taken ahead of them, against the schedulers' own."""

import inspect
from copy import deepcopy
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from pipelines import assert_same, generator

from picardsolve.integrations.diffusers.scheduler.closed_form import closed_form
from picardsolve.integrations.diffusers.scheduler.copied_steps import copy_of
from picardsolve.integrations.diffusers.scheduler.noise_tape import NoiseTape
from picardsolve.integrations.diffusers.scheduler.probe import probe_of, scaled_ahead

# diffusers' schedulers make numpy arrays of tensors, in ways that numpy 2 wants torch to support differently
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


# ---- closed_form

common = {
    "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    "prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample"]),
    "timestep_spacing": st.sampled_from(["leading", "trailing", "linspace"]),
    "clip_sample": st.booleans(),
    "clip_sample_range": st.sampled_from([1.0, 2.5]),
}
ddpm_configs = st.fixed_dictionaries({**common, "variance_type": st.sampled_from(["fixed_small", "fixed_large"])})
ddim_configs = st.fixed_dictionaries({**common, "set_alpha_to_one": st.booleans()})


def check_table(scheduler: Any, steps: int, extra: dict[str, Any]) -> None:
    """In double, where only a wrong formula can make a difference."""
    for name in {"alphas_cumprod", "final_alpha_cumprod"} & vars(scheduler).keys():
        setattr(scheduler, name, getattr(scheduler, name).double())
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    table = closed_form(scheduler, timesteps, {**extra, "generator": generator(0)})
    assert table is not None
    x, output, g = randn(1, len(timesteps), 2, 5), randn(2, len(timesteps), 2, 5), generator(0)
    noise, expected = torch.zeros_like(x), torch.zeros_like(x)
    for n, t in enumerate(timesteps):
        before = g.get_state()
        expected[n] = scheduler.step(output[n], t, x[n], generator=g, **extra, return_dict=False)[0]
        assert bool(table.noisy[n]) == (not torch.equal(before, g.get_state()))
        if table.noisy[n]:
            g.set_state(before)
            noise[n] = randn_tensor(x[n].shape, generator=g, dtype=x.dtype)
    assert_same(table.images(0, x, output, noise), expected, 1e-9)
    middle = len(x) // 2
    assert_same(table.images(middle, x[middle:], output[middle:], noise[middle:]), expected[middle:], 1e-9)


@given(config=ddpm_configs, steps=st.integers(1, 60))
def test_table_of_ddpm_is_its_step(config, steps):
    check_table(DDPMScheduler(**config), steps, {})


@given(config=ddim_configs, steps=st.integers(1, 60), eta=st.sampled_from([0.0, 0.3, 1.0]))
def test_table_of_ddim_is_its_step(config, steps, eta):
    check_table(DDIMScheduler(**config), steps, {"eta": eta})


def test_table_of_ddpm_with_all_its_steps():
    check_table(DDPMScheduler(), 1000, {})


class OwnScheduler(DDPMScheduler):
    pass


@pytest.mark.parametrize(
    ("scheduler", "extra"),
    [
        (DDPMScheduler(thresholding=True), {}),
        (DDIMScheduler(thresholding=True), {}),
        (DDPMScheduler(variance_type="learned"), {}),
        (DDPMScheduler(variance_type="learned_range"), {}),
        (DDPMScheduler(variance_type="fixed_small_log"), {}),
        (DDPMScheduler(prediction_type="flow"), {}),
        (DDIMScheduler(), {"use_clipped_model_output": True}),
        (DDIMScheduler(), {"eta": 1.0, "variance_noise": torch.zeros(1)}),
        (OwnScheduler(), {}),
        (DPMSolverMultistepScheduler(), {}),
        (EulerDiscreteScheduler(), {}),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "config") else ",".join(value),
)
def test_no_table_for_anything_else(scheduler, extra):
    scheduler.set_timesteps(10)
    assert closed_form(scheduler, scheduler.timesteps, extra) is None


# ---- copy_of

SCHEDULERS = {
    "DDPM": DDPMScheduler,
    "DDIM": DDIMScheduler,
    "Euler": EulerDiscreteScheduler,
    "Euler ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "Heun": diffusers.HeunDiscreteScheduler,
    "DPM-Solver++": lambda: DPMSolverMultistepScheduler(solver_order=3),
    "SDE-DPM-Solver++": lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "DPM-Solver single": diffusers.DPMSolverSinglestepScheduler,
    "UniPC": lambda: diffusers.UniPCMultistepScheduler(solver_order=3),
    "DEIS": diffusers.DEISMultistepScheduler,
    "PNDM": diffusers.PNDMScheduler,
    "PLMS": lambda: diffusers.PNDMScheduler(skip_prk_steps=True),
    "iPNDM": diffusers.IPNDMScheduler,
    "KDPM2": diffusers.KDPM2DiscreteScheduler,
    "KDPM2 ancestral": diffusers.KDPM2AncestralDiscreteScheduler,
    "EDM Euler": diffusers.EDMEulerScheduler,
    "EDM DPM-Solver": diffusers.EDMDPMSolverMultistepScheduler,
    "LCM": lambda: diffusers.LCMScheduler(clip_sample=False),
    "TCD": lambda: diffusers.TCDScheduler(clip_sample=False),
    "SA": diffusers.SASolverScheduler,
    "Flow Euler": diffusers.FlowMatchEulerDiscreteScheduler,
    "Flow Heun": diffusers.FlowMatchHeunDiscreteScheduler,
}


def advance(scheduler: Any, x: torch.Tensor, first: int, count: int) -> torch.Tensor:
    for n, t in enumerate(scheduler.timesteps[first : first + count], first):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        torch.manual_seed(n)
        x = scheduler.step(torch.tanh(scaled), t, x, return_dict=False)[0]
    return x


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor | np.ndarray):
        return type(a) is type(b) and np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_stepping_a_copy_leaves_the_scheduler_alone(name, taken):
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(12)
    x = advance(scheduler, randn(0, 1, 2, 4, 4, dtype=torch.float32), 0, taken)
    untouched = deepcopy(scheduler)
    ahead = advance(copy_of(scheduler, scheduler.timesteps), x, taken, 4)
    assert vars(scheduler).keys() == vars(untouched).keys()
    changed = [key for key, value in vars(untouched).items() if not same(vars(scheduler)[key], value)]
    assert changed == []
    assert torch.equal(ahead, advance(scheduler, x, taken, 4))


def test_a_copy_has_the_timesteps_it_is_given_and_no_patches():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    scheduler.step = lambda *args: None
    copied = copy_of(scheduler, scheduler.timesteps[3:])
    assert "step" not in vars(copied)
    assert torch.equal(copied.timesteps, scheduler.timesteps[3:])
    assert len(scheduler.timesteps) == 10


# ---- probes

SIGMAS = [
    *("Euler", "Euler ancestral", "Heun", "DPM-Solver++", "SDE-DPM-Solver++", "DPM-Solver single", "UniPC", "DEIS"),
    *("PNDM", "PLMS", "iPNDM", "KDPM2", "KDPM2 ancestral", "EDM Euler", "EDM DPM-Solver", "LCM", "TCD"),
    *("Flow Euler", "Flow Heun"),
]


def stepped(
    scheduler: Any, x: torch.Tensor, outputs: torch.Tensor, g: torch.Generator, along: bool = False
) -> tuple[list, list]:
    """The scheduler's own steps, each from its own state, and the noise that it drew; ``along``: x becomes its path."""
    takes = "generator" in inspect.signature(scheduler.step).parameters
    images, noises = [], []
    for n, t in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x[n], t)
        before = g.get_state()
        extra = {"generator": g} if takes else {}
        images.append(scheduler.step(outputs[n], t, x[n], **extra, return_dict=False)[0])
        if along and n + 1 < len(x):
            x[n + 1] = images[n]
        drew = not torch.equal(before, g.get_state())
        g.set_state(before)
        dtype = torch.float32 if "DPMSolver" in type(scheduler).__name__ else x.dtype  # as they draw it
        noises.append(randn_tensor(x[n].shape, generator=g, dtype=dtype) if drew else torch.zeros_like(x[n]))
    return images, noises


@pytest.mark.parametrize("name", SIGMAS)
@given(steps=st.integers(5, 14), seed=st.integers(0, 5), first=st.integers(0, 4))
@settings(max_examples=5)
def test_a_probed_table_is_the_schedulers_own_step(name, steps, seed, first):
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    takes = "generator" in inspect.signature(scheduler.step).parameters
    before = torch.get_rng_state()
    probe = probe_of(scheduler, timesteps, timesteps, {"generator": None} if takes else {})
    assert probe.reach(len(timesteps))
    assert torch.equal(torch.get_rng_state(), before)
    x, outputs = randn(seed, len(timesteps), 1, 3, 2, 2), randn(seed + 9, len(timesteps), 1, 3, 2, 2)
    images, noises = stepped(scheduler, x, outputs, generator(seed), probe.table.on_path)
    flat_x, flat_out, expected, noise = (
        torch.stack(list(items)).flatten(2).double() for items in (x, outputs, images, noises)
    )
    past = list(zip(flat_x[:first], flat_out[:first], strict=True))
    found = probe.table.images(first, flat_x[first:], flat_out[first:], noise[first:], past)
    assert_same(found, expected[first:], 1e-5)  # schedulers keep their tables in single precision


@pytest.mark.parametrize("name", SIGMAS)
def test_a_path_is_one_image_after_the_other(name):
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(8)
    steps = len(scheduler.timesteps)
    probe = probe_of(scheduler, scheduler.timesteps, scheduler.timesteps, {})
    assert probe.reach(steps)
    table, outputs, noise = probe.table, randn(1, steps, 2, 3), randn(2, steps, 2, 3)
    path = table.path(0, randn(0, 1, 2, 3).expand(steps, 2, 3), outputs, noise)
    x = torch.cat([randn(0, 1, 2, 3), path[:-1]])
    assert_same(table.images(0, x, outputs, noise), path, 1e-12)
    past = list(zip(x[:6], outputs[:6], strict=True))
    ahead = table.path(6, x[6:7].expand(steps - 6, 2, 3), outputs[6:], noise[6:], past)
    assert_same(ahead, path[6:], 1e-12)


@pytest.mark.parametrize("name", SIGMAS)
@given(first=st.integers(0, 5), known=st.integers(0, 4))
@settings(max_examples=4)
def test_a_path_with_one_output_held_is_a_product(name, first, known):
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(8)
    steps = len(scheduler.timesteps)
    probe = probe_of(scheduler, scheduler.timesteps, scheduler.timesteps, {})
    assert probe.reach(steps)
    table, start, output = probe.table, randn(0, 2, 3), randn(1, 2, 3)
    past = list(zip(randn(2, known, 2, 3), randn(3, known, 2, 3), strict=True))
    outputs, noise = output.expand(steps - first, 2, 3), randn(4, steps - first, 2, 3)
    held = table.path_of_one(first, start, output, [(0.0, 1.0)] * (steps - first), noise, past)
    assert_same(held, table.path(first, start.expand(outputs.shape), outputs, noise, past), 1e-12)


@pytest.mark.parametrize(
    "scheduler",
    [
        DPMSolverMultistepScheduler(thresholding=True),
        DDPMScheduler(variance_type="learned_range"),
        DDPMScheduler(thresholding=True),
    ],
)
def test_no_table_for_steps_that_are_not_linear(scheduler):
    scheduler.set_timesteps(8)
    assert not probe_of(scheduler, scheduler.timesteps, scheduler.timesteps, {}).reach(8)


def unipc(**config: Any) -> Any:
    return diffusers.UniPCMultistepScheduler(**{"final_sigmas_type": "sigma_min", **config})


ENDLESS = st.fixed_dictionaries(
    {
        "solver_order": st.integers(1, 3),
        "solver_type": st.sampled_from(["bh1", "bh2"]),
        "predict_x0": st.booleans(),
        "lower_order_final": st.booleans(),
        "disable_corrector": st.lists(st.integers(0, 30), max_size=6),
        "prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample"]),
    },
    optional={"use_karras_sigmas": st.just(True)},
)


def on_its_path(scheduler: Any, outputs: torch.Tensor) -> torch.Tensor:
    """The states of a scheduler's own loop with given outputs, ``(N + 1, ...)``."""
    states = [randn(0, *outputs.shape[1:])]
    for output, t in zip(outputs, scheduler.timesteps, strict=True):
        states.append(scheduler.step(output, t, states[-1], return_dict=False)[0])
    return torch.stack(states)


@given(config=ENDLESS, steps=st.integers(17, 60), seed=st.integers(0, 5), first=st.integers(0, 16))
@settings(max_examples=20, phases=[Phase.generate])
def test_on_its_path_a_memory_that_never_ends_is_a_short_one(config, steps, seed, first):
    scheduler, outputs = unipc(**config), randn(seed, steps, 1, 3, 2, 2)
    scheduler.set_timesteps(steps)
    probe = probe_of(scheduler, scheduler.timesteps, scheduler.timesteps, {})
    x, out = (part.flatten(2) for part in (on_its_path(scheduler, outputs), outputs))
    assume(bool(x.isfinite().all()))  # a last step of length zero divides by it
    assert probe.reach(steps)
    past = list(zip(x[:first], out[:first], strict=True))
    found = probe.table.images(first, x[first:-1], out[first:], None, past)
    assert_same(found, x[first + 1 :], 1e-9)
    path = probe.table.path(first, x[first].expand(found.shape), out[first:], None, past)
    assert_same(path, x[first + 1 :], 1e-9)


def test_the_table_of_a_thousand_steps():
    scheduler = unipc(solver_order=3, timestep_spacing="trailing", final_sigmas_type="zero")
    scheduler.set_timesteps(1000)
    probe = probe_of(scheduler, scheduler.timesteps, scheduler.timesteps, {})
    assert probe.reach(1000)
    outputs = randn(1, 1000, 1, 3)
    x = on_its_path(scheduler, outputs[..., None, None]).flatten(2)
    assert_same(probe.table.path(0, x[0].expand(1000, 1, 3), outputs, None), x[1:], 1e-9)


def test_a_memory_with_noise_that_never_ends_has_no_table():
    scheduler = diffusers.SASolverScheduler()
    scheduler.set_timesteps(20)
    probe = probe_of(scheduler, scheduler.timesteps, scheduler.timesteps, {"generator": None})
    assert not probe.reach(20)


@pytest.mark.parametrize("steps", [12, 24])
def test_steps_with_endless_memory_count_as_remembering(steps):
    scheduler = diffusers.UniPCMultistepScheduler()
    scheduler.set_timesteps(steps)
    probe = probe_of(scheduler, scheduler.timesteps, scheduler.timesteps, {})
    assert probe.reach(steps)
    assert not probe.carries_forward()


def test_a_probe_is_kept_for_an_equal_scheduler_only():
    def probe(steps=8, **config):
        scheduler = EulerDiscreteScheduler(**config)
        scheduler.set_timesteps(steps)
        return probe_of(scheduler, scheduler.timesteps, scheduler.timesteps, {})

    assert probe() is probe()
    assert probe() is not probe(9)
    assert probe() is not probe(use_karras_sigmas=True)


@pytest.mark.parametrize(
    ("name", "forward"), [("Euler", True), ("DPM-Solver++", True), ("UniPC", False), ("Heun", False)]
)
def test_which_steps_start_from_their_own_state(name, forward):
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(10)
    probe = probe_of(scheduler, scheduler.timesteps, scheduler.timesteps, {})
    assert probe.reach(10)
    assert probe.carries_forward() == forward


@pytest.mark.parametrize("name", SIGMAS)
def test_inputs_ahead_are_scaled_as_the_scheduler_will(name):
    scheduler = SCHEDULERS[name]()
    if not hasattr(scheduler, "scale_model_input"):
        return
    scheduler.set_timesteps(8)
    timesteps, x = scheduler.timesteps, randn(0, 1, 3, 2, 2)
    start = copy_of(scheduler, timesteps)
    probe = probe_of(scheduler, timesteps, timesteps, {})
    for n, t in enumerate(timesteps):
        expected = scheduler.scale_model_input(x, t)
        assert torch.equal(scaled_ahead(probe, start, timesteps, n, n, x, t), expected)
        scheduler.step(x, t, x)


# ---- NoiseTape


@given(visits=st.lists(st.integers(0, 4), min_size=1, max_size=12), count=st.integers(1, 3))
def test_a_tape_plays_the_same_noise_at_every_visit(visits, count):
    sequential = [generator(k) for k in range(count)]
    expected = [[torch.randn(3, generator=g) for g in sequential] for _ in range(5)]
    tape = NoiseTape([generator(k) for k in range(count)])
    for step in range(5):
        tape.before[step] = tape.states()
        for g in tape.generators:
            torch.randn(3, generator=g)
    for step in visits:
        present = tape.states()
        tape.wind(tape.before[step])
        for g, noise in zip(tape.generators, expected[step], strict=True):
            assert torch.equal(torch.randn(3, generator=g), noise)
        tape.wind(present)
    for g, finished in zip(tape.generators, sequential, strict=True):
        assert torch.equal(g.get_state(), finished.get_state())


def test_a_tape_forgets_the_steps_before():
    tape = NoiseTape([generator(0)], {n: [] for n in range(5)})
    tape.drop_before(3)
    assert sorted(tape.before) == [3, 4]
