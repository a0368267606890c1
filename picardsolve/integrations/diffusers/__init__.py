"""Run diffusers pipelines in parallel over their steps, unmodified: same seed, the same image to a tolerance."""

try:
    import diffusers as _diffusers  # noqa: F401
except ImportError as error:
    raise ImportError(
        "picardsolve.integrations.diffusers: needs diffusers; pip install picardsolve[diffusers]"
    ) from error

from picardsolve.integrations.diffusers.calls import denoise, sample, sampler
from picardsolve.integrations.diffusers.report import Report
from picardsolve.integrations.diffusers.sampler import Sampler

__all__ = ["Report", "Sampler", "denoise", "sample", "sampler"]
