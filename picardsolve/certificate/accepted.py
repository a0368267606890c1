"""Estimated errors of the accepted states, from the rounds of a solve."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from picardsolve.problem.recurrence import recurrence
from picardsolve.results.history import History, Stacked

if TYPE_CHECKING:
    from picardsolve.certificate.growth import Growth


@dataclass(frozen=True)
class Accepted:
    """Estimates for the accepted states, on the CPU in float64.

    Attributes:
        expected: ``(N, B)`` expected sizes of residuals; NaN where nothing was estimated, as by `Parareal`.
        slopes: ``(N, B)``, 1 where unknown.
        rates: ``(N, B)`` relative change of a change of the state by each step, along the changes of the rounds;
            infinite where it is not known.
        trusts_slopes: whether errors are propagated by slopes; see `ErrorEstimate`.
        growth: of errors along the solution; None: not known.
        estimated: whether anything was estimated.
    """

    expected: Tensor
    slopes: Tensor
    rates: Tensor
    trusts_slopes: bool = False
    growth: "Growth | None" = None
    estimated: bool = True

    @staticmethod
    def exact(steps: int, samples: int) -> "Accepted":
        """States that are those of the sequential solver."""
        nothing = torch.zeros(steps, samples, dtype=torch.float64)
        return Accepted(nothing, nothing + 1, nothing)

    @staticmethod
    def of(
        history: History,
        steps: int,
        samples: int,
        taken: Tensor | None = None,
        implicit: bool = False,
        trusts_slopes: bool = False,
        growth: "Growth | None" = None,
    ) -> "Accepted":
        """Propagate the expected residuals along the accepted states.

        Residuals are expected as by `ErrorEstimate`, without its factor for safety. A step that was accepted before its
        ratio could be measured takes the largest ratio of the round before or, where there is none, of the round after.
        The residuals of a denoiser are propagated by slopes, those of other terms by the growth. Where the growth is
        not known they are added up.

        Args:
            history: the rounds.
            steps: of the grid, N.
            samples: B.
            taken: ``(N,)`` slopes of the steps that were taken, where the sweep did not take them; see `Evidence`.
            implicit: whether steps are equations; see `ErrorEstimate`.
            trusts_slopes: whether errors are propagated by slopes; see `ErrorEstimate`.
            growth: of errors along the solution; None: not known.
        """
        nothing, rounds = Accepted.exact(steps, samples), history.stacked()
        if rounds.ratios is None or rounds.slopes is None:
            unknown = nothing.expected + torch.nan
            return Accepted(unknown, nothing.slopes, unknown, estimated=False)
        k, sample, row = rounds.accepted
        at, step = rounds.first[k] + row, rounds.begin[k, sample] + row
        measured, slope, moved = (table[at, sample] for table in (rounds.ratios, rounds.slopes, rounds.increments))
        before = np.where(row > 0, rounds.increments[at - 1, sample], 0)
        found = np.zeros((4, steps, samples))  # ratios, slopes, changes, whether the slope is known
        found[1] = 1
        found[:, step, sample] = (
            np.where(np.isfinite(measured), measured, _usual_ratios(rounds)[k, sample]),
            np.nan_to_num(slope, nan=1, posinf=1, neginf=1),
            np.maximum(before, moved) if implicit else before,
            np.isfinite(slope),
        )
        ratios, slopes, changes, known = torch.from_numpy(found)
        missed = ratios if taken is None else ratios + (slopes - taken[:, None]).abs()
        expected = torch.where(changes == 0, 0, missed * changes)
        rates = torch.where(known > 0, ratios + (slopes - 1).abs(), torch.inf)
        return Accepted(expected, slopes, rates, trusts_slopes, growth)

    @property
    def errors(self) -> Tensor:
        """Estimated errors, ``(N + 1, B)``; NaN where nothing was estimated."""
        return self._errors[0]

    @property
    def most(self) -> Tensor:
        """The same, if errors never decay."""
        return self._errors[1]

    @cached_property
    def _errors(self) -> tuple[Tensor, Tensor]:
        added = torch.cat([torch.zeros_like(self.expected[:1]), self.expected.cumsum(0)])
        if not self.estimated:
            return added + torch.nan, added + torch.nan
        if self.trusts_slopes:
            return _by_slopes(self.expected, self.slopes)
        errors = added if self.growth is None else self.growth.carried(self.expected)
        return errors, torch.maximum(errors, added)

    def product_of_slopes(self) -> Tensor:
        """The largest product of successive slopes, ``(B,)``: a denoiser's growth; NaN where not known."""
        rise = torch.cat([torch.zeros_like(self.slopes[:1]), _believed(self.slopes).clamp(min=1e-6).log().cumsum(0)])
        return (rise - rise.cummin(0).values).amax(0).exp().where(self.rates.isfinite().all(0), torch.nan)


def _by_slopes(expected: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Errors that are propagated by slopes, and the same if errors never decay."""
    carried = torch.stack([_believed(slopes), slopes.abs().clamp(min=1)], -1)
    paths = recurrence(carried, expected[..., None].expand_as(carried).clone())
    errors, most = torch.cat([torch.zeros_like(paths[:1]), paths]).unbind(-1)
    return errors, most


def _believed(slopes: Tensor) -> Tensor:
    """The factors of errors: slopes, and the root of slopes below 1.

    Slopes are seen along changes, which decay faster than errors. On trained networks slopes below 1 give errors that
    are too small, and 1 in their place errors that are too large.
    """
    return torch.where(slopes.abs() < 1, slopes.abs().sqrt(), slopes.abs())


def _usual_ratios(rounds: Stacked) -> np.ndarray:
    """For each round, the largest ratio of residual to change measured in it, or in the nearest one: ``(K, B)``.

    1 where none was ever measured.
    """
    assert rounds.ratios is not None
    found = rounds.over_rounds(np.maximum, np.nan_to_num(rounds.ratios, nan=-1, posinf=-1, neginf=-1))
    known, k = found >= 0, np.arange(len(found))[:, None]
    before = np.maximum.accumulate(np.where(known, k, -1), 0)
    after = np.minimum.accumulate(np.where(known, k, len(found))[::-1], 0)[::-1]
    nearest = np.where(before >= 0, before, after)
    return np.where(nearest < len(found), np.take_along_axis(found, nearest.clip(max=len(found) - 1), 0), 1.0)
