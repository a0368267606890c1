"""What the rounds of a solve show of its steps: Lipschitz constants, and what becomes of changes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.fixed_point.window import Window
from picardsolve.problem.problem import Problem
from picardsolve.problem.recurrence import arriving, rms

_STIFF = 20.0  # how many times over changes die out within the grid
_FLATTEST = 1e-6  # slopes are taken for no smaller


@dataclass(frozen=True)
class Constants:
    """Constants of the whole grid for the worst sample, as `Analysis` has them; NaN where nothing was seen."""

    contraction: float
    lipschitz: float
    one_sided: float
    stiff: bool
    growth: float

    @staticmethod
    def of(problem: Problem, windows: Sequence[Window]) -> "Constants":
        """Read them off the rounds of windows; a step counts as the first window saw it that saw it at all."""
        rate, slope = _steps_seen(windows[0])
        for window in windows[1:]:
            later = _steps_seen(window)
            rate, slope = (torch.where(a.isnan(), b, a) for a, b in zip((rate, slope), later, strict=True))
        h = problem.ts.diff().abs().double().cpu()[:, None]
        lipschitz, usual = rate / h, (rate / h).nanmedian(0).values
        dying, growing = ((sign * (slope - 1)).clamp(min=0).nanmean(0) * len(h) for sign in (-1, 1))
        exponent = slope.abs().clamp(min=_FLATTEST).log().nanmean(0) * len(h)
        return Constants(
            contraction=_largest((h * torch.where(lipschitz.isnan(), usual, lipschitz)).sum(0)),
            lipschitz=_largest(lipschitz),
            one_sided=_largest((slope - 1) / h),
            stiff=bool(((dying > _STIFF) & (growing < dying / 4)).any()),
            growth=_largest(exponent.exp()) if windows[0].chain.trusts_slopes else math.nan,
        )


def _largest(values: Tensor) -> float:
    known = values[values.isfinite()]
    return float(known.max()) if len(known) else math.nan


def _steps_seen(window: Window) -> tuple[Tensor, Tensor]:
    """What the last change of a step's state, if it was well above rounding, did to the state after it.

    Returns:
        ``|dF - dX| / |dX|``, for an iteration other than `Picard` the larger of its two parts (what the slope says, and
        what it misses); and the slope ``<dF, dX> / <dX, dX>``. ``(N, B)`` both, NaN for steps that were not seen.
    """
    rate, slope, changed = torch.full((3, window.chain.length, len(window.begin)), torch.nan, dtype=torch.float64)
    least = torch.finfo(window.x.dtype).eps ** 0.5 * rms(window.x).nan_to_num(0).amax(0).double().cpu()
    for record in window.history:
        row = torch.arange(len(record.increments))[:, None]
        held = (row < record.width).nonzero(as_tuple=True)
        at = record.begin[held[1]] + held[0], held[1]
        if record.residuals is not None and record.estimates is not None:
            missed, slopes = record.residuals[held] / changed[at], record.estimates.slopes[held].nan_to_num(1)
            told = (changed[at] > least[held[1]]) & record.estimates.ratios[held].isfinite() & missed.isfinite()
            rate[at] = torch.where(told, torch.maximum(missed, (slopes - 1).abs()), rate[at])
            slope[at] = torch.where(told, slopes, slope[at])
        changed[at] = arriving(record.increments)[held]  # of the states that steps start from
    return rate, slope
