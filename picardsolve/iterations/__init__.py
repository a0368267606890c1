"""Iterations: one file for each choice of ``delta``."""

from picardsolve.iterations.base import Iteration
from picardsolve.iterations.exponential import Exponential
from picardsolve.iterations.jacobi import Jacobi
from picardsolve.iterations.parareal import Parareal
from picardsolve.iterations.picard import Picard
from picardsolve.iterations.secant import Secant

__all__ = ["Exponential", "Iteration", "Jacobi", "Parareal", "Picard", "Secant"]
