"""Small diffusers pipelines: one trained on digits, and random ones built from configuration, tokenizers included.

Modules run in double precision. Batching changes their outputs by about 1e-15 there, so that a test at tolerance 0 can
tell a wrong state from rounding. Modules are made once; every pipeline has its own scheduler.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
SIZE = 16  # of the images, in pixels; latents have half of it
# schedulers of Stable Diffusion: what its pipelines expect without a deprecation warning
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}

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
        rows.append(len(args[0] if args else kwargs["hidden_states"]))
        return forward(*args, **kwargs)

    module.forward = counted
    try:
        yield rows
    finally:
        del module.forward


# ---- parts


def _made(cls: type, *args: Any, seed: int = 0, **config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cls(*args, **config).double().eval()


def _clip_tokenizer() -> CLIPTokenizer:
    """Bytes only: no merges."""
    bytes_ = list(bytes_to_unicode().values())
    symbols = [*bytes_, *(symbol + "</w>" for symbol in bytes_), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={symbol: k for k, symbol in enumerate(symbols)}, merges=[], model_max_length=77, pad_token="<|endoftext|>"
    )


def _t5_tokenizer() -> PreTrainedTokenizerFast:
    """Printable ASCII characters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces + [(chr(c), -3.0) for c in range(33, 127)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)


def _clip(tokenizer: CLIPTokenizer, cls: type = CLIPTextModel, seed: int = 0) -> Any:
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
    return _made(cls, config, seed=seed)


def _t5(tokenizer: PreTrainedTokenizerFast) -> T5EncoderModel:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 1, "num_heads": 4}
    return _made(T5EncoderModel, T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, **sizes))


def _vae(latent_channels: int = 4, **config: Any) -> AutoencoderKL:
    return _made(
        AutoencoderKL,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=latent_channels,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        **config,
    )


def _unet(**config: Any) -> UNet2DConditionModel:
    return _made(
        UNet2DConditionModel,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=SIZE // 2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **config,
    )


# ---- pipelines


@cache
def _digits_unet(dtype: torch.dtype) -> UNet2DModel:
    return UNet2DModel.from_pretrained(DIGITS, subfolder="unet").to(dtype).eval()


@cache
def _sd_parts() -> dict[str, Any]:
    tokenizer = _clip_tokenizer()
    return {
        "vae": _vae(),
        "text_encoder": _clip(tokenizer),
        "tokenizer": tokenizer,
        "unet": _unet(cross_attention_dim=32, attention_head_dim=4),
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }


@cache
def _sdxl_parts() -> dict[str, Any]:
    tokenizer = _clip_tokenizer()
    unet = _unet(
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    return {
        "vae": _vae(sample_size=SIZE),
        "text_encoder": _clip(tokenizer),
        "text_encoder_2": _clip(tokenizer, CLIPTextModelWithProjection, seed=1),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "unet": unet,
    }


FLOW_VAE = {"shift_factor": 0.06, "scaling_factor": 1.5, "use_quant_conv": False, "use_post_quant_conv": False}


@cache
def _sd3_parts() -> dict[str, Any]:
    tokenizer, tokenizer_3 = _clip_tokenizer(), _t5_tokenizer()
    transformer = _made(
        SD3Transformer2DModel,
        sample_size=SIZE // 2,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
    )
    return {
        "transformer": transformer,
        "vae": _vae(**FLOW_VAE),
        "text_encoder": _clip(tokenizer, CLIPTextModelWithProjection),
        "tokenizer": tokenizer,
        "text_encoder_2": _clip(tokenizer, CLIPTextModelWithProjection, seed=1),
        "tokenizer_2": tokenizer,
        "text_encoder_3": _t5(tokenizer_3),
        "tokenizer_3": tokenizer_3,
    }


@cache
def _flux_parts() -> dict[str, Any]:
    tokenizer, tokenizer_2 = _clip_tokenizer(), _t5_tokenizer()
    transformer = _made(
        FluxTransformer2DModel,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return {
        "transformer": transformer,
        "vae": _vae(1, **FLOW_VAE),
        "text_encoder": _clip(tokenizer),
        "tokenizer": tokenizer,
        "text_encoder_2": _t5(tokenizer_2),
        "tokenizer_2": tokenizer_2,
    }


@cache
def _dit_parts() -> dict[str, Any]:
    transformer = _made(
        DiTTransformer2DModel,
        sample_size=SIZE // 2,
        patch_size=4,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    return {"transformer": transformer, "vae": _vae()}


def _quiet(pipe: DiffusionPipeline) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def digits(scheduler: Any = None, dtype: torch.dtype = torch.float64) -> DDPMPipeline:
    """The trained pipeline: 8x8 grey images."""
    return _quiet(
        DDPMPipeline(_digits_unet(dtype), scheduler or DDPMScheduler.from_pretrained(DIGITS, subfolder="scheduler"))
    )


def stable_diffusion(scheduler: Any = None, cls: type = StableDiffusionPipeline) -> StableDiffusionPipeline:
    usual = DDIMScheduler(**SD_BETAS, clip_sample=False, set_alpha_to_one=False)
    pipe = _quiet(cls(scheduler=usual, **_sd_parts()))
    if scheduler is not None:
        pipe.scheduler = scheduler  # the constructor would change the configuration of some
    return pipe


def sdxl() -> StableDiffusionXLPipeline:
    scheduler = EulerDiscreteScheduler(**SD_BETAS, timestep_spacing="leading")
    return _quiet(StableDiffusionXLPipeline(scheduler=scheduler, add_watermarker=False, **_sdxl_parts()))


def sd3() -> StableDiffusion3Pipeline:
    return _quiet(StableDiffusion3Pipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **_sd3_parts()))


def flux() -> FluxPipeline:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return _quiet(FluxPipeline(scheduler=scheduler, **_flux_parts()))


def dit() -> DiTPipeline:
    return _quiet(DiTPipeline(scheduler=DDIMScheduler(), **_dit_parts()))
