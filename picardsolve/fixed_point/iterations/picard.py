"""Picard iteration."""

from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.slopes import sampled
from picardsolve.fixed_point.sweep import Memory, Swept
from picardsolve.integrators.base import Steps
from picardsolve.problem.recurrence import arriving, propagated, rms


@dataclass(frozen=True)
class Picard(Iteration):
    """``delta = y - x``: the sum of the steps' increments (Shih et al. 2023, eq. 8). Cheap and robust.

    In difference form: the changes are the running sum of the residuals, ``d[n+1] = d[n] + r[n]``. So the image of a
    state that changed by d last time has changed by ``d + r``, and ``1 + <d, r> / <d, d>`` is the slope of the step.
    The sweep does not use it, but it says what becomes of errors; of a large state a sample of numbers is enough.
    """

    on_segments = "picard"

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """``Y[n+1] = F[n] + Y[n] - X[n]``."""
        images = steps.images()
        residual = torch.sub(images, x[1:], out=scratch)
        size, slope = rms(residual), torch.ones_like(residual[..., 0])
        some = sampled(residual.shape[-1])
        if memory:
            (before,) = memory
            along = torch.linalg.vecdot(before, residual[..., some]) / torch.linalg.vecdot(before, before)
            slope = torch.where(along.isfinite(), 1 + along, slope)
        y, change = propagated(images, None, residual)
        return Swept(y, change, size, slope, (arriving(change[..., some]),))
