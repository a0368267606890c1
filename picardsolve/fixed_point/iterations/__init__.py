"""Iterations: one file for each choice of ``delta``."""

from picardsolve.fixed_point.iterations.base import Iteration, Method
from picardsolve.fixed_point.iterations.exponential import Exponential
from picardsolve.fixed_point.iterations.multi_secant import MultiSecant
from picardsolve.fixed_point.iterations.newton import Newton
from picardsolve.fixed_point.iterations.picard import Picard
from picardsolve.fixed_point.iterations.secant import Secant
from picardsolve.fixed_point.iterations.usual import iteration_for

__all__ = [
    "Exponential",
    "Iteration",
    "Method",
    "MultiSecant",
    "Newton",
    "Picard",
    "Secant",
    "iteration_for",
]
