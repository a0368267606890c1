"""Reverse-time SDEs of score models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from picardsolve.problem import grids
from picardsolve.problem.checks import check_callable
from picardsolve.problem.forward_mode import jvp
from picardsolve.problem.schedules import Schedule
from picardsolve.problem.terms import SDE


def reverse_sde(
    score: Callable[..., Tensor], schedule: Schedule, start: float, end: float, steps: int
) -> tuple[SDE, Tensor]:
    """The SDE that turns noise at time ``start`` into samples at time ``end``, and a suitable grid.

        term, ts = ps.reverse_sde(score, schedule, start=1.0, end=1e-3, steps=1000)
        sol = ps.solve(term, noise, ts, integrator=ps.EulerMaruyama(), batch_dims=1)      # or ps.SRA1()

    Forward, ``x_t = alpha(t) x_0 + sigma(t) noise`` is the law of ``dx = F(t) x dt + G(t) dW`` with
    ``F = d log(alpha) / dt`` and ``G^2 = d sigma^2 / dt - 2 F sigma^2`` (Song et al. 2021, for VP, VE and sub-VP;
    Karras et al. 2022, for EDM). In reverse time, ``s = -t``, the process solves
    ``dx = (G^2 score - F x) ds + G dW`` (Anderson 1982). This is an Ito `SDE` with additive noise on increasing times
    s. The grid has equal steps in the log signal-to-noise ratio, because scores change like 1/t near t = 0, where equal
    steps of time are too long. Predictor-corrector samplers are not included.

    Args:
        score: ``score(x, t)``, the gradient of the log density at time t, in the order of samplers: ``x`` is
            ``(rows, *state)``, ``t`` is ``(rows,)``. It is a formula or learned, such as `Denoiser.score`. The ``args``
            of `solve` are passed on as further arguments.
        schedule: the signal and noise levels, differentiable by `torch.func.jvp`.
        start: time of the noise. The log signal-to-noise ratio must be finite there. The deviation of y0 is
            ``sigma(start)``, beside ``alpha(start)`` times the data.
        end: time of the sample, below ``start``, with a finite ratio, too.
        steps: number of steps in the grid.

    Returns:
        The term, and its grid ``(steps + 1,)`` from ``-start`` to ``-end``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``start`` is not above ``end``, or the ratio is infinite at one of them.
    """
    check_callable("score", score)
    if not start > end:
        raise ValueError(f"start, end: expected times from noise to data, start > end, got {start!r} and {end!r}.")
    ts = -grids.log_snr(schedule, start, end, steps)
    return SDE(_Drift(score, schedule), _Diffusion(schedule), "additive"), ts


@dataclass(frozen=True)
class _Drift:
    score: Callable[..., Tensor]
    schedule: Schedule

    def __call__(self, s: Tensor, x: Tensor, *args: Any) -> Tensor:
        growth, power = _coefficients(self.schedule, -s)
        return power.to(x) * self.score(x, -s.flatten(), *args) - growth.to(x) * x


@dataclass(frozen=True)
class _Diffusion:
    schedule: Schedule

    def __call__(self, s: Tensor, x: Tensor, *args: Any) -> Tensor:
        return _coefficients(self.schedule, -s)[1].sqrt().to(x).expand_as(x)


def _coefficients(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """``F`` and ``G^2 = -2 sigma^2 dlambda / dt`` with ``lambda = log(alpha / sigma)``, in float64."""
    t = t.double()
    one = torch.ones_like(t)
    alpha, d_alpha, *_ = jvp(schedule.alpha, (t,), (one,))
    sigma, d_sigma, *_ = jvp(schedule.sigma, (t,), (one,))
    growth = d_alpha / alpha
    return growth, (2 * sigma * (d_sigma - growth * sigma)).clamp(min=0)
