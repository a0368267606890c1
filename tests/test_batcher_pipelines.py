"""Pipelines in several threads that share a denoiser, with their own loops, through one batcher."""

import copy
import threading
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler
from pipelines import ROUNDING, digits, dit, generator, stable_diffusion
from test_batcher import in_threads

import picardsolve as ps
from picardsolve.integrations.diffusers import denoise, sample, sampler

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.timeout(250),
]
STEPS = 12


def sharing(pipe: Any, count: int) -> list[Any]:
    """Pipelines with schedulers of their own, and the other parts in common."""
    parts = {name: part for name, part in pipe.components.items() if name != "scheduler"}
    return [type(pipe)(**parts, scheduler=copy.deepcopy(pipe.scheduler)) for _ in range(count)]


def images(pipe: Any, seed: int, call: Any = None, **given: Any) -> Any:
    call = call or (lambda **kwargs: pipe(**kwargs))
    pipe.set_progress_bar_config(disable=True)
    return call(num_inference_steps=STEPS, generator=generator(seed), output_type="pt", **given)


def with_dpm_solver() -> Any:
    pipe = dit()
    pipe.scheduler = DPMSolverMultistepScheduler()
    return pipe


MAKERS = {
    "DDPM": (lambda: digits(DDPMScheduler()), {}),
    "DDIM, two images": (lambda: digits(DDIMScheduler()), {"batch_size": 2}),
    "DPM-Solver": (lambda: digits(DPMSolverMultistepScheduler()), {}),
    "by class, with guidance": (
        with_dpm_solver,
        {"class_labels": [1], "guidance_scale": 3.0},
    ),
}


@pytest.mark.parametrize("window", [1, 5, "auto"])
@pytest.mark.parametrize("name", MAKERS)
def test_every_image_is_the_untouched_pipelines(name, window):
    make, given = MAKERS[name]
    pipe = make()
    expected = [images(pipe, seed, **given).images for seed in range(4)]
    network = getattr(pipe, "unet", None) or pipe.transformer
    batcher, pipes = ps.Batcher(network, max_rows=24, max_wait=1.0), sharing(pipe, 4)

    def one(k: int) -> Any:
        def call(**kwargs: Any) -> Any:
            return sample(
                pipes[k], window=window, tolerance=1e-3 if window == "auto" else 0.0, batcher=batcher, **kwargs
            )

        return images(pipes[k], k, call, **given)

    found = in_threads([lambda k=k: one(k) for k in range(4)])
    for out, exact in zip(found, expected, strict=True):
        assert out.report.sequential is None or window == 1
        allowed = 2e-2 if window == "auto" else ROUNDING
        torch.testing.assert_close(torch.as_tensor(out.images), torch.as_tensor(exact), rtol=0.0, atol=allowed)
        assert out.report.steps == STEPS
    assert batcher.rounds.merged > 0
    assert batcher.rounds.widest <= 24
    assert not batcher.rounds.apart


def model(x: torch.Tensor, t: torch.Tensor, shift: Any = 0.0) -> torch.Tensor:
    return torch.tanh(x + 0.001 * t.reshape(-1, *[1] * (x.dim() - 1)) + shift)


def test_denoise_merges_the_calls_of_a_function():
    def one(k: int, **given: Any) -> Any:
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(STEPS)
        x = torch.randn(2, 4, generator=generator(k), dtype=torch.float64)
        return denoise(model, scheduler, x, window=4, tolerance=0.0, **given)[0]

    batcher = ps.Batcher(model, max_rows=64, max_wait=1.0)
    found = in_threads([lambda k=k: one(k, batcher=batcher) for k in range(3)])
    for k, x in enumerate(found):
        assert torch.equal(x, one(k))
    assert batcher.rounds.merged > 0


def test_a_request_of_ones_own_shows_progress_and_can_be_cancelled():
    pipe = digits(DDIMScheduler())
    batcher = ps.Batcher(pipe.unet, max_rows=32, max_wait=0.01)
    first, second = sharing(pipe, 2)
    exact = images(pipe, 1).images
    with batcher.request() as request:
        out = images(first, 1, lambda **k: sample(first, batcher=request, window=4, tolerance=0.0, **k))
        assert request.steps == STEPS
        assert request.calls >= out.report.calls
        assert request.rows >= out.report.evaluations
        forward, entered = pipe.unet.forward, threading.Event()

        def called(*args: Any, **kwargs: Any) -> Any:
            entered.set()
            return forward(*args, **kwargs)

        pipe.unet.forward = called

        def cancel() -> None:
            assert entered.wait(100)
            request.cancel()

        def many() -> None:
            for _ in range(1000):
                images(first, 1, lambda **k: sample(first, batcher=request, window=4, **k))

        def other() -> Any:
            return images(second, 1, lambda **k: sample(second, batcher=batcher, window=4, tolerance=0.0, **k)).images

        found = in_threads([many, cancel, other])
        del pipe.unet.forward
    assert isinstance(found[0], ps.Cancelled)
    torch.testing.assert_close(torch.as_tensor(found[2]), torch.as_tensor(exact), rtol=0.0, atol=ROUNDING)
    torch.testing.assert_close(images(first, 1).images, exact)  # the pipeline is as it was
    assert batcher.company == 1


def test_an_error_in_one_pipelines_callback_harms_no_other():
    pipe = stable_diffusion()
    batcher = ps.Batcher(pipe.unet, max_rows=32, max_wait=0.1)
    pipes = sharing(pipe, 2)
    for each in pipes:
        each.tokenizer = copy.deepcopy(pipe.tokenizer)
    prompt = {"prompt": "a fox"}

    def fails(pipe: Any, i: int, t: Any, kwargs: dict) -> dict:
        if i == 3:
            raise ZeroDivisionError
        return kwargs

    def one(k: int) -> Any:
        given = {"callback_on_step_end": fails} if k else {}
        call = lambda **kwargs: sample(pipes[k], batcher=batcher, window=3, tolerance=0.0, **kwargs)  # noqa: E731
        return images(pipes[k], k, call, **prompt, **given)

    found = in_threads([lambda k=k: one(k) for k in range(2)])
    assert isinstance(found[1], ZeroDivisionError)
    exact = images(pipe, 0, **prompt).images
    torch.testing.assert_close(torch.as_tensor(found[0].images), torch.as_tensor(exact), rtol=0.0, atol=ROUNDING)


def test_something_else_is_refused():
    pipe = digits(DDIMScheduler())
    with pytest.raises(TypeError, match="batcher"):
        sampler(pipe, batcher=pipe.unet)


def test_an_untouched_step_alone_where_many_wait():
    """Widths of one: the pipeline's own steps, and windows again when the load has gone."""
    pipe = digits(DDPMScheduler())
    batcher = ps.Batcher(pipe.unet, max_rows=64)
    widths = iter([1] * 4 + [4] * 100)
    batcher.load.width = lambda *_: next(widths)
    exact = images(pipe, 3).images
    out = images(pipe, 3, lambda **k: sample(pipe, batcher=batcher, window="auto", tolerance=1e-6, **k))
    torch.testing.assert_close(torch.as_tensor(out.images), torch.as_tensor(exact), rtol=0.0, atol=1e-4)
    seen = [now.width for now in out.report.history]
    assert int(seen[-1].max()) > 1 or len(seen) > 1
    assert 1 < out.report.width <= 5
    assert isinstance(pipe, DDPMPipeline)
