"""Brownian motion: the protocol of a path, and a path that is a pure function of its seed."""

from picardsolve.brownian.brownian_path import BrownianPath, resolution_for
from picardsolve.brownian.path import Path

__all__ = ["BrownianPath", "Path", "resolution_for"]
