"""Picard iteration."""

from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.slopes import sampled
from picardsolve.fixed_point.sweep import Memory, Swept
from picardsolve.integrators.base import Steps
from picardsolve.problem.recurrence import arriving, propagated, recurrence, rms


@dataclass(frozen=True)
class Picard(Iteration):
    """``delta = y - x``: the sum of the steps' increments (Shih et al. 2023, ParaDiGMS, eq. 8); the default for ODEs.

        sol = ps.solve(term, y0, ts, integrator=ps.RK4(), iteration=ps.Picard(), window=64)

    The changes are the running sum of the residuals, ``d[n+1] = d[n] + r[n]``. If a state changed by d in the last
    round, the step map's value has changed by ``d + r``, and the slope of the step is ``1 + <d, r> / <d, d>``. The
    sweep does not use the slope, but reports it for error estimates, from a sample of the numbers of a large state.
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
            r = residual[: len(before), :, some]
            along = torch.linalg.vecdot(before, r) / torch.linalg.vecdot(before, before)
            slope[: len(before)] += along.nan_to_num_(0, 0, 0)
        y, change = propagated(images, None, recurrence(None, residual))
        return Swept(y, change, size, slope, (arriving(change[..., some]),))
