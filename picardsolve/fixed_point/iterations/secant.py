"""Scalar secant iteration."""

from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.slopes import changes, clipped, expected_slope, from_expected, ones, slope_along
from picardsolve.fixed_point.sweep import Memory, Swept, fitted
from picardsolve.integrators.base import Steps
from picardsolve.problem.recurrence import linear_sweep, rms

WILDEST = 2.0  # size that slopes of elements are clipped to: a product of larger ones would blow up
_MOVED = 1e-6  # of the length of a state's change, below which an element's own slope is not measured


@dataclass(frozen=True)
class Secant(Iteration):
    """``delta = c (y - x)``, one number c for each step: the slope of the step between the last two rounds.

        sol = ps.solve(term, y0, ts, integrator=ps.Euler(), iteration=ps.Secant(), window=64)

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
        images, states, expected, apart = steps.images(), x[:-1], expected_slope(steps, x), steps.elementwise
        size = states.shape[-1]
        now = torch.cat([states, images] if apart is None else [states, images - apart, apart], -1)
        slope, own = clipped(expected), None
        if memory:
            before, numbers, *own_before = memory
            count, (seen, beyond) = len(before), numbers.chunk(2, -1)
            change, length = changes(now[:count], before, size, seen)
            dx, df, *da = change.split(size, -1)
            slope = from_expected(slope_along(dx, df, expected[:count] + beyond), expected)
            if da:
                known = _elementwise(dx, da[0], states[:count], length, own_before[0])
                (own,) = fitted((known,), len(states))
        elif apart is not None:
            own = torch.zeros_like(apart)
        numbers = torch.cat([ones(expected.shape, expected.dtype, expected.device), slope - expected], -1)
        if own is None:
            y, change, residual = linear_sweep(images, slope, x, scratch)
            return Swept(y, change, residual, slope[..., 0], (now, numbers))
        factor = (slope + own).clamp_(-WILDEST, WILDEST)
        y, change, residual = linear_sweep(images, factor, x, scratch)
        return Swept(y, change, residual, rms(factor), (now, numbers, own))


def _elementwise(dx: Tensor, da: Tensor, states: Tensor, length: Tensor, before: Tensor) -> Tensor:
    """Slopes of each element, ``(W, B, D)``; those from before where it hardly moved, 0 where there are none.

    Args:
        dx: the changes of the states divided by ``length``, ``(W, B, D)``; NaN where nothing is known.
        da: the changes of what depends on each element alone, divided likewise.
        states: ``(W, B, D)``.
        length: ``(W, B, 1)``.
        before: the slopes from before.
    """
    least = states.abs().mul_(torch.finfo(dx.dtype).eps ** 0.5 / length).clamp_(min=_MOVED)  # NaN where dx is
    slope = torch.where(dx.abs() > least, da.div_(dx), before)
    return slope.nan_to_num_(0, 0, 0).clamp_(-WILDEST, WILDEST)
