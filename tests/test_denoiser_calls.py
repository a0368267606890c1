"""Denoiser calls: batched, remembered, and the loop that needs no pipeline."""

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from diffusers.models.unets.unet_2d import UNet2DOutput
from hypothesis import given
from hypothesis import strategies as st
from pipelines import assert_same, digits, generator
from torch import nn

from picardsolve.integrations.diffusers import denoise, sampler
from picardsolve.integrations.diffusers.run.batching import Batch, Outputs
from picardsolve.integrations.diffusers.run.nested import joined
from picardsolve.integrations.diffusers.run.replay import Replay
from picardsolve.integrations.diffusers.run.window_tensor import Lanes, pick

# diffusers' schedulers make numpy arrays of tensors, in ways that numpy 2 wants torch to support differently
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

NAN = float("nan")


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def windows(*columns: list[torch.Tensor]) -> list[Any]:
    lanes = Lanes(len(columns[0]))
    return [lanes.tensor(items) for items in columns]


# ---- Replay


def remembered(tolerance: float = 0.0) -> tuple[Replay, nn.Module, tuple, dict[str, Any]]:
    """Two steps, 4 and 5, of a module with one argument by position and three by name."""
    replay, module = Replay(tolerance), nn.Identity()
    states, times = windows([torch.ones(2, 3), 2 * torch.ones(2, 3)], [torch.tensor(10), torch.tensor(9)])
    kwargs = {"t": times, "scale": 2.0, "more": {"text": torch.arange(6.0)}}
    replay.remember(4, 0, module, (states,), kwargs, Outputs(1, chunks=[(["first", "second"], 2, 2)]))
    replay.keep(range(4, 6))
    return replay, module, (2 * torch.ones(2, 3),), {**pick(kwargs, 1)}


def test_recall_of_the_same_call():
    replay, module, args, kwargs = remembered()
    assert replay.recall(5, 0, module, args, kwargs) == (True, ["second"])


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
    assert replay.recall(step, number, module, args, {**kwargs, **change}) == (False, None)


def test_no_recall_for_another_module_or_another_state():
    replay, module, (x,), kwargs = remembered()
    assert replay.recall(5, 0, nn.Identity(), (x,), kwargs) == (False, None)
    for other in (x.double(), x[:1], x[:, :2], x + 1e-6):
        assert replay.recall(5, 0, module, (other,), kwargs) == (False, None)


@given(tolerance=st.sampled_from([1e-4, 1e-2]), near=st.booleans())
def test_recall_is_to_the_tolerance_relative_to_the_size(tolerance, near):
    replay, module, (x,), kwargs = remembered(tolerance)
    factor = 1 + tolerance * (0.9 if near else 1.1)
    assert replay.recall(5, 0, module, (factor * x,), kwargs)[0] == near


def test_replay_keeps_the_steps_that_it_is_told_to():
    replay, module, args, kwargs = remembered()
    replay.keep(range(4, 5))
    assert replay.recall(5, 0, module, args, kwargs) == (False, None)
    assert replay.recall(4, 0, module, (torch.ones(2, 3),), {**kwargs, "t": torch.tensor(10)}) == (True, ["first"])
    replay.keep(range(0))
    replay.keep(range(4, 6))
    assert replay.recall(4, 0, module, (torch.ones(2, 3),), {**kwargs, "t": torch.tensor(10)}) == (False, None)


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_nan_is_recalled_and_hides_no_other_sample(tolerance):
    replay, module = Replay(tolerance), nn.Identity()
    x = torch.ones(2, 3)
    x[0] = NAN
    replay.remember(0, 0, module, tuple(windows([x, x.clone()])), {}, "same")
    replay.keep(range(2))
    assert replay.recall(1, 0, module, (x.clone(),), {}) == (True, "same")
    other = x.clone()
    other[1] += 1
    assert replay.recall(1, 0, module, (other,), {}) == (False, None)


def test_inputs_that_were_written_to_are_not_trusted_and_copied_from_then_on():
    replay, module = Replay(0.0), nn.Identity()
    for found in (False, True):
        states = Lanes(2).tensor(torch.stack([torch.ones(2, 3), 2 * torch.ones(2, 3)]))
        replay.remember(0, 0, module, (states,), {}, "same")
        replay.keep(range(2))
        states.mul_(3)
        assert replay.recall(1, 0, module, (2 * torch.ones(2, 3),), {})[0] == found


def test_outputs_that_were_written_to_are_not_trusted_and_copied_from_then_on():
    replay, module = Replay(0.0), nn.Identity()
    for found in (False, True):
        (states,) = windows([torch.ones(2, 3), 2 * torch.ones(2, 3)])
        outputs = Outputs(2, chunks=[(torch.ones(4, 3), 2, 2)])
        replay.remember(0, 0, module, (states,), {}, outputs)
        replay.keep(range(2))
        outputs.window(Lanes(2)).mul_(3)
        assert replay.recall(1, 0, module, (2 * torch.ones(2, 3),), {})[0] == found
        for lane in range(2) if found else ():
            _, output = replay.recall(lane, 0, module, ((1 + lane) * torch.ones(2, 3),), {})
            assert torch.equal(output, torch.ones(2, 3))
            output.mul_(3)  # neither is what is given back


# ---- Batch


def test_a_batch_is_one_call_with_what_has_a_batch_repeated():
    """Rows of one place in the pipeline's batch stay together: halves of the batch are halves for every lane."""

    def model(x, t, text, table, names, img_ids, flag):
        calls.append((x.shape, t.tolist(), text.shape, table.shape, names, img_ids.shape, flag))
        assert torch.equal(x[:2], torch.stack([items[0][0], items[1][0]]))
        return {"sample": x + t[:, None] + text + table}

    calls = []
    items, times = list(randn(0, 3, 2, 4)), [torch.tensor(float(j)) for j in range(3)]
    states, t = windows(items, times)
    text, table = randn(1, 2, 4), randn(2, 4)
    kwargs = {"text": text, "table": table, "names": ["a", "b"], "img_ids": randn(3, 2, 3), "flag": True}
    outputs = Batch().call(model, [0, 1], (states, t), kwargs)
    assert calls == [((4, 4), [0, 1, 0, 1], (4, 4), (4,), ["a", "a", "b", "b"], (2, 3), True)]
    assert (len(outputs), len(outputs.chunks), outputs.evaluated) == (2, 1, 2)
    whole = outputs.window(Lanes(2))["sample"]
    for j in range(2):
        assert torch.equal(whole.items[j], outputs.lane(j)["sample"])
        assert torch.equal(outputs.lane(j)["sample"], items[j] + times[j] + text + table)


@given(
    count=st.integers(1, 9),
    samples=st.integers(1, 3),
    limit=st.one_of(st.none(), st.integers(1, 12)),
    pad=st.one_of(st.none(), st.integers(9, 11)),
)
def test_chunks_and_padding_change_no_output(count, samples, limit, pad):
    def model(x, names):
        rows.append(len(x))
        return x * torch.tensor(names, dtype=x.dtype)[:, None], [name + "!" for name in map(str, names)]

    rows = []
    items, names = list(randn(0, count, samples, 4)), list(range(samples))
    outputs = Batch(limit, pad).call(model, list(range(count)), (*windows(items), names), {})
    assert len(outputs) == count
    whole, texts_of_first = outputs.window(Lanes(count))
    assert texts_of_first == outputs.lane(0)[1]
    for j, item in enumerate(items):
        product, texts = outputs.lane(j)
        assert torch.equal(whole.items[j], product)
        assert torch.equal(product, item * torch.arange(samples)[:, None])
        assert texts == [f"{name}!" for name in names]
    assert (len(rows), sum(rows)) == (len(outputs.chunks), outputs.evaluated * samples)
    if limit is not None:
        assert max(rows) <= max(limit, samples)
    if pad is not None:
        assert len(set(rows)) == 1
    elif limit is None:
        assert rows == [count * samples]


def test_conditioning_is_repeated_once_until_it_changes():
    batch, text, (states,) = Batch(), randn(1, 2, 4), windows(list(randn(0, 3, 2, 4)))
    seen = []

    def model(x, text):
        seen.append(text)
        return x

    batch.call(model, [0, 1, 2], (states, text), {})
    batch.call(model, [0, 1, 2], (states, text), {})
    assert seen[0] is seen[1]
    text += 1
    batch.call(model, [0, 1, 2], (states, text), {})
    assert torch.equal(seen[2], text.repeat_interleave(3, 0))


@pytest.mark.parametrize("model", [lambda x: x[:1], lambda x: x.sum(), lambda x: (x, x[1:])])
def test_a_batch_refuses_outputs_of_another_size(model):
    (states,) = windows(list(randn(0, 3, 2, 4)))
    with pytest.raises(RuntimeError, match=r"given 6 states, the denoiser returned shape"):
        Batch().call(model, [0, 1, 2], (states,), {})


def test_joined_outputs():
    outputs = [{"x": randn(j, 2), "more": (randn(j + 9, 3), None)} for j in range(3)]
    together = joined(outputs, Lanes(3).tensor)
    for j, output in enumerate(outputs):
        assert torch.equal(together["x"].items[j], output["x"])
        assert torch.equal(together["more"][0].items[j], output["more"][0])
    assert together["more"][1] is None


# ---- denoise


def by_hand(model, scheduler, x, extra=None, **conditioning):
    for t in scheduler.timesteps:
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
        out = model(scale(x, t), t, **conditioning)
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


@pytest.mark.parametrize(
    ("name", "batch", "generators"),
    [
        *(("DDPM with clipping", 1, "one"), ("DDPM with clipping", 3, "list")),
        *(("DDIM with clipping", 3, "one"), ("SDE-DPM-Solver", 3, "one"), ("SDE-DPM-Solver", 1, "list")),
    ],
)
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
    assert error <= 50 * 1e-3 * size  # this network's last steps make up to fifty times as much of what is left
    assert report.rounds < 30


def test_denoise_passes_eta_on():
    scheduler, x = DDIMScheduler(), randn(0, 2, 4)
    scheduler.set_timesteps(10)
    expected = by_hand(Model(), deepcopy(scheduler), x, {"eta": 1.0, "generator": generator(3)})
    for eta, agrees in ((1.0, True), (None, False)):
        result, _ = denoise(Model(), scheduler, x, tolerance=0.0, eta=eta, generator=generator(3))
        assert torch.allclose(result, expected) == agrees


CHURN = {"s_churn": 8.0, "s_tmin": 0.01, "s_tmax": 50.0, "s_noise": 1.01}


@pytest.mark.parametrize("make", [EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_denoise_passes_the_arguments_of_steps_on(make):
    """Churn: noise that diffusers draws in the steps of some noise levels."""
    scheduler = make()
    scheduler.set_timesteps(12)
    x = randn(0, 2, 4, dtype=torch.float32) * getattr(scheduler, "init_noise_sigma", 1.0)
    found = {}
    for name, step in (("churn", CHURN), ("none", {})):
        expected = by_hand(Model(), deepcopy(scheduler), x, {"generator": generator(3), **step})
        for tolerance in (0.0, 1e-3):
            found[name], report = denoise(
                Model(), deepcopy(scheduler), x, tolerance=tolerance, generator=generator(3), step_kwargs=step
            )
            assert float((found[name] - expected).norm()) <= 50 * (tolerance + 1e-6) * float(expected.norm())
            assert report.rounds <= len(scheduler.timesteps)
    assert float((found["churn"] - found["none"]).norm()) > 0.01 * float(expected.norm())


@pytest.mark.parametrize("name", ["s_churn", "sample", "return_dict"])
def test_arguments_that_a_step_does_not_take_are_refused(name):
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(TypeError, match=rf"^{name}: DDIMScheduler.step takes none; leave it out"):
        denoise(Model(), scheduler, randn(0, 1, 4), step_kwargs={name: 1.0})


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


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
@pytest.mark.parametrize("write", [lambda out: out.mul_(1.5), lambda out: out.clamp_(-0.3, 0.3), lambda out: out])
def test_a_loop_that_writes_to_the_denoisers_output(write, tolerance):
    """What is remembered for a replay must not have been written to before."""
    results, reports = [], []
    for parallel in (False, True):
        scheduler, module = DDIMScheduler(clip_sample=False), Model()
        scheduler.set_timesteps(20)
        x, owner = randn(0, 2, 4), SimpleNamespace(scheduler=scheduler, components={"model": module})
        with torch.no_grad(), sampler(owner, tolerance=tolerance, window=6) if parallel else nullcontext() as run:
            for t in scheduler.timesteps:
                out = module(x, t)
                write(out)
                x = scheduler.step(out, t, x, return_dict=False)[0]
        results.append(x)
        reports.append(getattr(run, "report", None))
    assert_same(results[1], results[0], 1e-6 if tolerance == 0 else tolerance * reports[1].rounds)
    assert reports[1].sequential is None
