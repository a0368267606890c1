"""Scalar secant iteration."""

from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.slopes import differences, expected_slope, latest_slope
from picardsolve.fixed_point.sweep import Memory, Swept
from picardsolve.integrators.base import Steps
from picardsolve.problem.recurrence import linear_sweep, rms

WILDEST = 2.0  # size that slopes of elements are clipped to: a product of larger ones would blow up
_MOVED = 1e-6  # of the largest change in a state, below which an element's own slope is not measured


@dataclass(frozen=True)
class Secant(Iteration):
    """``delta = c (y - x)``, one number c for each step: the slope of the step between the last two rounds.

    ``c_n = <dX_n, dF_n> / <dX_n, dX_n>`` is the multiple of the identity that is nearest to the Jacobian of ``Phi_n``
    along the last change. It costs no evaluation. A step in its first round takes the slope that its integrator
    expects: 1 for an ODE or SDE, as in `Picard`, and for a `Denoiser` that of normally distributed data. Slopes are
    clipped to [-0.5, 1.3].

    For an `SDE` with diagonal or scalar noise, the known noise ``g(X_n) dW_n`` has a slope for each element,
    ``k_n = d(g dW_n) / dX_n``, and the rest of the step a scalar slope as above. Then ``delta = (c_n + k_n)(y - x)``,
    clipped to [-2, 2], which is Newton's method on geometric Brownian motion. The default for SDEs; measured in
    ``docs/sde_iterations.md``.
    """

    on_segments = "secant"

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """``Y[n+1] = F[n] + c_n (Y[n] - X[n])``."""
        images, states, slope, apart = steps.images(), x[:-1], expected_slope(steps, x), steps.elementwise
        rest = images.clone() if apart is None else images - apart
        own = None if apart is None else torch.zeros_like(apart)
        if memory:
            before, rest_before, slope_before, seen, *separate = memory
            dx, df, fresh = differences(states, before, rest, rest_before, seen)
            along = (torch.linalg.vecdot(dx, df) / torch.linalg.vecdot(dx, dx))[..., None]
            slope = latest_slope(along, fresh, slope_before, seen, slope)
            if apart is not None:
                own = _elementwise(states, states - before, apart - separate[0], fresh, separate[1])
        kept = states, rest, slope, torch.ones_like(slope)
        if apart is None or own is None:
            y, change, residual = linear_sweep(images, slope, x, scratch)
            return Swept(y, change, residual, slope[..., 0], kept)
        factor = (slope + own).clamp(-WILDEST, WILDEST)
        y, change, residual = linear_sweep(images, factor, x, scratch)
        return Swept(y, change, residual, rms(factor), (*kept, apart, own))


def _elementwise(states: Tensor, dx: Tensor, df: Tensor, fresh: Tensor, before: Tensor) -> Tensor:
    """Slopes of each element, ``(W, B, D)``; those from before where it hardly moved, 0 where there are none."""
    slope, size = df / dx, dx.abs()
    told = fresh & (size > _MOVED * size.amax(-1, keepdim=True)) & slope.isfinite()
    told &= size > torch.finfo(dx.dtype).eps ** 0.5 * states.abs()
    return torch.where(told, slope, before).clamp(-WILDEST, WILDEST)
