"""The parts of the diffusers integration, each against the plain way of doing the same."""

from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given
from hypothesis import strategies as st
from pipelines import assert_same, digits, generator
from torch import nn

from integrations.diffusers import denoise
from integrations.diffusers.replay import Replay, batched, joined
from integrations.diffusers.scheduler_chain import NoiseTape, copy_of
from integrations.diffusers.step_table import step_table
from integrations.diffusers.window_tensor import WindowTensor, find, pick

# diffusers' schedulers make numpy arrays of tensors, in ways that numpy 2 wants torch to support differently
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


# ---- step_table

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
    table = step_table(scheduler, timesteps, {**extra, "generator": generator(0)})
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
    assert_same(table.step(slice(0, len(x)), output, x, noise), expected, 1e-9)
    middle = slice(len(x) // 2, len(x))
    assert_same(table.step(middle, output[middle], x[middle], noise[middle]), expected[middle], 1e-9)


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
    assert step_table(scheduler, scheduler.timesteps, extra) is None


# ---- WindowTensor


def window_of(items: list[torch.Tensor]) -> tuple[WindowTensor, list[int]]:
    shrunk: list[int] = []
    return WindowTensor.of(items, shrunk.append), shrunk


OPERATIONS = {
    "arithmetic": lambda x, other: 2.0 * x + other * x - x / 3 + 1,
    "other on the left": lambda x, other: other - x,
    "power and comparison": lambda x, other: (x**2 > other).to(x.dtype),
    "matrix product": lambda x, other: x.flatten(1) @ other.flatten(1).T,
    "cat": lambda x, other: torch.cat([x, x, other]),
    "stack": lambda x, other: torch.stack((other, x)),
    "chunk": lambda x, other: x.chunk(2, dim=1)[1],
    "unpacking": lambda x, other: [part + 1 for part in x.unbind(0)],
    "indexing": lambda x, other: x[:, 1:, None],
    "index by a mask": lambda x, other: x[other > 0],
    "expand": lambda x, other: x[0].expand(3, *x.shape[1:]),
    "norm": lambda x, other: x.norm(dim=(1, 2), keepdim=True),
    "named tuple": lambda x, other: x.max(dim=1).values,
    "dtype": lambda x, other: x.to(torch.float32),
    "where": lambda x, other: torch.where(other > 0, x, other),
    "clone in place": lambda x, other: x.clone().mul_(other).add_(1),
    "in place": lambda x, other: other.clone().copy_(x) if type(x) is torch.Tensor else x.clone(),
    "assignment": lambda x, other: assigned(x.clone()),
}


def assigned(x):
    x[:, 0] = 7.0
    x += 1
    return x


@pytest.mark.parametrize("name", OPERATIONS)
@given(count=st.integers(1, 5), seed=st.integers(0, 100))
def test_operations_apply_to_every_item(name, count, seed):
    items, other = list(randn(seed, count, 2, 4, 3)), randn(seed + 1, 2, 4, 3)
    window, shrunk = window_of(items)
    result = OPERATIONS[name](window, other)
    expected = [OPERATIONS[name](item, other) for item in items]
    for j in range(count):
        torch.testing.assert_close(pick(result, j), expected[j], rtol=0, atol=0)
    assert len(find(result)[0].items) == count
    assert shrunk == []


def test_in_place_operations_change_the_items():
    items = list(randn(0, 3, 4))
    expected = [2 * item for item in items]
    window, _ = window_of(items)
    window.mul_(2)
    for item, twice in zip(window.items, expected, strict=True):
        assert torch.equal(item, twice)


def test_two_windows_go_together():
    a, b = randn(0, 3, 4), randn(1, 3, 4)
    result = torch.add(window_of(list(a))[0], window_of(list(b))[0])
    assert torch.equal(torch.stack(result.items), a + b)


LOOKS = {
    "bool": lambda x: bool(x > 5),
    "if": lambda x: 1 if x > 5 else 0,
    "item": lambda x: x.item(),
    "float": lambda x: float(x),
    "int": lambda x: int(x),
    "tolist": lambda x: x.tolist(),
    "equal": lambda x: torch.equal(x, torch.tensor(9.0)),
}


@pytest.mark.parametrize("name", LOOKS)
@pytest.mark.parametrize(("values", "agreeing"), [([9, 9, 9], 3), ([9, 9, 2], 2), ([2, 9, 2], 1), ([9], 1)])
def test_looking_at_a_value_shows_the_first_and_keeps_those_that_agree(name, values, agreeing):
    window, shrunk = window_of([torch.tensor(float(value)) for value in values])
    assert LOOKS[name](window) == LOOKS[name](torch.tensor(float(values[0])))
    assert shrunk == ([] if agreeing == len(values) else [agreeing])


def test_nested_containers():
    items = list(randn(0, 3, 4))
    window, _ = window_of(items)
    nested = {"a": [window, (1, window)], "b": {"c": window, "d": "text"}}
    assert len(find(nested)) == 3
    for j, item in enumerate(items):
        assert pick(nested, j) == {"a": [item, (1, item)], "b": {"c": item, "d": "text"}}


def test_joined_outputs_repeat_the_last_one():
    outputs = [{"x": randn(j, 2), "more": (randn(j + 9, 3), None)} for j in range(2)]
    together = joined(outputs, 4, lambda width: None)
    for j, k in enumerate([0, 1, 1, 1]):
        assert torch.equal(together["x"].items[j], outputs[k]["x"])
        assert torch.equal(together["more"][0].items[j], outputs[k]["more"][0])
    assert together["more"][1] is None


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
    "LCM": diffusers.LCMScheduler,
    "TCD": diffusers.TCDScheduler,
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
    tape.forget(3)
    assert sorted(tape.before) == [3, 4]


# ---- Replay


def remembered(tolerance: float = 0.0) -> tuple[Replay, nn.Module, tuple, dict[str, Any]]:
    """Two steps, 4 and 5, of a module with one argument by position and three by name."""
    replay, module = Replay(tolerance), nn.Identity()
    states, _ = window_of([torch.ones(2, 3), 2 * torch.ones(2, 3)])
    times, _ = window_of([torch.tensor(10), torch.tensor(9)])
    kwargs = {"t": times, "scale": 2.0, "more": {"text": torch.arange(6.0)}}
    replay.remember(4, 0, module, (states,), kwargs, ["first", "second"])
    return replay, module, (2 * torch.ones(2, 3),), {**pick(kwargs, 1)}


def test_recall_of_the_same_call():
    replay, module, args, kwargs = remembered()
    call = replay.recall(5, 0, module, args, kwargs)
    assert call is not None
    assert call.output == "second"


@pytest.mark.parametrize(
    ("step", "number", "change"),
    [
        (4, 0, {}),
        (6, 0, {}),
        (5, 1, {}),
        (5, 0, {"t": torch.tensor(8)}),
        (5, 0, {"t": torch.tensor(9.0)}),
        (5, 0, {"scale": 3.0}),
        (5, 0, {"scale": None}),
        (5, 0, {"extra": 1}),
        (5, 0, {"more": {"text": torch.arange(6.0) + 1}}),
        (5, 0, {"more": {"text": torch.arange(7.0)}}),
        (5, 0, {"more": {"words": torch.arange(6.0)}}),
    ],
)
def test_no_recall_of_another_call(step, number, change):
    replay, module, args, kwargs = remembered()
    assert replay.recall(step, number, module, args, {**kwargs, **change}) is None


def test_no_recall_for_another_module_or_another_state():
    replay, module, (x,), kwargs = remembered()
    assert replay.recall(5, 0, nn.Identity(), (x,), kwargs) is None
    for other in (x.double(), x[:1], x[:, :2], x + 1e-6):
        assert replay.recall(5, 0, module, (other,), kwargs) is None


@given(tolerance=st.sampled_from([1e-4, 1e-2]), near=st.booleans())
def test_recall_is_to_the_tolerance_relative_to_the_size(tolerance, near):
    replay, module, (x,), kwargs = remembered(tolerance)
    factor = 1 + tolerance * (0.9 if near else 1.1)
    assert (replay.recall(5, 0, module, (factor * x,), kwargs) is not None) == near


def test_replay_keeps_the_steps_that_it_is_told_to():
    replay, module, args, kwargs = remembered()
    replay.keep(4, 5)
    assert replay.recall(5, 0, module, args, kwargs) is None
    assert (4, 0) in replay.calls


# ---- batched


def test_batched_is_one_call_with_what_has_a_batch_repeated():
    def model(x, t, text, table, names, img_ids, flag):
        calls.append((x.shape, t.shape, text.shape, table.shape, names, img_ids.shape, flag))
        return {"sample": x + t[:, None] + text + table}

    calls = []
    items, times = list(randn(0, 3, 2, 4)), [torch.tensor(float(j)) for j in range(3)]
    states, t = window_of(items)[0], window_of(times)[0]
    text, table = randn(1, 2, 4), randn(2, 4)
    kwargs = {"text": text, "table": table, "names": ["a", "b"], "img_ids": randn(3, 2, 3), "flag": True}
    outputs = batched(lambda *args, **kw: model(*args, **kw), 2, (states, t), kwargs)
    assert calls == [((4, 4), (4,), (4, 4), (4,), ["a", "b"] * 2, (2, 3), True)]
    assert len(outputs) == 2
    for j, output in enumerate(outputs):
        assert torch.equal(output["sample"], items[j] + times[j] + text + table)


@pytest.mark.parametrize("model", [lambda x: x[:1], lambda x: x.sum(), lambda x: (x, x[1:])])
def test_batched_refuses_outputs_of_another_size(model):
    states, _ = window_of(list(randn(0, 3, 2, 4)))
    with pytest.raises(RuntimeError, match=r"the denoiser was given 6 states .* call the pipeline itself\."):
        batched(model, 3, (states,), {})


# ---- denoise


def by_hand(model, scheduler, x, extra=None, **conditioning):
    for t in scheduler.timesteps:
        out = model(scheduler.scale_model_input(x, t), t, **conditioning)
        x = scheduler.step(getattr(out, "sample", out), t, x, **(extra or {}), return_dict=False)[0]
    return x


class Model(nn.Module):
    """Rows do not see each other."""

    def forward(self, x, t, shift=0.0, gain=1.0):
        return torch.tanh(gain * x + shift) + 1e-3 * torch.as_tensor(t).reshape(-1, 1)


STEPPED = {
    "DDPM with clipping": (lambda: DDPMScheduler(clip_sample=True), True),
    "DDIM with clipping": (lambda: DDIMScheduler(clip_sample=True), False),
    "DPM-Solver": (DPMSolverMultistepScheduler, False),
    "SDE-DPM-Solver": (lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), True),
    "Euler": (EulerDiscreteScheduler, False),
}


def check_denoise(model: Any, name: str) -> None:
    make, noisy = STEPPED[name]
    scheduler = make()
    scheduler.set_timesteps(12)
    x = randn(0, 3, 4) * scheduler.init_noise_sigma
    conditioning = {"shift": randn(1, 3, 4), "gain": 0.5}
    g, h = generator(7), generator(7)
    expected = by_hand(model, deepcopy(scheduler), x, {"generator": g}, **conditioning)
    result, report = denoise(model, scheduler, x, window=5, tolerance=0.0, generator=h, **conditioning)
    assert_same(result, expected)
    assert torch.equal(g.get_state(), h.get_state())
    assert torch.equal(h.get_state(), generator(7).get_state()) != noisy
    assert (report.steps, report.samples, report.misses) == (12, 3, 0)
    assert report.rounds <= 12


@pytest.mark.parametrize("model", [Model(), Model().forward], ids=["module", "function"])
@pytest.mark.parametrize("name", STEPPED)
def test_denoise_is_the_loop_by_hand(name, model):
    check_denoise(model, name)


@dataclass
class Prediction:
    sample: torch.Tensor


@pytest.mark.parametrize("form", [UNet2DOutput, Prediction, lambda sample: SimpleNamespace(sample=sample)])
def test_denoise_of_a_model_that_returns_an_object_with_sample(form):
    check_denoise(lambda x, t, **conditioning: form(Model()(x, t, **conditioning)), "DDIM with clipping")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["DDPM with clipping", "DDIM with clipping", "SDE-DPM-Solver"])
@pytest.mark.parametrize("generators", ["one", "list"])
def test_denoise_with_a_tolerance(name, batch, generators):
    def given():
        return generator(7) if generators == "one" else [generator(k) for k in range(batch)]

    scheduler, unet = STEPPED[name][0](), digits().unet
    scheduler.set_timesteps(30)
    x = randn(0, batch, 1, 8, 8)
    with torch.no_grad():
        expected = by_hand(unet, deepcopy(scheduler), x, {"generator": given()})
    result, report = denoise(unet, scheduler, x, window=12, tolerance=1e-3, generator=given())
    error, size = torch.linalg.vector_norm(result - expected), torch.linalg.vector_norm(expected)
    assert error <= 1e-3 * report.rounds * size  # each round leaves about one tolerance
    assert report.rounds < 30


def test_denoise_passes_eta_on():
    scheduler, x = DDIMScheduler(), randn(0, 2, 4)
    scheduler.set_timesteps(10)
    expected = by_hand(Model(), deepcopy(scheduler), x, {"eta": 1.0, "generator": generator(3)})
    for eta, agrees in ((1.0, True), (None, False)):
        result, _ = denoise(Model(), scheduler, x, tolerance=0.0, eta=eta, generator=generator(3))
        assert torch.allclose(result, expected) == agrees


def test_denoise_batches_the_window():
    rows = []

    def model(x, t):
        rows.append(len(x))
        return torch.tanh(x)

    scheduler = DDIMScheduler()
    scheduler.set_timesteps(20)
    _, report = denoise(model, scheduler, randn(0, 2, 4), window=6, tolerance=1e-3)
    assert len(rows) == report.rounds < 20
    assert sum(rows) == report.evaluations
    assert max(rows) == 2 * 6
