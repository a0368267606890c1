"""The stopping rule of the default: the estimated distance to the sequential solution."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.stopping import Seen, Stopping, on_host, reference
from picardsolve.fixed_point.sweep import Swept
from picardsolve.integrators.base import Index
from picardsolve.problem.tolerances import Tolerance

_HUGE = 1e200  # growth factors are not told apart beyond it
_LEAST_SLOPE = 1e-6  # slopes are taken for no smaller in a product
_MOST_GROWTH = 1e4  # a step's share of the tolerance is divided by at most this
_ROUNDING = 10.0  # changes and residuals below so many units of rounding say nothing of larger ones
_UNPREDICTED = 4.0  # units of rounding of a change that no sweep predicts: the change is added, and may cancel
_BORROWED = 8.0  # ratios of a denoiser's later steps exceed earlier ones by no more, in nine of ten
_SURE = 0.03  # of the allowance: errors that states are let go with where that saves no round
_SAFETY = 2.0  # where slopes are trusted; estimates are 0.3 to 3 times the true error, see docs/benchmarks.md


@dataclass
class ErrorEstimate(Stopping):
    """Accepts a state when its estimated distance to the sequential solution is within the tolerance.

    A new state Y[n+1] has a residual ``Phi_n(Y[n]) - Y[n+1]``, which only the next round would compute. This rule
    predicts it. The ratio ``q_n = |F[n] - X[n+1]| / |last change of X[n]|`` says which part of a change the iteration
    failed to predict, so that ``q_n |Y[n] - X[n]|`` is the residual to expect. Errors add up,
    ``E[n+1] = E[n] + q_n |Y[n] - X[n]|``, from the error that the window's first state was accepted with. Of the ratios
    of the last two rounds the larger one counts: where solutions oscillate, one sweep may be right by luck.

    How an error grows after it was made cannot be seen within a window: the slopes along successive changes have
    products that say nothing of it where solutions oscillate. It is measured along the whole solution instead, after
    the solve (`picardsolve.certificate.growth`). A step may therefore spend ``1 / N (1 + L)`` of the tolerance. L is
    the sum over the grid of the rates at which steps change changes, as measured in this window. On orbits errors grow
    by about that factor, and the number of rounds grows with the logarithm of L only.

    A denoiser's steps contract. There the slopes c are trusted, and carry errors on; the last ratio counts, and the
    factor 2 is for safety:
    ``E[n+1] = |c_n| E[n] + 2 q_n |Y[n] - X[n]|``. The allowance grows by what a step forgets, and is divided by the
    growth of an error in the window ahead, in units of the tolerance:
    ``A[n+1] = |c_n| A[n] + (max(1 - |c_n|, 0) / 2 + 1 / N) / max(1, |c_{n+1}|, |c_{n+1} c_{n+2}|, ...)``. Estimates are
    low where a sample is about to choose between two modes, for slopes do not see the direction in which errors grow.
    So a window that holds all steps that are left lets a state go only with an error of 0.03 of its allowance, until
    all of them are within it.

    A step that has been evaluated only once takes the largest ratio of this round, or of the last round that measured
    one; eight times that for a denoiser, whose later steps are harder to predict than the ones before them. After two
    rounds without any ratio, the window keeps one step to measure it again. Changes of the size of rounding measure
    nothing; residuals of that size count as the largest that rounding can make. No ratio is taken for less than four
    units of rounding. With Newton's method the part that is missed grows with the square of a change, so every step
    must have been evaluated twice.

    Args:
        tolerance: what errors are measured by.
        length: number of steps of the grid, N.
        trusts_slopes: whether slopes carry errors on, as for a denoiser.
        frozen: whether states are accepted by steps with this round's outputs held fixed, as a pipeline's own scheduler
            takes them, and not by the sweep. What the sweep added by its slope, ``|c_n - 1| |Y[n] - X[n]|``, is then
            missing.
        implicit: whether steps are equations. A residual is then caused by the change of either state of a step, of
            which the larger one counts; and no state is exact because the one before it is.
        reserves: whether a step's share is divided by ``1 + L``. False where the tolerance already accounts for growth.
        patient: see `Stopping`; estimates are then twice as large, too.

    Attributes:
        worst: ``(B,)`` the largest error that a state was accepted with, without the factor for safety.
    """

    tolerance: Tolerance
    length: int
    trusts_slopes: bool = True
    frozen: bool = False
    implicit: bool = False
    reserves: bool = True
    patient: bool = False
    _account: "_Account | None" = field(init=False, default=None)
    _rounding: np.ndarray | None = field(init=False, default=None)  # of the states, in units of the tolerance, (B,)
    _before: np.ndarray | None = field(init=False, default=None)  # changes of the last round in tolerances, and raw
    _lately: np.ndarray | None = field(init=False, default=None)  # ratios that were measured in the last round
    _round: tuple[np.ndarray, np.ndarray, np.ndarray] | None = field(init=False, default=None)
    estimates: tuple[np.ndarray, np.ndarray, np.ndarray] | None = field(init=False, default=None)
    worst: np.ndarray | None = field(init=False, default=None)

    def norms(self, swept: Swept, noise: Tensor | None) -> Sequence[Tensor]:
        """Changes in tolerances, and changes; at first also the rounding of the states, in tolerances."""
        norms = self.tolerance.norms(swept.change, reference(swept, self.tolerance), noise)
        if self._rounding is not None:
            return norms
        rounding = torch.finfo(swept.y.dtype).eps * swept.y
        return [*norms, *self.tolerance.norms(rounding, swept.y, noise)]

    @np.errstate(all="ignore")
    def judge(self, swept: Swept, noise: Tensor | None, seen: Seen | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Estimate errors, and compare them with the allowance."""
        scaled, size, residual, signed = self._known(
            seen or on_host([self], swept, noise)[0][0], noise, swept.y.shape[-1]
        )
        assert self._rounding is not None
        changes = np.stack([scaled, size])
        change, raw = np.maximum(_arriving(changes), changes) if self.implicit else _arriving(changes)
        residual = None if residual is None else residual * (scaled / size)
        account = self._account = self._measured(residual, change, raw, self._rounding)
        borrowed = account.ratio * (_BORROWED if self.trusts_slopes else 1.0)
        ratio = np.where(account.measured, account.ratios, np.inf if swept.tangent else borrowed)
        tiny = change <= _ROUNDING * self._rounding
        ratio = np.where(tiny, np.minimum(ratio, 1), ratio)
        ratio = np.maximum(ratio, _UNPREDICTED * torch.finfo(swept.y.dtype).eps)
        if self.frozen and signed is not None:
            ratio = ratio + abs(signed - 1)
        expected = np.where(change == 0, 0, self._safety * ratio * change)
        slope = abs(signed) if signed is not None and self.trusts_slopes else None
        share = self._share(slope, account.measured) if slope is not None else self._even_share(account, signed, size)
        error, allowed = self._carried(slope, np.stack([expected, share]), account)
        self._round = error, allowed, np.where(tiny | ~np.isfinite(change), np.nan, np.stack([change, raw]))
        unknown = np.full_like(size, np.nan)
        self.estimates = error / allowed, account.ratios, unknown if signed is None else signed
        fits = error <= allowed
        if self.implicit:
            return fits, size
        fits[-1] &= account.blind < 2
        if self.trusts_slopes:
            self.sure = _departing(error <= _SURE * allowed)
        return _departing(fits), size

    def _known(self, seen: Seen, noise: Tensor | None, size: int) -> tuple[Any, ...]:
        """Changes in tolerances, changes, and residuals and slopes where there are any; ``size``: of a state."""
        norms = seen.norms
        if self._rounding is None:
            norms, rounding = norms[: len(norms) // 2], norms[len(norms) // 2 :]
            self._rounding = self.tolerance.in_units(rounding, noise, size)[0].max(0)
        scaled, change = self.tolerance.in_units(norms, noise, size)
        finite = np.isfinite(change)  # otherwise squares overflowed: nothing is known
        residual = None if seen.residual is None else np.where(finite, seen.residual, np.inf)
        return np.where(finite, scaled, np.inf), change, residual, seen.slope

    def _carried(self, slope: np.ndarray | None, new: np.ndarray, account: "_Account") -> np.ndarray:
        """Errors and allowances ``(2, W, B)``: what each step adds, on top of those of the window's first state."""
        left = np.stack([account.error, account.allowed])[:, None]
        if slope is None:
            return left + new.cumsum(1)
        new[:, 0] += slope[0] * left[:, 0]
        return _scan(slope, new)

    def _even_share(self, account: "_Account", signed: np.ndarray | None, like: np.ndarray) -> np.ndarray:
        """Each step's share of the tolerance where slopes are not trusted, ``(W, B)``."""
        if not self.reserves:
            return np.full_like(like, 1 / self.length)
        known = account.measured.sum(0)
        rate = np.where(account.measured, account.ratios, 0).sum(0)
        if signed is not None:
            rate = rate + abs(np.where(account.measured, signed - 1, 0).sum(0))
        over_all = np.where(known > 0, rate / np.maximum(known, 1), 0) * self.length
        return np.full_like(like, 1) / (self.length * (1 + np.minimum(over_all, _MOST_GROWTH)))

    def _share(self, slope: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """Each step's share of the tolerance where slopes are trusted, ``(W, B)``."""
        growth = np.log(np.maximum(np.where(measured, slope, 1), _LEAST_SLOPE)).cumsum(0)
        ahead = np.exp(np.maximum.accumulate(growth[::-1])[::-1] - growth)
        return (np.maximum(1 - slope, 0) / 2 + 1 / self.length) / ahead

    def _measured(
        self, residual: np.ndarray | None, change: np.ndarray, raw: np.ndarray, rounding: np.ndarray
    ) -> "_Account":
        """The account with this round's ratios."""
        account = self._account or _Account.opened(change)
        ratios, telling = np.full_like(change, np.nan), np.zeros_like(change, dtype=bool)
        if self._before is not None and residual is not None:
            known = min(len(change), len(self._before[0]))
            before, raw_before = self._before[:, :known]
            # the last change in the units of then or of now, whichever is less: units move with the states
            before = np.fmin(before, raw_before * (change[:known] / raw[:known]))
            ratios[:known] = (residual[:known] + rounding) / before
            telling[:known] = residual[:known] > _ROUNDING * rounding
        measured = np.isfinite(ratios)
        telling &= measured
        known, largest = telling.any(0), np.where(telling, ratios, 0).max(0)
        self._lately, ratios = np.where(telling, ratios, np.nan), self._larger_of_two(ratios)
        return replace(
            account,
            ratios=ratios,
            measured=measured,
            ratio=np.where(known, largest, account.ratio),
            blind=np.where(known, 0, account.blind + 1),
        )

    @property
    def _safety(self) -> float:
        """Estimates are this much larger than what is expected; elsewhere the larger of two ratios is the margin."""
        return (_SAFETY if self.trusts_slopes else 1.0) * (2.0 if self.patient else 1.0)

    def _larger_of_two(self, ratios: np.ndarray) -> np.ndarray:
        """The ratios, or those of the round before where they are larger; NaN where this round measured none."""
        if self._lately is None or self.trusts_slopes:
            return ratios
        both = min(len(ratios), len(self._lately))
        larger = np.fmax(ratios[:both], self._lately[:both])
        return np.concatenate([np.where(np.isnan(ratios[:both]), np.nan, larger), ratios[both:]])

    def slide(self, accepted: Index, kept: Index) -> None:
        """Move to the window's new first state."""
        assert self._round is not None
        assert self._account is not None
        error, allowed, change = self._round
        position, sample = np.arange(len(error))[:, None], np.arange(len(accepted))
        left = np.where(position < accepted, error, 0).max(0) / self._safety
        self.worst = left if self.worst is None else np.maximum(self.worst, left)
        moved, at = accepted > 0, np.maximum(accepted - 1, 0)
        self._account = replace(
            self._account,
            error=np.where(moved, error[at, sample], self._account.error),
            allowed=np.where(moved, allowed[at, sample], self._account.allowed),
        )
        position = position + accepted
        at, beyond = np.minimum(position, len(error) - 1), position >= kept
        self._before = np.where(beyond, np.nan, change[:, at, sample])
        assert self._lately is not None
        self._lately = np.where(beyond, np.nan, self._lately[at, sample])

    def restart(self) -> None:
        """Forget the changes of the states ahead."""
        self._before = self._lately = None

    @np.errstate(divide="ignore")
    def widest(self, width: int) -> int:
        """The width up to which the sum of the ratios stays below ``log(tolerance / rounding)``.

        In a window whose ratios add up to L, changes grow up to ``exp(L)`` times before they fall, and rounding with
        them (the largest term of ``L^k / k!``).
        """
        if self._account is None or self._rounding is None:
            return width
        known = np.isfinite(self._account.ratio) & np.isfinite(self._rounding)  # neither failed nor exact
        if not known.any():
            return width
        room = -np.log(self._rounding[known].max())
        return int(np.clip(room / self._account.ratio[known].max(), 1, width))


@dataclass(frozen=True)
class _Account:
    """What is known of each sample, in tolerances.

    Attributes:
        error: estimated error of the window's first state, ``(B,)``.
        allowed: allowance of that state, ``(B,)``.
        ratio: largest ratio of residual to change in the last round that measured one, ``(B,)``.
        blind: rounds since a ratio was measured, ``(B,)``.
        ratios: ratios of the window's steps, ``(W, B)``.
        measured: whether each could be measured in this round, ``(W, B)``.
    """

    error: np.ndarray
    allowed: np.ndarray
    ratio: np.ndarray
    blind: np.ndarray
    ratios: np.ndarray
    measured: np.ndarray

    @staticmethod
    def opened(change: np.ndarray) -> "_Account":
        """At the start of a solve."""
        zero = np.zeros_like(change[0])
        return _Account(zero, zero, np.full_like(zero, np.inf), zero, change, np.isnan(change))


def _arriving(change: np.ndarray) -> np.ndarray:
    """The changes of the states before each step, from those of the states after it, ``(..., W, B)`` both."""
    return np.concatenate([np.zeros_like(change[..., :1, :]), change[..., :-1, :]], -2)


def _departing(fits: np.ndarray) -> np.ndarray:
    """Of the states after each step, what holds of those before it; False for the last, which no step leaves from."""
    return np.concatenate([fits[1:], np.zeros_like(fits[:1])])


def _scan(a: np.ndarray, c: np.ndarray) -> np.ndarray:
    """`recurrence` on the host, for a ``(W, B)`` not negative and c ``(2, W, B)``."""
    shift = 1
    while shift < len(a):
        c[:, shift:] += a[shift:] * c[:, :-shift]
        a = np.concatenate([a[:shift], np.minimum(a[shift:] * a[:-shift], _HUGE)])
        shift *= 2
    return c
