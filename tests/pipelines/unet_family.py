"""Pipelines whose denoiser is a U-Net, and the priors of some: one trained on digits, the others random."""

import inspect
from functools import cache, partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPImageProcessorPil, CLIPTextModelWithProjection, SpeechT5HifiGan, SpeechT5HifiGanConfig

from pipelines.case import Case
from pipelines.parts import (
    SD_BETAS,
    SIZE,
    clip_text,
    clip_tokenizer,
    clip_vision,
    generator,
    louder,
    made,
    quiet,
    t5_text,
    t5_tokenizer,
    unet,
    vae,
)

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
LATENT = SIZE // 2
SMALL = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def _random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=generator(0), dtype=torch.float64)


@cache
def _denoiser(cls: type, loud: str = "conv_out", gain: float = 3.0, single: bool = False, **config: Any) -> Any:
    """A denoiser with a loud part, in single precision where the pipeline allows no other."""
    module = louder(made(cls, **config), loud, gain)
    return module.float() if single else module


_module = cache(made)


def _assembled(cls: type, **parts: Any) -> Any:
    """A quiet pipeline of those parts that it takes; a partial among them is a part yet to be made."""
    none = {"safety_checker": None, "feature_extractor": None, "image_encoder": None, "watermarker": None}
    parts = {**none, "requires_safety_checker": False, "add_watermarker": False, **parts}
    taken = {name: parts[name] for name in inspect.signature(cls).parameters if name in parts}
    return quiet(cls(**{name: part() if isinstance(part, partial) else part for name, part in taken.items()}))


PROMPT = {"prompt": "a cat", "output_type": "latent"}
SIZED = {**PROMPT, "height": SIZE, "width": SIZE}
IMAGE = {"image": _random(1, 3, SIZE, SIZE)}
MASK = {"mask_image": (_random(1, 1, SIZE, SIZE) > 0.5).double()}


# ---- without a condition


@cache
def _digits_unet(dtype: torch.dtype) -> diffusers.UNet2DModel:
    settings = {"subfolder": "unet", "torch_dtype": dtype, "low_cpu_mem_usage": False}
    return diffusers.UNet2DModel.from_pretrained(DIGITS, **settings).eval()


def digits(scheduler: Any = None, dtype: torch.dtype = torch.float64, cls: type = DDPMPipeline) -> Any:
    """The trained pipeline: 8x8 grey images."""
    scheduler = scheduler or DDPMScheduler.from_pretrained(DIGITS, subfolder="scheduler")
    return quiet(cls(_digits_unet(dtype), scheduler))


def _pixels(cls: type, make_scheduler: Any, **config: Any) -> Any:
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    denoiser = _denoiser(diffusers.UNet2DModel, **SMALL, **blocks, sample_size=LATENT, **config)
    return quiet(cls(denoiser, make_scheduler()))


def _unconditional() -> list[Case]:
    two = {"batch_size": 2, "output_type": "pt"}
    ddim = partial(digits, cls=diffusers.DDIMPipeline)
    consistency = partial(
        _pixels, diffusers.ConsistencyModelPipeline, diffusers.CMStochasticIterativeScheduler, num_class_embeds=10
    )
    # These two draw noise in single precision, whatever the U-Net's; and clip: of the usual sizes of noise, which a
    # random U-Net does not remove, they would leave zeros and ones.
    score = partial(diffusers.ScoreSdeVeScheduler, sigma_max=0.5, snr=0.05)
    karras = partial(diffusers.KarrasVeScheduler, sigma_max=0.5, s_churn=0.5)
    return [
        Case("DDPM", digits, two),
        Case("DDIM", ddim, two),
        Case("DDIM, eta", ddim, {**two, "eta": 0.7}),
        Case("consistency model", consistency, {**two, "class_labels": [1, 2]}),
        Case("score SDE VE", partial(_pixels, diffusers.ScoreSdeVePipeline, score, single=True), {"output_type": "np"}),
        Case("Karras VE", partial(_pixels, diffusers.KarrasVePipeline, karras, single=True), {"output_type": "np"}),
    ]


# ---- Stable Diffusion


def _sd_unet(**config: Any) -> diffusers.UNet2DConditionModel:
    return unet(**{"cross_attention_dim": 32, "attention_head_dim": 4, **config})


def _ddim() -> DDIMScheduler:
    return DDIMScheduler(**SD_BETAS, clip_sample=False, set_alpha_to_one=False)


def stable_diffusion(scheduler: Any = None, cls: type = StableDiffusionPipeline, **parts: Any) -> Any:
    """Stable Diffusion, or a pipeline of its family with some parts of its own.

    By default with a U-Net whose solutions are smooth enough for a window to pay.
    """
    own = {"vae": vae(), "text_encoder": clip_text(), "tokenizer": clip_tokenizer(), "scheduler": _ddim()}
    pipe = _assembled(cls, **{"unet": partial(_sd_unet, gain=1.0), **own, **parts})
    if scheduler is not None:
        pipe.scheduler = scheduler  # the constructor would change the configuration of some
    return pipe


CONTROLNET = {**SMALL, "down_block_types": BLOCKS["down_block_types"], "conditioning_embedding_out_channels": (4, 8)}

SD_CONTROLNET = {
    "cls": diffusers.StableDiffusionControlNetPipeline,
    "controlnet": partial(
        _module, diffusers.ControlNetModel, **CONTROLNET, cross_attention_dim=32, attention_head_dim=4
    ),
}
SD_UPSCALE = {
    "cls": diffusers.StableDiffusionUpscalePipeline,
    "unet": partial(_sd_unet, in_channels=7, num_class_embeds=100),
    "vae": partial(vae, scaling_factor=0.08333),
    "low_res_scheduler": partial(DDPMScheduler),
    "max_noise_level": 100,
}
T2I_ADAPTER = {
    "cls": diffusers.StableDiffusionAdapterPipeline,
    "adapter": partial(_module, diffusers.T2IAdapter, channels=(8, 16), num_res_blocks=1, downscale_factor=2),
    "unet": partial(
        _sd_unet,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
}
ANIMATE_DIFF = {
    "cls": diffusers.AnimateDiffPipeline,
    "motion_adapter": None,
    "unet": partial(
        _denoiser,
        diffusers.UNetMotionModel,
        **SMALL,
        sample_size=LATENT,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
        cross_attention_dim=32,
        num_attention_heads=2,
        motion_num_attention_heads=2,
    ),
}
MARIGOLD = {
    "cls": diffusers.MarigoldDepthPipeline,
    "unet": partial(_sd_unet, in_channels=8),
    "prediction_type": "depth",
    "default_processing_resolution": 0,
}


def latent_consistency() -> Any:
    """A latent consistency model, whose U-Net is told the guidance."""
    denoiser = _sd_unet(time_cond_proj_dim=32)
    return stable_diffusion(diffusers.LCMScheduler(), diffusers.LatentConsistencyModelPipeline, unet=denoiser)


def _sd(
    name: str, inputs: dict[str, Any], field: str = "images", schedulers: str | None = "betas", **make: Any
) -> Case:
    make = {"unet": partial(_sd_unet), **make}
    return Case(name, partial(stable_diffusion, **make), inputs, field, schedulers=schedulers)


def _stable_diffusion() -> list[Case]:
    inpaint, edited = {**SIZED, **IMAGE, **MASK}, {**PROMPT, **IMAGE}
    images = {"image": _random(2, 3, SIZE, SIZE), "output_type": "pt"}
    inpainting = {"cls": diffusers.StableDiffusionInpaintPipeline}
    pix2pix = {"cls": diffusers.StableDiffusionInstructPix2PixPipeline, "unet": partial(_sd_unet, in_channels=8)}
    # these put processors of their own into the U-Net: not into one that others share
    perturbed = {"cls": diffusers.StableDiffusionPAGPipeline, "unet": partial(_sd_unet, seed=2)}
    self_guided = {"cls": diffusers.StableDiffusionSAGPipeline, "unet": partial(_sd_unet, seed=3)}
    return [
        _sd("SD", SIZED),
        _sd("SD, rescaled guidance", {**SIZED, "guidance_rescale": 0.7}),
        _sd("SD, eta", {**SIZED, "eta": 0.7}),
        _sd("SD image to image", {**edited, "strength": 0.8}, cls=diffusers.StableDiffusionImg2ImgPipeline),
        _sd("SD inpainting, 4 channels", inpaint, **inpainting),
        _sd("SD inpainting, 9 channels", inpaint, **inpainting, unet=partial(_sd_unet, in_channels=9)),
        _sd("SD ControlNet", edited, **SD_CONTROLNET),
        _sd("SD ControlNet, part of the steps", {**edited, "control_guidance_end": 0.5}, **SD_CONTROLNET),
        _sd("SD ControlNet, two images", {**edited, "num_images_per_prompt": 2}, **SD_CONTROLNET),
        _sd("SD ControlNet, guess mode", {**edited, "guess_mode": True}, **SD_CONTROLNET),
        _sd("InstructPix2Pix", edited, **pix2pix),
        _sd("SD upscaling", {**edited, "noise_level": 20}, **SD_UPSCALE),
        _sd("T2I adapter", {**SIZED, **IMAGE}, **T2I_ADAPTER),
        _sd("PAG", SIZED, **perturbed),
        _sd("SAG", SIZED, schedulers=None, **self_guided),
        Case("latent consistency model", latent_consistency, SIZED),
        _sd("AnimateDiff", {**SIZED, "num_frames": 3}, "frames", **ANIMATE_DIFF),
        _sd("Marigold depth", images, "prediction", None, **MARIGOLD),
    ]


# ---- Stable Diffusion XL

SDXL_CONDITIONS = {
    "cross_attention_dim": 64,
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 1),
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}


def sdxl(cls: type = StableDiffusionXLPipeline, **parts: Any) -> Any:
    """Stable Diffusion XL, or a pipeline of its family with some parts of its own."""
    own = {
        "vae": vae(sample_size=SIZE, force_upcast=False),  # else it is cast to single precision and back
        "text_encoder": clip_text(),
        "text_encoder_2": clip_text(CLIPTextModelWithProjection, seed=1),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "unet": unet(**SDXL_CONDITIONS),
        "scheduler": diffusers.EulerDiscreteScheduler(**SD_BETAS, timestep_spacing="leading"),
    }
    return _assembled(cls, **own, **parts)


def _stable_diffusion_xl() -> list[Case]:
    image_to_image = partial(sdxl, diffusers.StableDiffusionXLImg2ImgPipeline)
    inpainting = partial(sdxl, diffusers.StableDiffusionXLInpaintPipeline)
    controlnet = partial(_module, diffusers.ControlNetModel, **CONTROLNET, **SDXL_CONDITIONS)
    controlled = partial(sdxl, diffusers.StableDiffusionXLControlNetPipeline, controlnet=controlnet)
    cases = [
        ("SDXL", sdxl, SIZED),
        ("SDXL, first part of the steps", sdxl, {**SIZED, "denoising_end": 0.6}),
        ("SDXL image to image", image_to_image, {**PROMPT, **IMAGE, "strength": 0.8}),
        ("SDXL, last part of the steps", image_to_image, {**PROMPT, **IMAGE, "denoising_start": 0.3}),
        ("SDXL inpainting", inpainting, {**SIZED, **IMAGE, **MASK, "strength": 0.9}),
        ("SDXL ControlNet", controlled, {**SIZED, **IMAGE, "control_guidance_end": 0.5}),
    ]
    return [Case(name, make, inputs, schedulers="betas") for name, make, inputs in cases]


# ---- DeepFloyd IF and Kandinsky 2.2

SIMPLE_BLOCKS = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "cross_attention_dim": 16,
    "encoder_hid_dim": 32,
    "attention_head_dim": 4,
}


def deepfloyd() -> Any:
    """DeepFloyd IF, whose U-Net predicts the variance too."""
    conditions = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}
    variance = {"variance_type": "learned_range", "thresholding": True, "sample_max_value": 1.0}
    return _assembled(
        diffusers.IFPipeline,
        unet=unet(**SIMPLE_BLOCKS, **conditions, in_channels=3, out_channels=6),
        text_encoder=t5_text(),
        tokenizer=t5_tokenizer(),
        scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", **variance),
    )


def kandinsky() -> Any:
    """The decoder of Kandinsky 2.2, which drops the variance that its U-Net predicts."""
    conditions = {"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj"}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return _assembled(
        diffusers.KandinskyV22Pipeline,
        unet=unet(**SIMPLE_BLOCKS, **conditions, in_channels=4, out_channels=8),
        movq=_module(diffusers.VQModel, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks),
        scheduler=DDPMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False),
    )


def kandinsky_prior() -> Any:
    """The prior of Kandinsky 2.2: from a prompt to the embedding of an image."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 32}
    few = 3  # tokens: among many, the state's hardly matters
    return _assembled(
        diffusers.KandinskyV22PriorPipeline,
        prior=_denoiser(diffusers.PriorTransformer, "", gain=2.0, num_embeddings=few, **sizes),
        image_encoder=clip_vision(),
        text_encoder=clip_text(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(few),
        scheduler=diffusers.UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        image_processor=CLIPImageProcessorPil(crop_size=SIZE, size=SIZE),
    )


# ---- Stable Video Diffusion, Stable Cascade, AudioLDM 2


def stable_video() -> Any:
    """Stable Video Diffusion, with its own noise levels."""
    denoiser = _denoiser(
        diffusers.UNetSpatioTemporalConditionModel,
        block_out_channels=(32, 64),  # in groups of 32, whatever the configuration
        layers_per_block=1,
        sample_size=LATENT,
        down_block_types=("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
        up_block_types=("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
        cross_attention_dim=32,
        num_attention_heads=2,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=3 * 8,
    )
    blocks = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2}
    levels = {"sigma_min": 0.002, "sigma_max": 700.0, "use_karras_sigmas": True, "timestep_type": "continuous"}
    return _assembled(
        diffusers.StableVideoDiffusionPipeline,
        unet=denoiser,
        vae=_module(diffusers.AutoencoderKLTemporalDecoder, **blocks),
        image_encoder=clip_vision(),
        feature_extractor=CLIPImageProcessorPil(crop_size=SIZE, size=SIZE),
        scheduler=diffusers.EulerDiscreteScheduler(
            **SD_BETAS, **levels, prediction_type="v_prediction", timestep_spacing="leading"
        ),
    )


def _cascade(cls: type, denoiser: str, conditions: dict[str, int], **parts: Any) -> Any:
    module = _denoiser(
        diffusers.StableCascadeUNet,
        "clf.1",
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=8,
        conditioning_dim=16,
        block_out_channels=(16,),
        num_attention_heads=(2,),
        down_num_layers_per_block=(1,),
        up_num_layers_per_block=(1,),
        down_blocks_repeat_mappers=(1,),
        up_blocks_repeat_mappers=(1,),
        block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),),
        switch_level=(False,),
        clip_text_pooled_in_channels=32,
        dropout=(0.1,),
        **conditions,
    )
    return _assembled(
        cls,
        **{denoiser: module},
        text_encoder=clip_text(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        **parts,
    )


def cascade_prior() -> Any:
    """Stable Cascade, from a prompt to the embedding of an image."""
    conditions = {"clip_text_in_channels": 32, "clip_image_in_channels": 32}
    return _cascade(diffusers.StableCascadePriorPipeline, "prior", conditions, resolution_multiple=2.0)


def cascade_decoder() -> Any:
    """Stable Cascade, from the embedding of an image to latents."""
    conditions = {"effnet_in_channels": 4}
    return _cascade(diffusers.StableCascadeDecoderPipeline, "decoder", conditions, vqgan=None, latent_dim_scale=2.0)


def audio_ldm2() -> Any:
    """AudioLDM 2 without its encoders: it is called with embeddings, and asks some parts only for their type."""
    sizes = {"upsample_initial_channel": 8, "upsample_rates": [2, 2], "upsample_kernel_sizes": [4, 4]}
    conditions = {"cross_attention_dim": ((None, 32, 32), (None, 32, 32)), "attention_head_dim": 4}
    return _assembled(
        diffusers.AudioLDM2Pipeline,
        unet=_denoiser(diffusers.AudioLDM2UNet2DConditionModel, **SMALL, **BLOCKS, **conditions, sample_size=LATENT),
        vae=vae(),
        text_encoder=None,
        text_encoder_2=t5_text(),
        projection_model=None,
        language_model=clip_text(),
        tokenizer=None,
        tokenizer_2=None,
        vocoder=made(SpeechT5HifiGan, SpeechT5HifiGanConfig(model_in_dim=SIZE, **sizes)),
        scheduler=_ddim(),
    )


def _others() -> list[Case]:
    text, generated, image = _random(1, 6, 32), _random(1, 4, 32), _random(1, 32)
    spoken = {
        "prompt_embeds": text,
        "negative_prompt_embeds": 1 - text,
        "generated_prompt_embeds": generated,
        "negative_generated_prompt_embeds": 1 - generated,
        "attention_mask": torch.ones(1, 6),
        "negative_attention_mask": (torch.arange(6) < 3)[None].float(),
        "output_type": "latent",
    }
    sized = {"height": SIZE, "width": SIZE}
    pictured = {**sized, "image_embeds": image, "negative_image_embeds": 1 - image, "output_type": "latent"}
    decoded = {**PROMPT, "image_embeddings": _random(1, 4, 4, 4), "guidance_scale": 2.0}
    video = {**IMAGE, **sized, "num_frames": 3, "output_type": "latent"}
    return [
        Case("DeepFloyd IF", deepfloyd, {"prompt": "a cat", "output_type": "pt", "clean_caption": False}),
        Case("Kandinsky 2.2 decoder", kandinsky, pictured),
        Case("Kandinsky 2.2 prior", kandinsky_prior, {"prompt": "a"}, "image_embeds"),
        Case("Stable Video Diffusion", stable_video, video, "frames"),
        Case("Stable Cascade prior", cascade_prior, {"prompt": "a cat", **sized}, "image_embeddings"),
        Case("Stable Cascade decoder", cascade_decoder, decoded),
        Case("AudioLDM 2", audio_ldm2, spoken, "audios", schedulers="betas"),
    ]


UNET_CASES = [*_unconditional(), *_stable_diffusion(), *_stable_diffusion_xl(), *_others()]
