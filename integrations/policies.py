"""The same as `picardsolve.integrations.policies`, under a shorter name."""

from picardsolve.integrations.policies import ParallelPolicy, Plan

__all__ = ["ParallelPolicy", "Plan"]
