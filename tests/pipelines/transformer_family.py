"""Pipelines whose denoiser is a transformer, for images and videos, most of them with flow matching."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from pipelines.case import Case
from pipelines.parts import (
    FLOW_VAE,
    SD_BETAS,
    SIZE,
    clip_text,
    clip_tokenizer,
    generator,
    made,
    quiet,
    t5_text,
    t5_tokenizer,
    vae,
)

GAIN = 1.5  # of the weights; with more, the state is lost among the sums of large outputs

# ---- how to make things: when a pipeline is first made, not when this file is imported


def _made(cls: type, **config: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # some are built of parts that are deprecated
        return made(cls, **config)


def _lively(cls: type, dtype: torch.dtype = torch.float64, **config: Any) -> nn.Module:
    """A random module with larger weights than usual, so that what it makes of its input is seen in the result."""
    module = _made(cls, **config)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() > 1:
                weight.mul_(GAIN)
    return module.to(dtype)


def _denoiser(cls: type, **config: Any) -> Callable[[], nn.Module]:
    return cache(partial(_lively, cls, **config))


def _part(cls: type, **config: Any) -> Callable[[], nn.Module]:
    return cache(partial(_made, cls, **config))


def _maker(cls: type, scheduler: Callable[[], Any], **parts: Any) -> Callable[[], Any]:
    """A function that makes the pipeline with a scheduler of its own.

    Args:
        cls: the pipeline's class.
        scheduler: makes the scheduler.
        **parts: functions that make modules, or settings; what else the constructor wants, such as text encoders where
            prompts are given as embeddings, is None.
    """

    def make() -> Any:
        parameters = inspect.signature(cls.__init__).parameters.values()
        wanted = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
        given = {name: part() if callable(part) else part for name, part in parts.items()}
        return quiet(cls(**{**dict.fromkeys(wanted[1:]), **given, "scheduler": scheduler()}))

    return make


# ---- schedulers

FLOW = partial(FlowMatchEulerDiscreteScheduler, shift=3.0)
SHIFTED = partial(FLOW, use_dynamic_shifting=True)
FLOW_UNIPC = partial(
    diffusers.UniPCMultistepScheduler, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
)
BETAS = {key: value for key, value in SD_BETAS.items() if key != "steps_offset"}
DDIM = partial(DDIMScheduler, **BETAS, clip_sample=False)
COGVIDEOX_BETAS = {
    **BETAS,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
COGVIDEOX_DDIM = partial(diffusers.CogVideoXDDIMScheduler, **COGVIDEOX_BETAS)

# ---- transformers

DIT = _denoiser(
    diffusers.DiTTransformer2DModel,
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
PIXART = _denoiser(
    diffusers.PixArtTransformer2DModel,
    sample_size=SIZE // 2,
    num_layers=2,
    attention_head_dim=8,
    num_attention_heads=3,
    caption_channels=32,
    cross_attention_dim=24,
    interpolation_scale=1,
)
SD3 = _denoiser(
    diffusers.SD3Transformer2DModel,
    sample_size=SIZE // 2,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=2,
    attention_head_dim=8,
    num_attention_heads=4,
    caption_projection_dim=32,
    joint_attention_dim=32,
    pooled_projection_dim=64,
)
FLUX_SIZES = {
    "out_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
    "guidance_embeds": True,
}
FLUX = _denoiser(diffusers.FluxTransformer2DModel, in_channels=4, **FLUX_SIZES)
FLUX_FILL = _denoiser(diffusers.FluxTransformer2DModel, in_channels=4 + 4 + 16, **FLUX_SIZES)  # latents, image, mask
SANA = _denoiser(
    diffusers.SanaTransformer2DModel,
    in_channels=4,
    out_channels=4,
    num_layers=1,
    num_attention_heads=2,
    attention_head_dim=4,
    num_cross_attention_heads=2,
    cross_attention_head_dim=4,
    cross_attention_dim=8,
    caption_channels=8,
)
QWEN_IMAGE = _denoiser(
    diffusers.QwenImageTransformer2DModel,
    in_channels=16,
    out_channels=4,
    num_layers=1,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=16,
    axes_dims_rope=(8, 4, 4),
)
WAN_SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
WAN = _denoiser(diffusers.WanTransformer3DModel, in_channels=4, **WAN_SIZES)
WAN_LOW_NOISE = _denoiser(diffusers.WanTransformer3DModel, in_channels=4, seed=1, **WAN_SIZES)
WAN_IMAGE = _denoiser(diffusers.WanTransformer3DModel, in_channels=4 + 4 + 4, **WAN_SIZES)  # latents, mask, image
LUMINA_2 = _denoiser(
    diffusers.Lumina2Transformer2DModel,
    sample_size=4,
    in_channels=4,
    hidden_size=24,
    num_layers=1,
    num_refiner_layers=1,
    num_attention_heads=2,
    num_kv_heads=1,
    multiple_of=16,
    axes_dim_rope=(4, 4, 4),
    cap_feat_dim=8,
)
LUMINA = _denoiser(
    diffusers.LuminaNextDiT2DModel,
    sample_size=4,
    hidden_size=16,
    num_layers=2,
    num_attention_heads=2,
    num_kv_heads=1,
    multiple_of=16,
    cross_attention_dim=8,
)
Z_IMAGE = _denoiser(
    diffusers.ZImageTransformer2DModel,
    in_channels=6,
    dim=32,
    n_layers=1,
    n_refiner_layers=1,
    n_heads=2,
    n_kv_heads=2,
    cap_feat_dim=16,
    axes_dims=[8, 4, 4],
    axes_lens=[64, 32, 32],
)
LTX = _denoiser(
    diffusers.LTXVideoTransformer3DModel,
    in_channels=8,
    out_channels=8,
    num_attention_heads=4,
    attention_head_dim=8,
    cross_attention_dim=32,
    num_layers=1,
    caption_channels=32,
)
LTX_2 = _denoiser(
    diffusers.LTX2VideoTransformer3DModel,
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=8,
    cross_attention_dim=16,
    audio_in_channels=4,
    audio_out_channels=4,
    audio_num_attention_heads=2,
    audio_attention_head_dim=4,
    audio_cross_attention_dim=8,
    num_layers=1,
    caption_channels=16,
)
COGVIDEOX = _denoiser(
    diffusers.CogVideoXTransformer3DModel,
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=4,
    out_channels=4,
    time_embed_dim=8,
    text_embed_dim=32,
    num_layers=1,
    sample_width=SIZE // 2,
    sample_height=SIZE // 2,
    sample_frames=9,
    max_text_seq_length=8,
    use_rotary_positional_embeddings=True,
)
AURA_FLOW = _denoiser(
    diffusers.AuraFlowTransformer2DModel,
    sample_size=SIZE // 2,
    num_mmdit_layers=1,
    num_single_dit_layers=1,
    attention_head_dim=8,
    num_attention_heads=4,
    caption_projection_dim=32,
    joint_attention_dim=32,
    pos_embed_max_size=64,
)
HUNYUAN_VIDEO = _denoiser(
    diffusers.HunyuanVideoTransformer3DModel,
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=10,
    num_layers=1,
    num_single_layers=1,
    num_refiner_layers=1,
    patch_size=1,
    text_embed_dim=16,
    pooled_projection_dim=8,
    rope_axes_dim=(2, 4, 4),
)
HUNYUAN_VIDEO_15 = _denoiser(
    diffusers.HunyuanVideo15Transformer3DModel,
    in_channels=4 + 4 + 1,  # latents, image, mask
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=8,
    num_layers=1,
    num_refiner_layers=1,
    mlp_ratio=2.0,
    text_embed_dim=16,
    text_embed_2_dim=8,
    image_embed_dim=12,
    rope_axes_dim=(2, 2, 4),
    target_size=SIZE,
    task_type="t2v",
)
HUNYUAN_DIT = _denoiser(
    diffusers.HunyuanDiT2DModel,
    sample_size=4,
    num_layers=2,
    patch_size=2,
    attention_head_dim=8,
    num_attention_heads=3,
    in_channels=4,
    cross_attention_dim=16,
    cross_attention_dim_t5=24,
    pooled_projection_dim=16,
    hidden_size=24,
    text_len=4,
    text_len_t5=6,
)
ALLEGRO = _denoiser(
    diffusers.AllegroTransformer3DModel,
    patch_size=1,
    num_attention_heads=2,
    attention_head_dim=12,
    num_layers=1,
    cross_attention_dim=24,
    sample_width=4,
    sample_height=4,
    sample_frames=8,
    caption_channels=24,
)
LATTE = _denoiser(
    diffusers.LatteTransformer3DModel,
    sample_size=SIZE // 2,
    num_layers=1,
    patch_size=2,
    attention_head_dim=8,
    num_attention_heads=3,
    caption_channels=32,
    in_channels=4,
    out_channels=8,
    cross_attention_dim=24,
    attention_bias=True,
    activation_fn="gelu-approximate",
    num_embeds_ada_norm=1000,
    norm_type="ada_norm_single",
    norm_elementwise_affine=False,
    video_length=2,
)
MOCHI = _denoiser(
    diffusers.MochiTransformer3DModel,
    num_attention_heads=2,
    attention_head_dim=8,
    num_layers=2,
    pooled_projection_dim=16,
    text_embed_dim=32,
    time_embed_dim=4,
    max_sequence_length=16,
)
COSMOS = _denoiser(
    diffusers.CosmosTransformer3DModel,
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=16,
    concat_padding_mask=False,  # it would be resized by torchvision
    extra_pos_embed_type=None,  # it cannot do double precision
    num_layers=1,
    text_embed_dim=32,
    adaln_lora_dim=4,
    max_size=(4, 32, 32),
)
COGVIEW_3 = _denoiser(
    diffusers.CogView3PlusTransformer2DModel,
    in_channels=4,
    out_channels=4,
    num_layers=1,
    attention_head_dim=8,
    num_attention_heads=2,
    text_embed_dim=32,
    time_embed_dim=8,
    condition_dim=2,
    pos_embed_max_size=8,
    sample_size=SIZE // 2,
)
COGVIEW_4 = _denoiser(
    diffusers.CogView4Transformer2DModel,
    in_channels=4,
    out_channels=4,
    num_layers=1,
    attention_head_dim=8,
    num_attention_heads=2,
    text_embed_dim=32,
    time_embed_dim=8,
    condition_dim=4,
    rope_axes_dim=(16, 16),
    sample_size=SIZE // 2,
)
CHROMA = _denoiser(
    diffusers.ChromaTransformer2DModel,
    in_channels=4,
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=32,
    axes_dims_rope=(4, 4, 8),
    approximator_hidden_dim=32,
    approximator_layers=1,
    approximator_num_channels=16,
)
BRIA = _denoiser(
    diffusers.BriaTransformer2DModel,
    in_channels=16,
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=32,
    axes_dims_rope=[0, 4, 4],
)
HIDREAM = _denoiser(
    diffusers.HiDreamImageTransformer2DModel,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=8,
    num_attention_heads=4,
    caption_channels=[32, 16],
    text_emb_dim=64,
    axes_dims_rope=(4, 2, 2),
    max_resolution=(32, 32),
    llama_layers=(0, 2),
    force_inference_output=True,
)
FLUX_2_SIZES = {
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "timestep_guidance_channels": 32,
    "axes_dims_rope": (4, 4, 4, 4),
    "guidance_embeds": False,
}
FLUX_2 = _denoiser(diffusers.Flux2Transformer2DModel, **FLUX_2_SIZES)
FLUX_2_CACHED = _denoiser(diffusers.Flux2Transformer2DModel, **FLUX_2_SIZES)  # its pipeline changes its attention
KANDINSKY_5 = _denoiser(
    diffusers.Kandinsky5Transformer3DModel,
    dtype=torch.float32,  # its time embedding is computed in that
    in_text_dim=16,
    in_text_dim2=8,
    time_dim=16,
    model_dim=24,
    ff_dim=32,
    num_text_blocks=1,
    num_visual_blocks=1,
    axes_dims=(4, 4, 4),
)
STABLE_AUDIO = _denoiser(
    diffusers.StableAudioDiTModel,
    sample_size=8,
    in_channels=3,
    num_layers=1,
    attention_head_dim=8,
    num_attention_heads=2,
    num_key_value_attention_heads=1,
    out_channels=3,
    cross_attention_dim=8,
    time_proj_dim=8,
    global_states_input_dim=16,
    cross_attention_input_dim=8,
)
# ---- autoencoders and other parts

VAE_1 = partial(vae, 1, **FLOW_VAE)
VAE_4 = partial(vae, **FLOW_VAE)
UNIT = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
DC_VAE = _part(
    diffusers.AutoencoderDC,
    latent_channels=4,
    attention_head_dim=2,
    encoder_block_types=("ResBlock", "EfficientViTBlock"),
    decoder_block_types=("ResBlock", "EfficientViTBlock"),
    encoder_block_out_channels=(8, 8),
    decoder_block_out_channels=(8, 8),
    encoder_qkv_multiscales=((), (5,)),
    decoder_qkv_multiscales=((), (5,)),
    encoder_layers_per_block=(1, 1),
    decoder_layers_per_block=(1, 1),
    downsample_block_type="conv",
    upsample_block_type="interpolate",
)
FLUX_2_VAE = _part(
    diffusers.AutoencoderKLFlux2,
    block_out_channels=(8, 8),
    norm_num_groups=4,
    latent_channels=1,
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
)
QWEN_VAE = _part(
    diffusers.AutoencoderKLQwenImage,
    base_dim=8,
    z_dim=4,
    dim_mult=[1, 1],
    num_res_blocks=1,
    temperal_downsample=[False],
    **UNIT,
)
WAN_VAE = _part(
    diffusers.AutoencoderKLWan,
    base_dim=4,
    z_dim=4,
    dim_mult=[1, 1, 1, 1],
    num_res_blocks=1,
    **UNIT,
)
LTX_VAE = _part(
    diffusers.AutoencoderKLLTXVideo,
    latent_channels=8,
    block_out_channels=(8,) * 4,
    decoder_block_out_channels=(8,) * 4,
    layers_per_block=(1,) * 5,
    decoder_layers_per_block=(1,) * 5,
    spatio_temporal_scaling=(True, True, False, False),
    decoder_spatio_temporal_scaling=(True, True, False, False),
    patch_size=1,
)
LTX_2_VAE = _part(
    diffusers.AutoencoderKLLTX2Video,
    latent_channels=4,
    block_out_channels=(8,),
    decoder_block_out_channels=(8,),
    layers_per_block=(1, 1),
    decoder_layers_per_block=(1, 1),
    down_block_types=("LTX2VideoDownBlock3D",),
    spatio_temporal_scaling=(True,),
    decoder_spatio_temporal_scaling=(True,),
    decoder_inject_noise=(False, False),
    downsample_type=("spatial",),
    upsample_type=("spatial",),
    upsample_residual=(False,),
    upsample_factor=(1,),
    patch_size=2,
)
LTX_2_AUDIO_VAE = _part(
    diffusers.AutoencoderKLLTX2Audio,
    base_channels=4,
    ch_mult=(1,),
    num_res_blocks=1,
    resolution=32,
    latent_channels=2,
    mel_bins=8,
)
LTX_2_CONNECTORS = _part(
    LTX2TextConnectors,
    caption_channels=16,
    text_proj_in_factor=2,
    video_connector_num_attention_heads=2,
    video_connector_attention_head_dim=8,
    video_connector_num_layers=1,
    video_connector_num_learnable_registers=None,
    audio_connector_num_attention_heads=2,
    audio_connector_attention_head_dim=8,
    audio_connector_num_layers=1,
    audio_connector_num_learnable_registers=None,
    connector_rope_base_seq_len=32,
)
COGVIDEOX_VAE = _part(
    diffusers.AutoencoderKLCogVideoX,
    latent_channels=4,
    block_out_channels=(8, 8),
    down_block_types=("CogVideoXDownBlock3D",) * 2,
    up_block_types=("CogVideoXUpBlock3D",) * 2,
    layers_per_block=1,
    norm_num_groups=2,
)
HUNYUAN_VIDEO_15_VAE = _part(
    diffusers.AutoencoderKLHunyuanVideo15,
    latent_channels=4,
    block_out_channels=(16, 16),
    layers_per_block=1,
    spatial_compression_ratio=4,
    temporal_compression_ratio=2,
    downsample_match_channel=False,
    upsample_match_channel=False,
)
AUDIO_VAE = _part(
    diffusers.AutoencoderOobleck,
    encoder_hidden_size=6,
    downsampling_ratios=[1, 2],
    channel_multiples=[2, 4],
    decoder_channels=3,
    decoder_input_channels=3,
    sampling_rate=4,
)
AUDIO_PROJECTION = _part(StableAudioProjectionModel, text_encoder_dim=8, conditioning_dim=8, min_value=0, max_value=32)
FLUX_PARTS = {
    "vae": VAE_1,
    "text_encoder": clip_text,
    "tokenizer": clip_tokenizer,
    "text_encoder_2": t5_text,
    "tokenizer_2": t5_tokenizer,
}

# ---- pipelines


class _Checker:
    """Cosmos refuses to run without one, but shows it nothing but prompts."""

    def to(self, device: Any) -> None:
        pass


def _with(make: Callable[[], Any], **attributes: Any) -> Callable[[], Any]:
    """The pipeline with some of its attributes changed, those that its constructor has no arguments for."""

    def changed() -> Any:
        pipe = make()
        vars(pipe).update(attributes)
        return pipe

    return changed


def _hunyuan_video_15(guider: Callable[[], Any]) -> Callable[[], Any]:
    make = _maker(
        diffusers.HunyuanVideo15Pipeline,
        FLOW,
        transformer=HUNYUAN_VIDEO_15,
        vae=HUNYUAN_VIDEO_15_VAE,
        guider=guider,
    )
    return _with(make, vision_num_semantic_tokens=3)


dit = _maker(diffusers.DiTPipeline, DDIM, transformer=DIT, vae=vae)
pixart = _maker(
    diffusers.PixArtAlphaPipeline, partial(DPMSolverMultistepScheduler, **BETAS), transformer=PIXART, vae=vae
)
sd3 = _maker(
    diffusers.StableDiffusion3Pipeline,
    FLOW,
    transformer=SD3,
    vae=VAE_4,
    text_encoder=partial(clip_text, CLIPTextModelWithProjection),
    tokenizer=clip_tokenizer,
    text_encoder_2=partial(clip_text, CLIPTextModelWithProjection, seed=1),
    tokenizer_2=clip_tokenizer,
    text_encoder_3=t5_text,
    tokenizer_3=t5_tokenizer,
)
flux = _maker(diffusers.FluxPipeline, SHIFTED, transformer=FLUX, **FLUX_PARTS)
lumina_2 = _maker(diffusers.Lumina2Pipeline, FLOW, transformer=LUMINA_2, vae=VAE_4)
z_image = _maker(diffusers.ZImagePipeline, FLOW, transformer=Z_IMAGE, vae=partial(vae, 6, **FLOW_VAE))
cogvideox = _maker(
    diffusers.CogVideoXPipeline,
    partial(diffusers.CogVideoXDDIMScheduler, **COGVIDEOX_BETAS),
    transformer=COGVIDEOX,
    vae=COGVIDEOX_VAE,
)
cosmos = _maker(
    diffusers.CosmosTextToWorldPipeline,
    partial(diffusers.EDMEulerScheduler, sigma_max=80.0, sigma_data=0.5, final_sigmas_type="sigma_min"),
    transformer=COSMOS,
    safety_checker=_Checker,
)

# ---- their inputs


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def _image(size: int = SIZE) -> Tensor:
    return torch.rand(1, 3, size, size, generator=generator(3))


def _array(size: int) -> np.ndarray:
    return _image(size)[0].permute(1, 2, 0).numpy()


def _pair(name: str, *shape: int) -> dict[str, Tensor]:
    """An input and its negative."""
    return {name: _noise(*shape, seed=1), f"negative_{name}": _noise(*shape, seed=2)}


def _texts(*shape: int, mask: str | None = None, end: str = "", dtype: torch.dtype = torch.long) -> dict[str, Tensor]:
    """Embeddings of a prompt and of a negative one, which is a token shorter if there are masks."""
    given = _pair(f"prompt_embeds{end}", 1, *shape)
    if mask is not None:
        all_, but_one = (torch.arange(shape[0])[None] < shape[0] - short for short in (0, 1))
        given |= {f"{mask}{end}": all_.to(dtype), f"negative_{mask}{end}": but_one.to(dtype)}
    return given


MASK = "prompt_attention_mask"
LATENT = {"output_type": "latent"}
SQUARE = {"height": SIZE, "width": SIZE, **LATENT}
LARGER = {"height": 2 * SIZE, "width": 2 * SIZE, **LATENT}
GUIDED = {"guidance_scale": 4.0}
NO_DEFAULT = {"negative_prompt": None}  # where it is a string by default
NOT_BINNED = {"use_resolution_binning": False}
PROMPT = {"prompt": "a cat", "max_sequence_length": 32, **SQUARE}
PIXART_INPUTS = {**_texts(6, 32, mask=MASK), **NO_DEFAULT, **SQUARE, **GUIDED, **NOT_BINNED}
FLUX_GUIDED = {**PROMPT, "negative_prompt": "a dog", "true_cfg_scale": 4.0}
FLUX_MASK = {"image": _image(), "mask_image": (_image()[:, :1] > 0.5).float()}
KANDINSKY_5_INPUTS = {
    **_texts(6, 16, end="_qwen"),
    **_texts(8, end="_clip"),
    **dict.fromkeys(["prompt_cu_seqlens", "negative_prompt_cu_seqlens"], torch.tensor([0, 6])),
    **LARGER,
}
LUMINA_INPUTS = {**_texts(6, 8, mask=MASK), **LARGER, **GUIDED}
Z_IMAGE_INPUTS = {
    "prompt_embeds": [_noise(6, 16, seed=1)],
    "negative_prompt_embeds": [_noise(5, 16, seed=2)],
    **SQUARE,
    **GUIDED,
}
WAN_INPUTS = {**_texts(6, 32), **SQUARE, **GUIDED, "num_frames": 9}
LTX_INPUTS = {**_texts(6, 32, mask=MASK), **LARGER, "num_frames": 9, "guidance_rescale": 0.7}
COGVIDEOX_INPUTS = {**_texts(8, 32), **SQUARE, **GUIDED, "num_frames": 8}
HUNYUAN_VIDEO_15_INPUTS = {
    **_texts(6, 16, mask="prompt_embeds_mask"),
    **_texts(4, 8, mask="prompt_embeds_mask", end="_2"),
    **SQUARE,
    "num_frames": 5,
}
COSMOS_INPUTS = {**_texts(6, 32), **LARGER, "num_frames": 9}

# ---- cases: those for "flow" schedulers are of pipelines without sigmas of their own, which many schedulers refuse

IMAGE_CASES = [
    Case("DiT", dit, {"class_labels": [1, 2], "output_type": "pt", **GUIDED}, schedulers="betas"),
    Case("PixArt-alpha", pixart, PIXART_INPUTS, schedulers="betas"),
    Case(
        "PixArt-sigma, two images",
        _maker(diffusers.PixArtSigmaPipeline, DDIM, transformer=PIXART, vae=vae),
        {**PIXART_INPUTS, "num_images_per_prompt": 2},
        schedulers="betas",
    ),
    Case("SD3", sd3, {**PROMPT, **GUIDED}, schedulers="flow"),
    Case(
        "SD3, skip-layer guidance",
        sd3,
        {
            **PROMPT,
            **GUIDED,
            "skip_guidance_layers": [0],
            "skip_layer_guidance_start": 0.2,
            "skip_layer_guidance_stop": 0.6,
        },
        schedulers="flow",
    ),
    Case("Flux, distilled", flux, PROMPT),
    Case("Flux, true guidance", flux, FLUX_GUIDED),
    Case(
        "Flux, image to image",
        _maker(diffusers.FluxImg2ImgPipeline, SHIFTED, transformer=FLUX, **FLUX_PARTS),
        {**FLUX_GUIDED, "image": _image(), "strength": 0.75},
        steps=12,
    ),
    Case(
        "Flux, inpainting",
        _maker(diffusers.FluxInpaintPipeline, SHIFTED, transformer=FLUX, **FLUX_PARTS),
        {**FLUX_GUIDED, **FLUX_MASK, "strength": 0.75},
        steps=12,
    ),
    Case(
        "Flux Kontext",
        _maker(diffusers.FluxKontextPipeline, SHIFTED, transformer=FLUX, **FLUX_PARTS),
        {**FLUX_GUIDED, "image": _image(), "max_area": SIZE**2, "_auto_resize": False},
    ),
    Case(
        "Flux Fill",
        _maker(diffusers.FluxFillPipeline, SHIFTED, transformer=FLUX_FILL, **FLUX_PARTS),
        {**PROMPT, **FLUX_MASK},
    ),
    Case(
        "Flux 2 Klein",
        _maker(diffusers.Flux2KleinPipeline, SHIFTED, transformer=FLUX_2, vae=FLUX_2_VAE, is_distilled=False),
        {**_texts(6, 16), **SQUARE},
    ),
    Case(
        "Flux 2 Klein, cached references",
        _maker(diffusers.Flux2KleinKVPipeline, SHIFTED, transformer=FLUX_2_CACHED, vae=FLUX_2_VAE),
        {"prompt_embeds": _noise(1, 6, 16), "image": VaeImageProcessor.numpy_to_pil(_array(64))[0], **SQUARE},
    ),
    Case(
        "Sana",
        _maker(diffusers.SanaPipeline, FLOW, transformer=SANA, vae=DC_VAE),
        {**_texts(6, 8, mask=MASK), **NO_DEFAULT, **LARGER, **GUIDED, **NOT_BINNED},
        schedulers="flow",
    ),
    Case(
        "Qwen-Image, two images",
        _maker(diffusers.QwenImagePipeline, SHIFTED, transformer=QWEN_IMAGE, vae=QWEN_VAE),
        {**_texts(6, 16, mask="prompt_embeds_mask"), **SQUARE, "true_cfg_scale": 4.0, "num_images_per_prompt": 2},
    ),
    Case("Lumina 2", lumina_2, LUMINA_INPUTS),
    Case("Lumina 2, truncated guidance", lumina_2, {**LUMINA_INPUTS, "cfg_trunc_ratio": 0.6}),
    Case(
        "Lumina", _maker(diffusers.LuminaPipeline, FLOW, transformer=LUMINA, vae=vae), LUMINA_INPUTS, schedulers="flow"
    ),
    Case("Z-Image", z_image, Z_IMAGE_INPUTS),
    Case("Z-Image, two images", z_image, {**Z_IMAGE_INPUTS, "num_images_per_prompt": 2}),
    Case("Z-Image, truncated guidance", z_image, {**Z_IMAGE_INPUTS, "cfg_truncation": 0.4}),
    Case(
        "AuraFlow",
        _maker(diffusers.AuraFlowPipeline, FLOW, transformer=AURA_FLOW, vae=vae),
        {**_texts(6, 32, mask=MASK), **SQUARE},
        schedulers="flow",
    ),
    Case(
        "HunyuanDiT",
        _maker(diffusers.HunyuanDiTPipeline, DDIM, transformer=HUNYUAN_DIT, requires_safety_checker=False),
        {**_texts(4, 16, mask=MASK), **_texts(6, 24, mask=MASK, end="_2"), **LARGER, **NOT_BINNED},
        schedulers="betas",
    ),
    Case(
        "CogView 3+",
        _maker(diffusers.CogView3PlusPipeline, COGVIDEOX_DDIM, transformer=COGVIEW_3, vae=vae),
        {**_texts(6, 32), **SQUARE},
        schedulers="betas",
    ),
    Case(
        "CogView 4",
        _maker(diffusers.CogView4Pipeline, partial(SHIFTED, time_shift_type="linear"), transformer=COGVIEW_4, vae=vae),
        {**_texts(6, 32), **SQUARE},
    ),
    Case(
        "Kandinsky 5, image",
        _with(_maker(diffusers.Kandinsky5T2IPipeline, FLOW, transformer=KANDINSKY_5), resolutions=[(2 * SIZE,) * 2]),
        KANDINSKY_5_INPUTS,
        field="image",
        schedulers="flow",
    ),
    Case(
        "Chroma",
        _maker(diffusers.ChromaPipeline, FLOW, transformer=CHROMA, vae=VAE_1),
        {**_texts(6, 32, mask=MASK, dtype=torch.bool), **SQUARE},
    ),
    Case("Bria", _maker(diffusers.BriaPipeline, FLOW, transformer=BRIA, vae=VAE_4), {**_texts(6, 32), **SQUARE}),
    Case(
        "HiDream",
        _with(
            _maker(diffusers.HiDreamImagePipeline, FLOW, transformer=HIDREAM, vae=VAE_4), default_sample_size=SIZE // 2
        ),
        {
            **_texts(6, 32, end="_t5"),
            **_pair("prompt_embeds_llama3", 3, 1, 6, 16),
            **_pair("pooled_prompt_embeds", 1, 64),
            **SQUARE,
        },
    ),
]

VIDEO_CASES = [
    Case("Wan 2.1", _maker(diffusers.WanPipeline, FLOW, transformer=WAN, vae=WAN_VAE), WAN_INPUTS, schedulers="flow"),
    Case("Wan 2.1, UniPC", _maker(diffusers.WanPipeline, FLOW_UNIPC, transformer=WAN, vae=WAN_VAE), WAN_INPUTS),
    Case(
        "Wan 2.2, two experts",
        _maker(
            diffusers.WanPipeline,
            FLOW_UNIPC,
            transformer=WAN,
            transformer_2=WAN_LOW_NOISE,
            vae=WAN_VAE,
            boundary_ratio=0.875,
        ),
        {**WAN_INPUTS, "guidance_scale_2": 3.0},
        schedulers="flow",
    ),
    Case(
        "Wan 2.2, a timestep for every token",
        _maker(diffusers.WanPipeline, FLOW_UNIPC, transformer=WAN, vae=WAN_VAE, expand_timesteps=True),
        WAN_INPUTS,
        schedulers="flow",
    ),
    Case(
        "Wan, image to video",
        _maker(diffusers.WanImageToVideoPipeline, FLOW_UNIPC, transformer=WAN_IMAGE, vae=WAN_VAE),
        {**WAN_INPUTS, "image": _image()},
        schedulers="flow",
    ),
    Case("LTX", _maker(diffusers.LTXPipeline, SHIFTED, transformer=LTX, vae=LTX_VAE), LTX_INPUTS),
    Case(
        "LTX, first frame given",
        _maker(diffusers.LTXConditionPipeline, FLOW, transformer=LTX, vae=LTX_VAE),
        {**LTX_INPUTS, "image": _array(2 * SIZE), "image_cond_noise_scale": 0.0},
    ),
    Case(
        "LTX 2",
        _maker(
            diffusers.LTX2Pipeline,
            SHIFTED,
            transformer=LTX_2,
            vae=LTX_2_VAE,
            audio_vae=LTX_2_AUDIO_VAE,
            connectors=LTX_2_CONNECTORS,
        ),
        {**LTX_INPUTS, "num_frames": 5},
    ),
    Case("CogVideoX", cogvideox, COGVIDEOX_INPUTS, schedulers="betas"),
    Case("CogVideoX, dynamic guidance", cogvideox, {**COGVIDEOX_INPUTS, "use_dynamic_cfg": True}),
    Case(
        "CogVideoX, its DPM-Solver",
        _maker(
            diffusers.CogVideoXPipeline,
            partial(diffusers.CogVideoXDPMScheduler, **COGVIDEOX_BETAS),
            transformer=COGVIDEOX,
            vae=COGVIDEOX_VAE,
        ),
        COGVIDEOX_INPUTS,
    ),
    Case(
        "HunyuanVideo",
        _maker(diffusers.HunyuanVideoPipeline, FLOW, transformer=HUNYUAN_VIDEO),
        {
            **_texts(6, 16, mask=MASK),
            **_pair("pooled_prompt_embeds", 1, 8),
            **SQUARE,
            "num_frames": 9,
            "true_cfg_scale": 4.0,
        },
    ),
    Case(
        "HunyuanVideo 1.5",
        _hunyuan_video_15(partial(diffusers.ClassifierFreeGuidance, **GUIDED)),
        HUNYUAN_VIDEO_15_INPUTS,
    ),
    Case(
        "HunyuanVideo 1.5, guidance with momentum",
        _hunyuan_video_15(
            partial(diffusers.AdaptiveProjectedGuidance, **GUIDED, adaptive_projected_guidance_momentum=-0.5)
        ),
        HUNYUAN_VIDEO_15_INPUTS,
    ),
    Case(
        "Kandinsky 5, video",
        _maker(diffusers.Kandinsky5T2VPipeline, FLOW, transformer=KANDINSKY_5),
        {**KANDINSKY_5_INPUTS, "num_frames": 9},
        schedulers="flow",
    ),
    Case(
        "Allegro",
        _maker(diffusers.AllegroPipeline, DDIM, transformer=ALLEGRO),
        {**_texts(6, 24, mask=MASK), **NO_DEFAULT, **LARGER, "num_frames": 12},
        schedulers="betas",
    ),
    Case(
        "Latte",
        _maker(diffusers.LattePipeline, DDIM, transformer=LATTE, vae=vae),
        {**_texts(6, 32), **NO_DEFAULT, **SQUARE, "mask_feature": False, "video_length": 2},
        schedulers="betas",
    ),
    Case(
        "Mochi",
        _maker(
            diffusers.MochiPipeline, partial(FlowMatchEulerDiscreteScheduler, invert_sigmas=True), transformer=MOCHI
        ),
        {**_texts(6, 32, mask=MASK), **LARGER, "num_frames": 7},
    ),
    Case("Cosmos", cosmos, COSMOS_INPUTS),
    Case("Cosmos, no guidance", cosmos, {**COSMOS_INPUTS, "guidance_scale": 1.0}),
]

AUDIO_CASES = [
    Case(
        "Stable Audio",
        _maker(
            diffusers.StableAudioPipeline,
            partial(
                diffusers.EDMDPMSolverMultistepScheduler,
                prediction_type="v_prediction",
                sigma_data=1.0,
                sigma_schedule="exponential",
            ),
            transformer=STABLE_AUDIO,
            vae=AUDIO_VAE,
            projection_model=AUDIO_PROJECTION,
        ),
        {**_texts(6, 8, mask="attention_mask"), **LATENT},
        field="audios",
    ),
]

TRANSFORMER_CASES = [*IMAGE_CASES, *(replace(case, field="frames") for case in VIDEO_CASES), *AUDIO_CASES]
