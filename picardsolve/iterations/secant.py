"""Scalar secant iteration."""

from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.integrators.base import Steps
from picardsolve.iterations.base import Iteration, Memory, Swept
from picardsolve.recurrence import linear_sweep, rms

_SEEN = 1e-13  # changes of a state below this fraction of its size are rounding, and say nothing of the slope


@dataclass(frozen=True)
class Secant(Iteration):
    """``delta = c (y - x)``, one number c for each step: the slope of the step between the last two rounds.

    ``c_n = <dX_n, dF_n> / <dX_n, dX_n>``, the least-squares multiple of the identity for ``Phi_n``'s Jacobian, costs no
    evaluation. Steps that have been seen only once take the Picard slope, 1.

    Args:
        lowest: slopes are clipped from below.
        highest: slopes are clipped from above: a product of larger ones would blow up over a long window.
    """

    lowest: float = -0.5
    highest: float = 1.3

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """``Y[n+1] = F[n] + c_n (Y[n] - X[n])``."""
        images, states = steps.images(), x[:-1]
        slope, misfit = self._slopes(images, states, memory)
        kept = (states, images.clone(), slope[..., None], torch.ones_like(slope)[..., None])
        y, change, residual = linear_sweep(images, slope[..., None], x, scratch)
        return Swept(y, change, residual, slope, misfit, kept)

    def _slopes(self, images: Tensor, states: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        if not memory:
            one = images.new_ones(images.shape[:2])
            return one, torch.full_like(one, torch.inf)
        before, image_before, slope_before, seen = memory
        dx, df = states - before, images - image_before
        largest = dx.abs().amax(-1, keepdim=True)
        dx, df = dx / largest, df / largest  # squares of small changes would underflow
        square = torch.linalg.vecdot(dx, dx)
        along = torch.linalg.vecdot(dx, df) / square
        known = seen[..., 0] > 0
        fresh = known & (largest[..., 0] > _SEEN * states.abs().amax(-1)) & along.isfinite()
        carried = torch.where(known, slope_before[..., 0], 1.0)
        slope = torch.where(fresh, along, carried).clamp(self.lowest, self.highest)
        left = rms(df.addcmul_(slope[..., None], dx, value=-1)) / rms(dx)
        return slope, torch.where(fresh, left, torch.inf)
