"""What the rounds of a solve tell of the states that were accepted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from picardsolve.problem.recurrence import arriving, recurrence
from picardsolve.results.history import Round

if TYPE_CHECKING:
    from picardsolve.certificate.growth import Growth


@dataclass(frozen=True)
class Accepted:
    """What the rounds tell of the accepted states, on the CPU in float64.

    Attributes:
        errors: ``(N + 1, B)``; NaN where nothing was estimated, as of `Parareal`.
        most: the same if nothing is ever forgotten.
        expected: ``(N, B)`` sizes of residuals.
        slopes: ``(N, B)``, 1 where unknown.
        rates: ``(N, B)`` by how much a step changes a change of its state, along the changes that were seen; infinite
            where that is not known.
    """

    errors: Tensor
    most: Tensor
    expected: Tensor
    slopes: Tensor
    rates: Tensor

    @staticmethod
    def exact(steps: int, samples: int) -> "Accepted":
        """Of states that are the sequential ones."""
        nothing = torch.zeros(steps + 1, samples, dtype=torch.float64)
        return Accepted(nothing, nothing, nothing[1:], nothing[1:] + 1, nothing[1:])

    @staticmethod
    def of(
        history: Sequence[Round],
        steps: int,
        samples: int,
        held: bool = False,
        implicit: bool = False,
        forgets: bool = False,
        growth: "Growth | None" = None,
    ) -> "Accepted":
        """Carry the residuals that are to be expected along the accepted states.

        As `ErrorEstimate` expects them, without its factor for safety, and knowing the rounds that came after: a step
        that was accepted before a ratio could be measured takes the largest of the round before or, where there is
        none, of the one after. A denoiser's are carried by slopes, others by the growth or, where it is not known, by
        nothing: added up.

        Args:
            history: the rounds.
            steps: of the grid, N.
            samples: B.
            held: whether steps were taken with the outputs of their round held fixed; see `ErrorEstimate`.
            implicit: whether steps are equations; see there, too.
            forgets: whether slopes are believed; see there, too.
            growth: of errors along the solution; None: not known.
        """
        nothing = Accepted.exact(steps, samples)
        if history[0].estimates is None:
            unknown = nothing.errors + torch.nan
            return Accepted(unknown, unknown, unknown[1:], nothing.slopes, unknown[1:])
        zero = nothing.expected
        ratios, slopes, changes, known = zero.clone(), zero + 1, zero.clone(), zero == 0
        for record, usual in zip(history, _usual_ratios(history), strict=True):
            assert record.estimates is not None
            row, sample = torch.nonzero(torch.arange(int(record.stride.max()))[:, None] < record.stride, as_tuple=True)
            at = record.begin[sample] + row, sample
            measured, slope = record.estimates.ratios, record.estimates.slopes
            ratios[at] = torch.where(measured.isfinite(), measured, usual)[row, sample]
            slopes[at] = slope.nan_to_num(1, 1, 1)[row, sample]
            known[at] = slope.isfinite()[row, sample]
            moved = record.increments
            moved = torch.maximum(arriving(moved), moved) if implicit else arriving(moved)
            changes[at] = moved[row, sample]
        missed = ratios + (slopes - 1).abs() if held else ratios
        expected = torch.where(changes == 0, 0, missed * changes)
        rates = torch.where(known, ratios + (slopes - 1).abs(), torch.inf)
        added = torch.cat([torch.zeros_like(expected[:1]), expected.cumsum(0)])
        if forgets:
            errors, most = _carried(expected, slopes)
        else:
            errors = added if growth is None else growth.carried(expected)
            most = torch.maximum(errors, added)
        return Accepted(errors, most, expected, slopes, rates)

    def growth(self) -> Tensor:
        """The largest product of successive slopes, ``(B,)``: of a denoiser's."""
        rise = torch.cat([torch.zeros_like(self.slopes[:1]), _believed(self.slopes).clamp(min=1e-6).log().cumsum(0)])
        return (rise - rise.cummin(0).values).amax(0).exp()


def _carried(expected: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Errors by slopes, and if nothing is ever forgotten."""
    carried = torch.stack([_believed(slopes), slopes.abs().clamp(min=1)], -1)
    paths = recurrence(carried, expected[..., None].expand_as(carried).clone())
    errors, most = torch.cat([torch.zeros_like(paths[:1]), paths]).unbind(-1)
    return errors, most


def _believed(slopes: Tensor) -> Tensor:
    """What errors are multiplied by: slopes, but of those below 1 the root.

    Changes, along which slopes are seen, shrink faster than the errors that remain of them; slopes as they are give
    errors that are too small on trained networks, and ones for those below 1 errors that are too large.
    """
    return torch.where(slopes.abs() < 1, slopes.abs().sqrt(), slopes.abs())


def _usual_ratios(history: Sequence[Round]) -> Tensor:
    """For each round, the largest ratio of residual to change measured in it, or in the nearest one: ``(K, B)``.

    1 where none was ever measured.
    """
    found = torch.stack([r.estimates.ratios.nan_to_num(-1, -1, -1).amax(0) for r in history if r.estimates])
    known, k = found >= 0, torch.arange(len(found))[:, None]
    before = torch.where(known, k, -1).cummax(0).values
    after = torch.where(known, k, len(found)).flip(0).cummin(0).values.flip(0)
    nearest = torch.where(before >= 0, before, after)
    return torch.where(nearest < len(found), found.gather(0, nearest.clamp(max=len(found) - 1)), 1.0)


def picard_number(history: Sequence[Round]) -> float:
    """The largest of a window."""
    sums = [r.estimates.ratios.nan_to_num(0, 0, 0).sum(0).max() for r in history if r.estimates is not None]
    return max(map(float, sums), default=0.0)
