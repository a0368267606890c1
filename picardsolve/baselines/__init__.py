"""Published methods for comparison."""

from picardsolve.baselines.anderson import Anderson
from picardsolve.baselines.jacobi import Jacobi
from picardsolve.baselines.parareal import Parareal

__all__ = ["Anderson", "Jacobi", "Parareal"]
