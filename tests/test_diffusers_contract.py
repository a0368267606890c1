"""What the diffusers integration refuses, and that it leaves a pipeline as it found it."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers import CogVideoXDPMScheduler, DDIMScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput
from pipelines import SIZE, digits, generator, stable_diffusion
from torch import nn

import picardsolve as ps
from picardsolve import Newton, Parareal
from picardsolve.integrations.diffusers import denoise, sample, sampler

NAN = float("nan")
INPUTS = {"prompt": "a cat", "height": SIZE, "width": SIZE, "num_inference_steps": 8, "output_type": "latent"}


def image(pipe, **more):
    return pipe(generator=generator(5), **INPUTS, **more).images


# ---- refusals

BAD_ARGUMENTS = {
    "window zero": ({"window": 0}, ValueError, "window", r'expected an integer >= 1 or "auto", got 0\.'),
    "window negative": ({"window": -3}, ValueError, "window", r'expected an integer >= 1 or "auto", got -3\.'),
    "window float": ({"window": 8.0}, ValueError, "window", r'expected an integer >= 1 or "auto", got 8\.0\.'),
    "window bool": ({"window": True}, ValueError, "window", r'expected an integer >= 1 or "auto", got True\.'),
    "window none": ({"window": None}, ValueError, "window", r'expected an integer >= 1 or "auto", got None\.'),
    "window other text": (
        {"window": "wide"},
        ValueError,
        "window",
        r'expected an integer >= 1 or "auto", got \'wide\'\.',
    ),
    "max_batch zero": ({"max_batch": 0}, ValueError, "max_batch", r"expected an integer >= 1, got 0\."),
    "guess a trajectory": ({"guess": ps.FromTrajectory(torch.zeros(5, 4))}, TypeError, "guess", r"pass one of these"),
    "guess a class": ({"guess": ps.Copy}, TypeError, "guess", r"FrozenSample\(\), got Copy; pass"),
    "max_batch float": ({"max_batch": 2.0}, TypeError, "max_batch", r"expected an integer >= 1, got 2\.0\."),
    "tolerance negative": ({"tolerance": -1e-3}, ValueError, "tolerance", r"expected a number >= 0, got -0\.001\."),
    "iteration Newton": ({"iteration": Newton()}, TypeError, "iteration", r"Newton needs derivatives.*Secant\(\)\."),
    "tolerance NaN": ({"tolerance": NAN}, ValueError, "tolerance", r"expected a number >= 0, got nan\."),
    "parareal": (
        {"iteration": Parareal()},
        TypeError,
        "iteration",
        r"pass picardsolve\.Picard\(\), or call picardsolve",
    ),
}
OWN_STEP = r"CogVideoXDPMScheduler\.step takes \(model_output, old_pred_original_sample, timestep, \.\.\.\), not "


def refused(call, error, name, remedy):
    with pytest.raises(error, match=rf"^{name}: .*{remedy}") as caught:
        call()
    assert type(caught.value) is error


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
@pytest.mark.parametrize("entry", ["sample", "sampler", "denoise"])
def test_bad_arguments_are_refused_before_the_denoiser_is_called(case, entry):
    def model(*args, **kwargs):
        raise AssertionError("called")

    change, error, name, remedy = BAD_ARGUMENTS[case]
    pipe = digits(DDIMScheduler())
    pipe.scheduler.set_timesteps(4)
    calls = {
        "sample": lambda: sample(SimpleNamespace(scheduler=pipe.scheduler, components={}), **change),
        "sampler": lambda: sampler(pipe, **change),
        "denoise": lambda: denoise(model, pipe.scheduler, torch.zeros(1, 4), **change),
    }
    before = set(vars(pipe.scheduler))
    refused(calls[entry], error, name, remedy)
    assert set(vars(pipe.scheduler)) == before


@pytest.mark.parametrize("pipe", [object(), None, SimpleNamespace(scheduler=None, components={})])
@pytest.mark.parametrize("call", [sample, sampler])
def test_a_pipeline_needs_a_scheduler(pipe, call):
    remedy = rf"expected a diffusers pipeline with a scheduler, got {type(pipe).__name__}\."
    refused(lambda: call(pipe), TypeError, "pipe", remedy)


def test_a_scheduler_with_a_step_of_its_own_in_denoise():
    def model(*args):
        raise AssertionError("called")

    scheduler = CogVideoXDPMScheduler()
    scheduler.set_timesteps(4)
    refused(lambda: denoise(model, scheduler, torch.zeros(1, 4)), TypeError, "scheduler", OWN_STEP)


@pytest.mark.parametrize("same", [True, False], ids=["the same context", "another context"])
def test_contexts_do_not_nest(same):
    pipe = stable_diffusion()
    expected = image(pipe)
    with sampler(pipe, tolerance=0.0, window=3) as outer:
        inner = outer if same else sampler(pipe)
        with pytest.raises(RuntimeError, match=r"^sampler: .*already running in parallel; leave the other context"):
            inner.__enter__()
        torch.testing.assert_close(image(pipe), expected)
        assert outer.report.steps == 8
    check_restored(pipe, expected)


# ---- afterwards


def check_restored(pipe, expected):
    assert vars(pipe.scheduler).keys().isdisjoint({"step", "set_timesteps", "scale_model_input"})
    assert type(pipe.scheduler.timesteps) is torch.Tensor
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            assert "forward" not in vars(module)
    for value in vars(pipe.scheduler).values():
        for part in value if isinstance(value, list) else [value]:
            assert not isinstance(part, torch.Tensor) or type(part) is torch.Tensor
    assert torch.equal(image(pipe), expected)


def test_restored_after_success():
    pipe = stable_diffusion()
    names = set(vars(pipe.scheduler))
    expected = image(pipe)
    sample(pipe, generator=generator(5), window=4, **INPUTS)
    assert set(vars(pipe.scheduler)) == names
    check_restored(pipe, expected)


@pytest.mark.parametrize(
    ("error", "step", "tolerance"),
    [
        *((ZeroDivisionError, 0, 0.0), (KeyboardInterrupt, 1, 0.0), (ZeroDivisionError, 4, 0.0)),
        *((KeyboardInterrupt, 0, 1e-3), (ZeroDivisionError, 1, 1e-3), (KeyboardInterrupt, 7, 1e-3)),
    ],
)
def test_restored_after_an_error_in_a_callback(error, step, tolerance):
    def fail(pipe, i, t, tensors):
        if i == step:
            raise error("in the callback")
        return {}

    pipe = stable_diffusion()
    expected = image(pipe)
    with pytest.raises(error, match="in the callback"):
        sample(
            pipe,
            generator=generator(5),
            window=4,
            tolerance=tolerance,
            callback_on_step_end=fail,
            **INPUTS,
        )
    check_restored(pipe, expected)


@pytest.mark.parametrize("call", [0, 1, 2])
def test_restored_after_an_error_in_the_denoiser(call):
    def fail(module, args):
        calls.append(len(args[0]))
        if len(calls) > call:
            raise ZeroDivisionError("in the denoiser")

    pipe, calls = stable_diffusion(), []
    expected = image(pipe)
    hook = pipe.unet.conv_in.register_forward_pre_hook(fail)
    try:
        with pytest.raises(ZeroDivisionError, match="in the denoiser"):
            sample(pipe, generator=generator(5), window=4, **INPUTS)
    finally:
        hook.remove()
    assert len(calls) == call + 1
    check_restored(pipe, expected)


def test_restored_after_an_error_in_the_context():
    pipe = stable_diffusion()
    expected = image(pipe)
    with pytest.raises(ZeroDivisionError), sampler(pipe):
        raise ZeroDivisionError
    check_restored(pipe, expected)


BROKEN = {
    "another number of rows": (lambda x, t: UNet2DOutput(x[:1]), "returned shape"),
    "no batch at all": (lambda x, t: UNet2DOutput(x + torch.stack([t.reshape(())])), "failed on"),
    "rows that see each other": (lambda x, t: UNet2DOutput(0.5 * x + 0.4 * x.mean(0)), "in the company of others"),
    "another output every time": (lambda x, t: UNet2DOutput(x + torch.rand(())), "draws random numbers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_denoiser_that_cannot_be_batched_runs_one_step_at_a_time(case):
    forward, why = BROKEN[case]
    pipe = digits(DDIMScheduler())
    pipe.unet.forward = forward
    inputs = {"num_inference_steps": 8, "output_type": "pt"}
    try:
        torch.manual_seed(3)
        expected = pipe(generator=generator(5), **inputs).images
        torch.manual_seed(3)
        out = sample(pipe, generator=generator(5), window=4, **inputs)
    finally:
        del pipe.unet.forward
    assert why in out.report.sequential
    assert why in str(out.report)
    assert torch.equal(out.images, expected)
    assert vars(pipe.scheduler).keys().isdisjoint({"step", "set_timesteps", "scale_model_input"})


@pytest.mark.parametrize("fails", [False, True])
def test_a_forward_of_the_instance_is_used_and_given_back(fails):
    """As accelerate's hooks set it."""

    def hooked(*args, **kwargs):
        calls.append(1)
        if fails:
            raise ZeroDivisionError
        return original(*args, **kwargs)

    pipe, calls = stable_diffusion(), []
    original = pipe.unet.forward
    pipe.unet.forward = hooked
    try:
        if fails:
            with pytest.raises(ZeroDivisionError):
                sample(pipe, **INPUTS)
        else:
            assert sample(pipe, **INPUTS).report.rounds == len(calls)
        assert vars(pipe.unet)["forward"] is hooked
    finally:
        del pipe.unet.forward
    assert calls


def test_a_module_under_two_names():
    """Pipelines with two experts may be given the same one twice."""
    pipe, scheduler = digits(), DDIMScheduler()
    twice = SimpleNamespace(scheduler=scheduler, components={"transformer": pipe.unet, "transformer_2": pipe.unet})
    with sampler(twice, tolerance=0.0, window=4) as run:
        scheduler.set_timesteps(8)
        x = torch.ones(1, 1, 8, 8, dtype=torch.float64)
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(pipe.unet(x, t).sample, t, x, return_dict=False)[0]
    assert "forward" not in vars(pipe.unet)
    assert run.report.rounds <= 8


@pytest.mark.parametrize("fails", [False, True])
def test_denoise_restores_the_scheduler_and_the_module(fails):
    class Model(nn.Module):
        def forward(self, x, t):
            if fails and t < 500:
                raise ZeroDivisionError
            return torch.tanh(x)

    model, scheduler = Model(), DDIMScheduler()
    scheduler.set_timesteps(8)
    timesteps, names = scheduler.timesteps, set(vars(scheduler))
    run = partial(denoise, model, scheduler, torch.ones(1, 4), window=1)
    if fails:
        with pytest.raises(ZeroDivisionError):
            run()
    else:
        run()
    assert set(vars(scheduler)) == names
    assert type(scheduler.timesteps) is torch.Tensor
    assert torch.equal(scheduler.timesteps, timesteps)
    assert "forward" not in vars(model)
