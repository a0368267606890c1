"""Pipelines whose denoiser remembers, or is changed by a callback: what users of diffusers do to their U-Nets."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from pipelines import SIZE, generator, stable_diffusion
from torch import Tensor, nn

from picardsolve.integrations.diffusers import sample, sampler

STEPS = 14
INPUTS = {"prompt": "a cat", "height": SIZE, "width": SIZE, "output_type": "latent", "num_inference_steps": STEPS}


def distance(actual: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected))


class Adapter(AttnProcessor):
    """Adds what an adapter of images adds, times its scale."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = [scale]

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = super().__call__(attn, hidden_states, *args, **kwargs)
        return out + 2 * self.scale[0] * torch.tanh(hidden_states)


class Counting(AttnProcessor):
    """Attends anew in every other call."""

    def __init__(self):
        super().__init__()
        self.calls, self.kept = 0, None

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        if self.kept is None or self.calls % 2 or self.kept.shape != hidden_states.shape:
            self.kept = super().__call__(attn, hidden_states, *args, **kwargs) + 2 * torch.tanh(hidden_states)
        return self.kept


def of_copies(adapter: bool = True) -> Any:
    pipe = stable_diffusion()
    pipe.unet = copy.deepcopy(pipe.unet)
    if adapter:
        pipe.unet.set_attn_processor(Adapter())
    return pipe


def with_lora() -> Any:
    pipe = of_copies(adapter=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
        pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False))
    pipe.unet.double()
    return pipe


def lora_weights(unet: nn.Module) -> list[nn.Parameter]:
    return [weight for name, weight in unet.named_parameters() if "lora_B" in name]


# ---- callbacks


def cut_off(pipe):
    for processor in pipe.unet.attn_processors.values():
        processor.scale = [0.0]


def cut_off_in_place(pipe):
    for processor in pipe.unet.attn_processors.values():
        processor.scale[0] = 0.0


def other_processors(pipe):
    pipe.unet.set_attn_processor(Adapter(0.3))


def zero_by_data(pipe):
    for weight in lora_weights(pipe.unet):
        weight.data.zero_()


def zero_data(pipe):
    for weight in lora_weights(pipe.unet):
        weight.data = torch.zeros_like(weight)


def zero_by_copy(pipe):
    with torch.no_grad():
        for weight in lora_weights(pipe.unet):
            weight.copy_(torch.zeros_like(weight))


def loaded(pipe):
    state = pipe.unet.state_dict()
    pipe.unet.load_state_dict({name: 0 * value if "lora_B" in name else value for name, value in state.items()})


def disabled(pipe):
    pipe.unet.disable_adapters()


def scaled(pipe):
    pipe.unet.set_adapters(["default"], weights=[0.1])


def fused(pipe):
    pipe.unet.fuse_lora(lora_scale=0.3)


def another_unet(pipe):
    pipe.unet = of_copies(adapter=False).unet


def another_block(pipe):
    pipe.unet.mid_block = copy.deepcopy(pipe.unet.mid_block)
    with torch.no_grad():
        for weight in pipe.unet.mid_block.parameters():
            weight.mul_(0.3)


def free_u(pipe):
    pipe.unet.enable_freeu(s1=0.2, s2=0.2, b1=1.9, b2=1.9)


def training_free(pipe):
    pipe.unet.conv_out.register_forward_hook(lambda _, __, output: 0.7 * output)


CHANGES: dict[Callable, Callable] = {
    **dict.fromkeys(
        (cut_off, cut_off_in_place, other_processors, another_unet, another_block, training_free), of_copies
    ),
    **dict.fromkeys((zero_by_data, zero_data, zero_by_copy, loaded, disabled, scaled, fused), with_lora),
}


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_callback_that_changes_the_denoiser(change, tolerance):
    def callback(pipe, i, t, tensors):
        if i == 4:
            change(pipe)
        return {}

    never = CHANGES[change]()(generator=generator(5), **INPUTS).images
    expected = CHANGES[change]()(generator=generator(5), callback_on_step_end=callback, **INPUTS).images
    assert distance(never, expected) > 5e-3  # the change matters
    out = sample(
        CHANGES[change](),
        generator=generator(5),
        callback_on_step_end=callback,
        window=8,
        tolerance=tolerance,
        **INPUTS,
    )
    assert distance(out.images, expected) <= (1e-5 if tolerance == 0 else 2 * tolerance)
    assert out.report.sequential is None
    assert out.report.width > 1


# ---- memories


def counting_processors(pipe):
    pipe.unet.set_attn_processor({name: Counting() for name in pipe.unet.attn_processors})


def one_counting_processor(pipe):
    processors = pipe.unet.attn_processors
    name = next(name for name in processors if "mid" in name or "down" in name)
    pipe.unet.set_attn_processor({**processors, name: Counting()})


def blocks_skipped(pipe):
    """As DeepCache does: blocks give what they gave before, but in every third step."""

    class Skipping:
        def __init__(self, unet):
            self.unet, self.step, self.kept = unet, 0, {}

        def wrap(self, name, block):
            forward = block.forward

            def skipped(*args, **kwargs):
                if self.step % 3 == 1 or name not in self.kept:
                    self.kept[name] = forward(*args, **kwargs)
                return self.kept[name]

            block.forward = skipped

        def begin(self):
            forward = self.unet.forward

            def counted(*args, **kwargs):
                self.step += 1
                return forward(*args, **kwargs)

            self.unet.forward = counted
            self.wrap("mid", self.unet.mid_block)
            self.wrap("down", self.unet.down_blocks[-1])

    Skipping(pipe.unet).begin()


def moving_average(pipe):
    """A hook that smooths what a block gives over the steps."""
    past = []

    def smooth(_, __, output):
        past.append(output)
        return sum(past[-2:]) / len(past[-2:])

    pipe.unet.conv_in.register_forward_hook(smooth)


def average_in_a_buffer(pipe):
    block = pipe.unet.conv_out
    block.register_buffer("size", torch.zeros((), dtype=torch.float64))

    def normed(module, _, output):
        module.size.lerp_(output.std(), 0.5)
        return output / (0.5 + module.size)

    block.register_forward_hook(normed)


def dropout(pipe):
    block = pipe.unet.conv_in
    block.register_forward_hook(lambda _, __, output: nn.functional.dropout(output, 0.1, training=True))


MEMORIES = [counting_processors, one_counting_processor, blocks_skipped, moving_average, average_in_a_buffer, dropout]


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
@pytest.mark.parametrize("remember", MEMORIES, ids=lambda remember: remember.__name__)
def test_a_pipeline_whose_denoiser_remembers(remember, tolerance):
    results = []
    for parallel in (False, True):
        pipe = of_copies()
        remember(pipe)
        torch.manual_seed(3)
        if not parallel:
            results.append(pipe(generator=generator(5), **INPUTS).images)
            continue
        with sampler(pipe, window=8, tolerance=tolerance) as run:
            results.append(pipe(generator=generator(5), **INPUTS).images)
    never = of_copies()(generator=generator(5), **INPUTS).images
    assert distance(never, results[0]) > 5e-3  # the memory matters
    assert distance(results[1], results[0]) <= 1e-9
    assert run.report.rounds == STEPS
    assert run.report.sequential is not None
    assert "draws" in run.report.sequential if remember is dropout else "memory of its own" in run.report.sequential


def test_a_loop_that_fails_on_windows_leaves_no_trace_in_what_the_scheduler_remembers():
    """The scheduler's memory is not one that `set_timesteps` empties."""

    def make() -> Any:
        pipe = of_copies()
        kind = type(pipe.scheduler)

        class Remembering(kind):
            def step(self, model_output: Any, timestep: Any, sample: Any, **kwargs: Any) -> Any:
                self.taken = getattr(self, "taken", 0) + 1
                self.mean = 0.5 * getattr(self, "mean", 0.0) + 0.5 * model_output.mean()
                return super().step(model_output * (1 + 0.01 * self.taken) - self.mean, timestep, sample, **kwargs)

        class Strict(type(pipe)):
            @torch.no_grad()
            def __call__(self, generator: Any = None, **_: Any) -> Any:
                self.scheduler.set_timesteps(STEPS)
                x = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
                text = torch.ones(1, 7, 32, dtype=torch.float64)
                for t in self.scheduler.timesteps:
                    if type(x) is not Tensor:
                        raise ValueError("no tensor")
                    x = self.scheduler.step(self.unet(x, t, text).sample, t, x, return_dict=False)[0]
                return type("Out", (), {"images": x})()

        pipe.__class__ = Strict
        scheduler = Remembering.from_config(pipe.scheduler.config)
        pipe.scheduler = scheduler
        return pipe

    pipe = make()
    first, second = (pipe(generator=generator(5)).images for _ in range(2))
    pipe = make()
    for expected in (first, second):
        out = sample(pipe, generator=generator(5), window=6)
        assert "failed on a window" in out.report.sequential
        assert distance(out.images, expected) <= 1e-9
