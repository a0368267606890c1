"""What small pipelines are put together from: tokenizers, encoders, autoencoders, U-Nets; and how results are compared.

Modules run in double precision. Batching changes their outputs by about 1e-15 there, so that a test at tolerance 0 can
tell a wrong state from rounding. Modules are made once; every pipeline has its own scheduler.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

SIZE = 16  # of the images, in pixels; latents have half of it
# schedulers of Stable Diffusion: what its pipelines expect without a deprecation warning
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
# autoencoders of flow-matching pipelines
FLOW_VAE = {"shift_factor": 0.06, "scaling_factor": 1.5, "use_quant_conv": False, "use_post_quant_conv": False}

# In double, batching moves a module's output by about 1e-15. What diffusers computes in single precision (Euler's
# steps, the embeddings of timesteps) may then flip its last bit, 6e-8. Relative to the largest element of the result,
# this bound leaves such flips a growth of about 100 along the run; a state that is not converged is 1e-3 off or more.
ROUNDING = 1e-5


def assert_same(actual: Tensor, expected: Tensor, bound: float = ROUNDING) -> None:
    """Equal shape and type, and elements within ``bound`` of the largest one."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    distance, scale = float((actual - expected).abs().max()), float(expected.abs().max())
    assert distance <= bound * scale, f"distance {distance:.3g} > {bound:.3g} * {scale:.3g}"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def counting(module: nn.Module) -> Iterator[list[int]]:
    """The rows that every call of the module is given."""
    rows, forward = [], module.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        rows.append(len(args[0] if args else kwargs["sample" if "sample" in kwargs else "hidden_states"]))
        return forward(*args, **kwargs)

    module.forward = counted
    try:
        yield rows
    finally:
        del module.forward


def quiet(pipe: Any) -> Any:
    """The pipeline without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def made(cls: type, *args: Any, seed: int = 0, **config: Any) -> Any:
    """A random module in double precision and evaluation mode, every weight of which has an effect.

    Weights that start at zero (the last layers of a ControlNet, of motion modules, ...) are drawn like the others.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = cls(*args, **config).double().eval()
        for weight in module.parameters():
            if weight.dim() > 1 and not weight.any():
                nn.init.kaiming_uniform_(weight, a=5**0.5)
    return module


def louder(module: Any, part: str = "conv_out", gain: float = 3.0) -> Any:
    """The module with larger weights, of the named part or ("") of all.

    The outputs of a random denoiser hardly follow its inputs, which hides wrong states; let them be as large as noise.
    """
    with torch.no_grad():
        for weight in module.get_submodule(part).parameters():
            if weight.dim() > 1:
                weight.mul_(gain)
    return module


# ---- tokenizers and text encoders


@cache
def clip_tokenizer(length: int = 77) -> CLIPTokenizer:
    """Bytes only: no merges."""
    bytes_ = list(bytes_to_unicode().values())
    symbols = [*bytes_, *(symbol + "</w>" for symbol in bytes_), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={symbol: k for k, symbol in enumerate(symbols)},
        merges=[],
        model_max_length=length,
        pad_token="<|endoftext|>",
    )


@cache
def t5_tokenizer() -> PreTrainedTokenizerFast:
    """Printable ASCII characters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces + [(chr(c), -3.0) for c in range(33, 127)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)


@cache
def clip_text(cls: type = CLIPTextModel, seed: int = 0) -> Any:
    """The text encoder of `clip_tokenizer`."""
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=1,
        projection_dim=32,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return made(cls, config, seed=seed)


@cache
def t5_text() -> T5EncoderModel:
    """The text encoder of `t5_tokenizer`."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 1, "num_heads": 4}
    return made(T5EncoderModel, T5Config(vocab_size=len(t5_tokenizer()), decoder_start_token_id=0, **sizes))


@cache
def clip_vision() -> CLIPVisionModelWithProjection:
    """The image encoder, for images of `SIZE`."""
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = CLIPVisionConfig(projection_dim=32, image_size=SIZE, patch_size=SIZE // 2, **sizes)
    return made(CLIPVisionModelWithProjection, config)


# ---- autoencoders and U-Nets


@cache
def vae(latent_channels: int = 4, **config: Any) -> AutoencoderKL:
    """Latents have half the size of the image."""
    return made(
        AutoencoderKL,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=latent_channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **config,
    )


SMALL_UNET = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": SIZE // 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


@cache
def unet(gain: float = 3.0, **config: Any) -> UNet2DConditionModel:
    """A U-Net with two levels, the lower one with cross-attention."""
    return louder(made(UNet2DConditionModel, **{**SMALL_UNET, **config}), gain=gain)
