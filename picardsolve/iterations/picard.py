"""Picard iteration."""

from dataclasses import dataclass

from torch import Tensor

from picardsolve.integrators.base import Steps
from picardsolve.iterations.base import Iteration
from picardsolve.recurrence import linear_sweep


@dataclass(frozen=True)
class Picard(Iteration):
    """``delta = y - x``: the sum of the steps' increments (Shih et al. 2023, eq. 8). The default: cheap and robust.

    In difference form: the changes are the running sum of the residuals, ``d[n+1] = d[n] + r[n]``.
    """

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """``Y[n+1] = F[n] + Y[n] - X[n]``."""
        return linear_sweep(steps.images(), None, x, scratch)
