"""Scalar secant iteration."""

from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.integrators.base import Steps
from picardsolve.iterations.base import Iteration, Memory, Swept
from picardsolve.recurrence import linear_sweep

_SEEN = 1e-13  # changes of a state below this fraction of its size are rounding, and say nothing of the slope


@dataclass(frozen=True)
class Secant(Iteration):
    """``delta = c (y - x)``, one number c for each step: the slope of the step between the last two rounds.

    ``c_n = <dX_n, dF_n> / <dX_n, dX_n>``, the least-squares multiple of the identity for ``Phi_n``'s Jacobian, costs no
    evaluation. A step that has been seen only once takes the slope that its integrator expects: 1 for an ODE or SDE
    (as Picard does), for a denoiser that of normally distributed data.

    Args:
        lowest: slopes are clipped from below.
        highest: slopes are clipped from above: a product of larger ones would blow up over a long window.
    """

    lowest: float = -0.5
    highest: float = 1.3

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """``Y[n+1] = F[n] + c_n (Y[n] - X[n])``."""
        images, states = steps.images(), x[:-1]
        expected = steps.expected_slope()
        slope = images.new_ones(*images.shape[:2], 1) if expected is None else expected.expand(*images.shape[:2], 1)
        if memory:
            slope = self._slope(slope, states, images, memory)
        slope = slope.clamp(self.lowest, self.highest)
        kept = states, images.clone(), slope, torch.ones_like(slope)
        y, change, residual = linear_sweep(images, slope, x, scratch)
        return Swept(y, change, residual, slope[..., 0], kept)

    @staticmethod
    def _slope(expected: Tensor, states: Tensor, images: Tensor, memory: Memory) -> Tensor:
        before, image_before, slope_before, seen = memory
        dx, df = states - before, images - image_before
        largest = dx.abs().amax(-1, keepdim=True)
        dx, df = dx / largest, df / largest  # squares of small changes would underflow
        along = (torch.linalg.vecdot(dx, df) / torch.linalg.vecdot(dx, dx))[..., None]
        moved = (largest > _SEEN * states.abs().amax(-1, keepdim=True)) & along.isfinite()
        return torch.where(seen > 0, torch.where(moved, along, slope_before), expected)
