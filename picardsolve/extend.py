"""What subclasses and adapters need: the vocabulary beneath the public names, see docs/extending.md."""

from picardsolve.collocation.check import CheckedSegment
from picardsolve.collocation.failures import Stuck
from picardsolve.collocation.initial_value import InitialValueProblem
from picardsolve.collocation.iteration_choice import rounds_if_stiff
from picardsolve.collocation.march import March
from picardsolve.problem.machine import Machine
from picardsolve.solve import drive

__all__ = [
    "CheckedSegment",
    "InitialValueProblem",
    "Machine",
    "March",
    "Stuck",
    "drive",
    "rounds_if_stiff",
]
