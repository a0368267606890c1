"""Scalar secant iteration."""

from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.integrators.base import Steps
from picardsolve.iterations.base import Iteration, Memory, Swept
from picardsolve.recurrence import linear_sweep

LOWEST, HIGHEST = -0.5, 1.3  # of a slope: a product of larger ones would blow up over a long window
_SEEN = 1e-13  # changes of a state below this fraction of its size are rounding, and say nothing of the slope


@dataclass(frozen=True)
class Secant(Iteration):
    """``delta = c (y - x)``, one number c for each step: the slope of the step between the last two rounds.

    ``c_n = <dX_n, dF_n> / <dX_n, dX_n>``, the least-squares multiple of the identity for ``Phi_n``'s Jacobian, costs no
    evaluation. A step that has been seen only once takes the slope that its integrator expects: 1 for an ODE or SDE
    (as Picard does), for a denoiser that of normally distributed data. Slopes are clipped to [-0.5, 1.3].
    """

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """``Y[n+1] = F[n] + c_n (Y[n] - X[n])``."""
        images, states, slope = steps.images(), x[:-1], expected_slope(steps, x)
        if memory:
            before, image_before, slope_before, seen = memory
            dx, df, fresh = differences(states, before, images, image_before, seen)
            along = (torch.linalg.vecdot(dx, df) / torch.linalg.vecdot(dx, dx))[..., None]
            slope = latest_slope(along, fresh, slope_before, seen, slope)
        kept = states, images.clone(), slope, torch.ones_like(slope)
        y, change, residual = linear_sweep(images, slope, x, scratch)
        return Swept(y, change, residual, slope[..., 0], kept)


def expected_slope(steps: Steps, x: Tensor) -> Tensor:
    """What a step's slope is taken to be before the step has been seen twice, ``(W, B, 1)``."""
    expected = steps.expected_slope()
    shape = len(x) - 1, x.shape[1], 1
    return x.new_ones(shape) if expected is None else expected.expand(shape).clamp(LOWEST, HIGHEST)


def differences(
    states: Tensor, before: Tensor, images: Tensor, image_before: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Changes of states and images since the last round, ``(W, B, D)``, and whether they say anything, ``(W, B, 1)``.

    They are scaled to a largest element of 1, for the squares of small changes would underflow.
    """
    dx, df = states - before, images - image_before
    largest = dx.abs().amax(-1, keepdim=True)
    fresh = (seen > 0) & (largest > _SEEN * states.abs().amax(-1, keepdim=True))
    return dx.div_(largest), df.div_(largest), fresh


def latest_slope(along: Tensor, fresh: Tensor, before: Tensor, seen: Tensor, expected: Tensor) -> Tensor:
    """The slope measured now, else the one before, else the expected one."""
    known = torch.where(fresh & along.isfinite(), along, before)
    return torch.where(seen > 0, known, expected).clamp(LOWEST, HIGHEST)
