"""The same as `picardsolve.integrations.lerobot`, under a shorter name."""

from picardsolve.integrations.lerobot import ParallelizedPolicy, parallelize

__all__ = ["ParallelizedPolicy", "parallelize"]
