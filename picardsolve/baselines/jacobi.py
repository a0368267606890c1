"""Jacobi iteration."""

from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.sweep import Memory, Swept
from picardsolve.integrators.base import Steps
from picardsolve.problem.recurrence import rms


@dataclass(frozen=True)
class Jacobi(Iteration):
    """``delta = 0``: a new state is the step map's value at the preceding old state (Song et al. 2021). Slow.

    sol = ps.solve(term, y0, ts, integrator=ps.Euler(), iteration=ps.Jacobi())
    """

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """``Y[n+1] = F[n]``."""
        images = steps.images()
        residual = torch.sub(images, x[1:], out=scratch)
        return Swept(images, residual, rms(residual))
