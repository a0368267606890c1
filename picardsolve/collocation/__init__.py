"""Adaptive collocation in rounds."""

from picardsolve.collocation.adaptive_solve import AdaptiveSolve
from picardsolve.collocation.events import Event
from picardsolve.collocation.method import Collocation

__all__ = ["AdaptiveSolve", "Collocation", "Event"]
