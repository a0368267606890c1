"""Iterations: one file for each choice of ``delta``."""

from picardsolve.iterations.base import Iteration
from picardsolve.iterations.exponential import Exponential
from picardsolve.iterations.jacobi import Jacobi
from picardsolve.iterations.multi_secant import MultiSecant
from picardsolve.iterations.picard import Picard
from picardsolve.iterations.secant import Secant

__all__ = ["Exponential", "Iteration", "Jacobi", "MultiSecant", "Picard", "Secant"]
