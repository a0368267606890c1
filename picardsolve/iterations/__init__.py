"""Iterations: one file for each choice of ``delta``."""

from picardsolve.iterations.anderson import Anderson
from picardsolve.iterations.base import Iteration
from picardsolve.iterations.exponential import Exponential
from picardsolve.iterations.jacobi import Jacobi
from picardsolve.iterations.multi_secant import MultiSecant
from picardsolve.iterations.newton import Newton
from picardsolve.iterations.parareal import Parareal
from picardsolve.iterations.picard import Picard
from picardsolve.iterations.secant import Secant

__all__ = ["Anderson", "Exponential", "Iteration", "Jacobi", "MultiSecant", "Newton", "Parareal", "Picard", "Secant"]
