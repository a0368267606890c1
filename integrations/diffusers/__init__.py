"""Run diffusers pipelines in parallel over their steps, unmodified: same seed, same image."""

try:
    import diffusers as _diffusers  # noqa: F401
except ImportError as error:
    raise ImportError("integrations.diffusers: needs diffusers; pip install picardsolve[diffusers]") from error

from integrations.diffusers.calls import denoise, sample
from integrations.diffusers.report import Report
from integrations.diffusers.sampler import Sampler, sampler

__all__ = ["Report", "Sampler", "denoise", "sample", "sampler"]
