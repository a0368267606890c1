"""What subclasses and adapters need: the vocabulary beneath the public names, see docs/extending.md."""

from picardsolve.problem.machine import Machine
from picardsolve.solve import drive

__all__ = [
    "Machine",
    "drive",
]
