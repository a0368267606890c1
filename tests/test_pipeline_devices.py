"""Pipelines over several devices of one process: two copies of the denoiser on the CPU."""

import copy
import queue
import threading
import time

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from pipelines import CASES, SIZE, digits, generator, stable_diffusion
from test_diffusers_changes import (
    another_block,
    free_u,
    scaled,
    with_lora,
    zero_by_data,
)

import picardsolve as ps
from picardsolve.integrations.diffusers import denoise, sample, sampler
from picardsolve.integrations.diffusers.run.shared_lanes import LanesElsewhere

TWO = ["cpu", "cpu"]
FLAT = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}


CALLS = queue.SimpleQueue()  # of copy, thread and rows: no part of a denoiser's state, as a list would be


def calls():
    return [CALLS.get() for _ in range(CALLS.qsize())]


class Plain(torch.nn.Module):
    """A denoiser that is bit for bit the same in every batch; it notes where it was called, and for what."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1, 1, 1), 0.4, dtype=torch.float64))
        self.settings = {"scale": 1.0}
        self.slow = 0.0

    def forward(self, x, t, shift=None):
        CALLS.put((id(self), threading.current_thread().name, len(x)))
        if threading.current_thread().name.startswith("picardsolve-cpu-1"):
            time.sleep(self.slow * len(x))
        elif "picardsolve" in threading.current_thread().name:
            time.sleep(self.slow / 3 * len(x))
        y = self.weight * x * self.settings["scale"] + 1e-3 * x * x
        return y if shift is None else y + shift[:, None, None, None] * 1e-4 * t.reshape(-1, 1, 1, 1)


def denoised(model, scheduler=DDIMScheduler, steps=12, batch=2, **given):
    calls()
    made = scheduler(**FLAT)
    made.set_timesteps(steps)
    x = torch.randn(batch, 1, 2, 2, generator=generator(1), dtype=torch.float64)
    shift = torch.arange(batch, dtype=torch.float64)
    return denoise(model, made, x, generator=generator(2), shift=shift, **{"window": 6, **given})


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_a_denoiser_of_independent_rows_gives_the_same_bits_on_two_devices(scheduler):
    model = Plain()
    one, alone = denoised(model, scheduler)
    two, shared = denoised(model, scheduler, devices=TWO)
    assert torch.equal(one, two)
    assert shared.sequential is None
    assert (shared.rounds, shared.states, shared.width) == (alone.rounds, alone.states, alone.width)
    seen = [call for call in calls() if "picardsolve" in call[1]]
    assert {thread for _, thread, _ in seen} == {"picardsolve-cpu-0_0", "picardsolve-cpu-1_0"}
    assert len({copied for copied, _, _ in seen}) == 2


def test_functions_are_copied_with_what_they_hold():
    weight = torch.tensor([0.5], dtype=torch.float64)
    one, two = (
        denoise(lambda x, t: x * weight, made, torch.ones(2, 4, dtype=torch.float64), window=6, **given)[0]
        for made, given in ((scheduled(), {}), (scheduled(), {"devices": TWO}))
    )
    assert torch.equal(one, two)


def scheduled(steps=12):
    made = DDIMScheduler(**FLAT)
    made.set_timesteps(steps)
    return made


CHOSEN = [case for case in CASES if str(case) in ("DDPM", "DDIM", "SD ControlNet")]
assert len(CHOSEN) == 3, sorted(map(str, CASES))


def pixels(pipe, case, **given):
    out = sample(pipe, **case.arguments(generator=generator(5)), window=4, **given)
    return case.result(out), out.report


@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_pipelines_make_the_same_pictures(case):
    (one, alone), (two, shared) = pixels(case.make(), case), pixels(case.make(), case, devices=TWO)
    assert torch.allclose(one, two, rtol=0, atol=1e-10)  # networks are the same in every batch to rounding
    assert shared.sequential is None
    assert not shared.notes
    assert (shared.rounds, shared.states, shared.width) == (alone.rounds, alone.states, alone.width)
    assert shared.calls > alone.calls


def guided(pipe=None, **given):
    pipe = pipe or stable_diffusion()
    given = {"height": SIZE, "width": SIZE, "num_inference_steps": 6, "output_type": "latent", "window": 4, **given}
    out = sample(pipe, "a cat", generator=generator(5), **given)
    return out.images, out.report


def test_guidance_makes_the_same_picture_and_in_a_context_too():
    one, alone = guided()
    two, shared = guided(devices=TWO)
    assert torch.allclose(one, two, rtol=0, atol=1e-10)
    assert (shared.rounds, shared.width) == (alone.rounds, alone.width)
    pipe = stable_diffusion()
    with sampler(pipe, window=4, devices=TWO) as run:
        images = pipe(
            "a cat", height=SIZE, width=SIZE, num_inference_steps=6, output_type="latent", generator=generator(5)
        ).images
    assert torch.allclose(one, images, rtol=0, atol=1e-10)
    assert run.report.sequential is None


# ---- copies


def test_copies_are_kept_over_calls_and_made_anew_where_the_denoiser_has_changed():
    model = Plain()
    denoised(model, devices=TWO)
    copies = {copied for copied, _, _ in calls()}
    assert len(copies) == 2
    denoised(model, devices=TWO)
    assert {copied for copied, _, _ in calls()} == copies
    for change in (
        lambda: model.weight.data.mul_(0.5),
        lambda: model.settings.update(scale=0.7),
        lambda: model.register_forward_hook(lambda module, args, out: 0.9 * out),
        lambda: setattr(model, "weight", torch.nn.Parameter(model.weight.detach() * 1.1)),
    ):
        change()
        assert torch.equal(denoised(model, devices=TWO)[0], denoised(model)[0])


CHANGES = [zero_by_data, scaled, another_block, free_u]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
def test_adapters_and_weights_that_change_between_calls_are_seen(change):
    pipe = with_lora()
    before, _ = guided(pipe, devices=TWO)
    change(pipe)
    alone, _ = guided(pipe)
    shared, report = guided(pipe, devices=TWO)
    assert torch.allclose(alone, shared, rtol=0, atol=1e-10)
    assert not torch.allclose(before, shared, rtol=0, atol=1e-6)
    assert not report.notes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [zero_by_data, scaled], ids=lambda one: one.__name__)
def test_changes_in_the_middle_of_a_run_are_seen(change):
    def at_the_third(pipe, step, t, given):
        if step == 2:
            change(pipe)
        return given

    (alone, _), (shared, report) = (
        guided(with_lora(), callback_on_step_end=at_the_third, **given) for given in ({}, {"devices": TWO})
    )
    assert torch.allclose(alone, shared, rtol=0, atol=1e-10)
    assert any("was changed" in note for note in report.notes)


class Hidden(torch.nn.Module):
    """Gives other values in a copy."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.own = id(self)

    def forward(self, x, t):
        return 0.5 * x * self.weight * (1 if id(self) == self.own else 1.5)


def test_a_copy_that_gives_other_values_is_not_used_and_a_note_says_so():
    one, two = (
        denoise(Hidden(), scheduled(), torch.ones(2, 4, dtype=torch.float64), window=6, **given)
        for given in ({}, {"devices": TWO})
    )
    assert torch.equal(one[0], two[0])
    assert len(two[1].notes) == 1
    assert "its copy of Hidden gives outputs that differ by 0.5 of their size" in two[1].notes[0]


def test_what_cannot_be_copied_is_refused(monkeypatch):
    pipe = digits(DDIMScheduler(**FLAT))
    pipe.unet = copy.deepcopy(pipe.unet)
    forward = pipe.unet.mid_block.forward
    pipe.unet.mid_block.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    with pytest.raises(ValueError, match=r"devices: UNet2DModel has another forward in the place of UNetMidBlock2D's"):
        sampler(pipe, devices=TWO)
    del pipe.unet.mid_block.forward
    monkeypatch.setattr(torch, "compile", lambda function, **given: function)
    pipe.unet.mid_block.compile()
    with pytest.raises(ValueError, match=r"devices: UNet2DModel is compiled"):
        sampler(pipe, devices=TWO)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="devices: those of one process"):
        sampler(digits(), devices=TWO, mesh=2)
    with pytest.raises(ValueError, match="batcher: it gathers rows in one process"):
        sampler(digits(), devices=TWO, batcher=ps.Batcher(digits().unet, max_rows=8))
    with pytest.raises(ValueError, match="devices: there is no 'cuda:77' here"):
        sampler(digits(), devices=["cuda:77"])


# ---- failures


class Fails(Plain):
    """Fails in the second device's thread."""

    def forward(self, x, t, shift=None):
        if threading.current_thread().name.startswith("picardsolve-cpu-1"):
            raise MemoryError("no room")
        return super().forward(x, t, shift)


def test_lanes_of_a_device_that_fails_are_evaluated_on_the_others_and_a_note_says_so():
    (one, _), (two, report) = denoised(Fails()), denoised(Fails(), devices=TWO)
    assert torch.equal(one, two)
    assert len(report.notes) == 1
    assert report.notes[0].startswith("cpu failed (MemoryError: no room)")
    assert report.sequential is None


def test_a_denoiser_that_fails_everywhere_is_run_one_step_at_a_time_as_on_one_device():
    def model(x, t):
        if len(x) > 2:
            raise RuntimeError("one at a time, please")
        return 0.5 * x

    x = torch.ones(2, 4, dtype=torch.float64)
    one, two = (denoise(model, scheduled(), x, window=6, **given) for given in ({}, {"devices": TWO}))
    assert torch.equal(one[0], two[0])
    assert "one at a time, please" in two[1].sequential


# ---- shares


def test_halves_of_guidance_and_inputs_of_a_controlnet_stay_with_their_step(monkeypatch):
    """Every device is given whole lanes, and in an iteration the same ones by all of its calls."""
    parts, work = [], LanesElsewhere.work

    def seen(self, part):
        asked = self._here.asked
        places, stacks, count, _ = part
        alike = [leaf for k, leaf in enumerate(asked.leaves) if k not in places and isinstance(leaf, torch.Tensor)]
        parts.append((type(asked.module).__name__, count, [stack.shape for stack in stacks], alike))
        return work(self, part)

    monkeypatch.setattr(LanesElsewhere, "work", seen)
    case = next(case for case in CHOSEN if str(case) == "SD ControlNet")
    pixels(case.make(), case, devices=TWO)
    names = [name for name, *_ in parts]
    assert names == ["ControlNetModel", "UNet2DConditionModel"] * (len(names) // 2)
    for (_, lanes, shapes, alike), (_, others, more, _) in zip(parts[::2], parts[1::2], strict=True):
        assert lanes == others
        assert all(shape[0] == lanes for shape in (*shapes, *more))
        assert {shape[1] for shape in shapes if len(shape) == 5} == {2}  # without and with the prompt
        assert {shape[1] for shape in more if len(shape) == 5} == {2}  # residuals of the ControlNet among them
        assert any(tensor.shape[0] == 2 and tensor.shape[-1] == SIZE for tensor in alike)  # the picture to follow


def test_a_batch_of_pictures_stays_together():
    model = Plain()
    denoised(model, batch=3, devices=TWO)
    assert all(rows % 3 == 0 for _, _, rows in calls())


def test_a_copy_that_is_three_times_slower_gets_a_third_of_the_steps_and_the_run_is_shorter_for_it():
    model = Plain()
    model.slow = 3e-3
    denoised(model, steps=60, batch=1, window=16, devices=TWO, tolerance=1e-6)
    seen = calls()
    first, second = ([rows for _, thread, rows in seen if thread == f"picardsolve-cpu-{k}_0"] for k in (0, 1))
    assert second[:2] == [1, 1]  # the copy was compared with the original at a step
    del second[:2]
    assert len(first) == len(second) > 8
    assert 0.15 < sum(second[5:]) / sum(first[5:] + second[5:]) < 0.35  # a quarter
    rounds = list(zip(first, second, strict=True))
    took = sum(max(quick, 3 * slow) for quick, slow in rounds)
    assert took < 0.8 * sum(1.5 * (quick + slow) for quick, slow in rounds)  # of even shares


def test_the_automatic_window_has_as_many_rows_for_each_device():
    model = Plain()
    model.slow = 1e-3
    widths = [
        denoised(model, steps=60, window="auto", max_batch=6, tolerance=1e-2, devices=devices)[1].width
        for devices in (["cpu"], TWO)
    ]
    assert widths[1] > widths[0] >= 2
    assert widths[0] <= 4  # steps of two pictures, and the first one once more
    assert widths[1] <= 7
