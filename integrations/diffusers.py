"""The same as `picardsolve.integrations.diffusers`, under a shorter name."""

from picardsolve.integrations.diffusers import Report, Sampler, denoise, sample, sampler

__all__ = ["Report", "Sampler", "denoise", "sample", "sampler"]
