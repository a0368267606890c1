"""The same as `picardsolve.integrations.diffusion_policy`, under a shorter name."""

from picardsolve.integrations.diffusion_policy import ParallelizedPolicy, parallelize

__all__ = ["ParallelizedPolicy", "parallelize"]
