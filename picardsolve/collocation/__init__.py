"""Adaptive collocation in rounds."""

from picardsolve.collocation.events import Event
from picardsolve.collocation.method import Collocation
from picardsolve.collocation.samples import Choice
from picardsolve.collocation.solve import collocate
from picardsolve.collocation.trajectory import Course, Trajectory

__all__ = ["Choice", "Collocation", "Course", "Event", "Trajectory", "collocate"]
