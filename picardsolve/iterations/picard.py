"""Picard iteration."""

from dataclasses import dataclass

from torch import Tensor

from picardsolve.integrators.base import Steps
from picardsolve.iterations.base import Iteration, Memory, Swept
from picardsolve.recurrence import linear_sweep


@dataclass(frozen=True)
class Picard(Iteration):
    """``delta = y - x``: the sum of the steps' increments (Shih et al. 2023, eq. 8). Cheap and robust.

    In difference form: the changes are the running sum of the residuals, ``d[n+1] = d[n] + r[n]``.
    """

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """``Y[n+1] = F[n] + Y[n] - X[n]``."""
        return Swept(*linear_sweep(steps.images(), None, x, scratch))
