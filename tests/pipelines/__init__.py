"""Small diffusers pipelines for tests, all offline: ``CASES`` has one call of each."""

from pipelines.case import Case
from pipelines.parts import ROUNDING, SD_BETAS, SIZE, assert_same, counting, generator
from pipelines.transformer_family import TRANSFORMER_CASES, dit, flux, sd3
from pipelines.unet_family import UNET_CASES, digits, sdxl, stable_diffusion

CASES = UNET_CASES + TRANSFORMER_CASES

__all__ = [
    "CASES",
    "ROUNDING",
    "SD_BETAS",
    "SIZE",
    "TRANSFORMER_CASES",
    "UNET_CASES",
    "Case",
    "assert_same",
    "counting",
    "digits",
    "dit",
    "flux",
    "generator",
    "sd3",
    "sdxl",
    "stable_diffusion",
]
