"""The same as `picardsolve.integrations.scipy`, under a shorter name."""

from picardsolve.integrations.scipy import ParallelCollocation

__all__ = ["ParallelCollocation"]
