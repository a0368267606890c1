"""Which states of a window may be left behind.

Norms are taken where the states are; what is made of them is small, and done in numpy on the host, where an operation
starts sooner: each rule waits for the device once a round.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.sweep import Swept
from picardsolve.integrators.base import Chain, Index
from picardsolve.problem.recurrence import rms
from picardsolve.problem.tolerances import Stop, Tolerance

_HUGE = 1e200  # growth beyond it is as bad
_TINY = 1e-6  # slopes are taken for no smaller in a product
_THRIFT = 1e4  # that what a step may spend is divided by at most
_ROUNDING = 10.0  # changes and residuals below so many units of rounding say nothing of those above
_FORESEEN = 4.0  # units of rounding of a change that no sweep foresees: it is added to, and may cancel
_ASTRAY = 2.0  # times the size of a state, to which no step takes it
_SAFETY = 2.0  # estimates are 0.3 to 3 times the true error, see docs/benchmarks.md


class Stopping(ABC):
    """A rule, with what it remembers of the rounds of one solve.

    Attributes:
        tolerance: what it is about.
        estimates: what it let the last round estimate, as `Estimates` has it; None for a rule that does not.
    """

    tolerance: Tolerance
    estimates: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    @abstractmethod
    def judge(self, swept: Swept, noise: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """Judge the states that a sweep made.

        Args:
            swept: of W steps of B samples.
            noise: standard deviation of each step's noise, ``(W, B)``, or None where there is none.

        Returns:
            ``(W, B)`` booleans: the leading ones, and of an explicit chain the state after them, may be left; and the
            root mean square of each change, ``(W, B)``.
        """

    def slide(self, stride: Index, last: Index) -> None:  # noqa: B027
        """Learn that ``stride[s]`` steps of sample s were left, and that the states up to ``last[s]`` are kept."""

    def restart(self) -> None:  # noqa: B027
        """Forget the states ahead."""

    def widest(self, width: int) -> int:
        """The widest window, up to ``width``, that arithmetic is precise enough for, as far as can be told."""
        return width


@dataclass
class Increment(Stopping):
    """A state may be left when a round changes it by no more than the tolerance (Shih et al. 2023, section 3.2).

    That is no bound on its error, and is often a round late.
    """

    tolerance: Tolerance

    def judge(self, swept: Swept, noise: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """Compare changes with the tolerance."""
        scaled, size = _on_host(*self.tolerance.measure(swept.change, swept.y, noise))
        return scaled <= 1, size


@dataclass
class Residuals(Stopping):
    """A state may be left when its change, and the residuals up to it, added up, are within the tolerance.

    The sum is what Picard iteration would change the state by at most, whatever the iteration made of it: an iteration
    that foresees much changes states by little, also where it is wrong.
    """

    tolerance: Tolerance

    @np.errstate(all="ignore")
    def judge(self, swept: Swept, noise: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """Compare changes and sums of residuals with the tolerance."""
        measured = self.tolerance.measure(swept.change, _nearer(swept, self.tolerance), noise)
        if swept.residual is None or self.tolerance.nothing:
            scaled, size = _on_host(*measured)
            return scaled <= 1, size
        scaled, size, residual = _on_host(*measured, swept.residual)
        scaled = np.where(np.isfinite(size), scaled, np.inf)
        total = np.where(size > 0, residual * (scaled / size), 0).cumsum(0)
        return np.maximum(scaled, total) <= 1, size


@dataclass
class ErrorEstimate(Stopping):
    """A state may be left when its estimated distance to the sequential solution is within the tolerance.

    The new states have residuals ``Phi_n(Y[n]) - Y[n+1]`` that the next round would show. They are predicted from what
    this round showed of the last sweep: ``q_n = |F[n] - X[n+1]| / |change of X[n] in the last round|`` is how much of a
    change the iteration failed to foresee, so that ``q_n |Y[n] - X[n]|`` is to be expected now:
    ``E[n+1] = E[n] + 2 q_n |Y[n] - X[n]|``, from the error that the window's first state was left with; the 2 is for
    safety. How errors grow once they are made is not for a window to know: slopes, seen along one change after another,
    have products that say nothing of it where solutions oscillate. It is measured along the whole solution, see
    `growth`. A step may spend ``1 / N (1 + L)`` of the tolerance, L the sum over the grid of what steps change changes
    by, as this window's do: on orbits errors grow about that much, and rounds grow with its logarithm only.

    A denoiser's steps forgive: there slopes c are believed, and carry errors on, ``E[n+1] = |c_n| E[n] + ...``. What
    may be spent grows by what the step forgives, too, and is divided by how much an error grows in the window ahead:
    ``A[n+1] = |c_n| A[n] + (max(1 - |c_n|, 0) / 2 + 1 / N) / max(1, |c_{n+1}|, |c_{n+1} c_{n+2}|, ...)`` in units of
    the tolerance.

    A step that has been seen only once takes the largest ratio of those seen twice in this round, or in the last that
    had one; where there was none in two rounds, a step is kept to be seen again. Changes of the size of rounding
    measure nothing, and residuals of that size are taken for as large as rounding can be; no ratio is taken for less
    than four units of rounding. Under Newton's method what is missed grows with the square of a change: there every
    step is kept to be seen twice.

    Args:
        tolerance: what errors are measured by.
        length: steps of the grid, N.
        forgets: whether slopes are believed, as of a denoiser, whose steps draw all states towards the data.
        held: whether states are left by steps with this round's outputs held fixed, as a pipeline's own scheduler takes
            them, and not by the sweep: what the sweep made of the slope, ``|c_n - 1| |Y[n] - X[n]|``, is then missing.
        implicit: whether steps are equations. A residual then comes of the change of either state of a step, the larger
            of which takes the place of the first one's; and no state is exact because the one before it is.
        thrifty: whether a step's share is divided by ``1 + L``; not where the tolerance has the growth in it.

    Attributes:
        worst: ``(B,)`` the largest error that a state was left with, without the factor for safety.
    """

    tolerance: Tolerance
    length: int
    forgets: bool = True
    held: bool = False
    implicit: bool = False
    thrifty: bool = True
    _account: "_Account | None" = field(init=False, default=None)
    _rounding: np.ndarray | None = field(init=False, default=None)  # of the states, in units of the tolerance, (B,)
    _before: np.ndarray | None = field(init=False, default=None)  # changes of the last round, (W, B), NaN for new steps
    _round: tuple[np.ndarray, np.ndarray, np.ndarray] | None = field(init=False, default=None)
    estimates: tuple[np.ndarray, np.ndarray, np.ndarray] | None = field(init=False, default=None)
    worst: np.ndarray | None = field(init=False, default=None)

    @np.errstate(all="ignore")
    def judge(self, swept: Swept, noise: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """Estimate errors, and compare them with what may be spent."""
        scaled, size, residual, signed = self._norms(swept, noise)
        assert self._rounding is not None
        change = np.maximum(_arriving(scaled), scaled) if self.implicit else _arriving(scaled)
        residual = None if residual is None else residual * (scaled / size)
        account = self._account = self._measured(residual, change, self._rounding)
        ratio = np.where(account.measured, account.ratios, np.inf if swept.tangent else account.ratio)
        tiny = change <= _ROUNDING * self._rounding
        ratio = np.where(tiny, np.minimum(ratio, 1), ratio)
        ratio = np.maximum(ratio, _FORESEEN * torch.finfo(swept.y.dtype).eps)
        if self.held and signed is not None:
            ratio = ratio + abs(signed - 1)
        expected = np.where(change == 0, 0, _SAFETY * ratio * change)
        slope = abs(signed) if signed is not None and self.forgets else None
        share = self._share(slope, account.measured) if slope is not None else self._even_share(account, signed, size)
        error, allowed = self._carried(slope, np.stack([expected, share]), account)
        self._round = error, allowed, np.where(tiny | ~np.isfinite(change), np.nan, change)
        unknown = np.full_like(size, np.nan)
        self.estimates = error / allowed, account.ratios, unknown if signed is None else signed
        fits = error <= allowed
        if self.implicit:
            return fits, size
        fits[-1] &= account.blind < 2
        return np.concatenate([fits[1:], np.zeros_like(fits[:1])]), size

    def _norms(self, swept: Swept, noise: Tensor | None) -> tuple[np.ndarray, np.ndarray, Any, Any]:
        """On the host: changes in units of the tolerance and as they are, residuals and slopes where there are any."""
        if self._rounding is None:
            rounding = torch.finfo(swept.y.dtype).eps * swept.y
            self._rounding = _on_host(self.tolerance.measure(rounding, swept.y, noise)[0].amax(0))[0]
        measured = self.tolerance.measure(swept.change, _nearer(swept, self.tolerance), noise)
        given = [value for value in (swept.residual, swept.slope) if value is not None]
        scaled, size, *rest = _on_host(*measured, *given)
        scaled = np.where(np.isfinite(size), scaled, np.inf)  # of numbers whose squares overflow nothing is known
        residual = None if swept.residual is None else np.where(np.isfinite(size), rest[0], np.inf)
        return scaled, size, residual, None if swept.slope is None else rest[-1]

    def _carried(self, slope: np.ndarray | None, new: np.ndarray, account: "_Account") -> np.ndarray:
        """What is new in each step, ``(2, W, B)``, carried on from what was left before."""
        left = np.stack([account.error, account.allowed])[:, None]
        if slope is None:
            return left + new.cumsum(1)
        new[:, 0] += slope[0] * left[:, 0]
        return _scan(slope, new)

    def _even_share(self, account: "_Account", signed: np.ndarray | None, like: np.ndarray) -> np.ndarray:
        """What each step may spend of the tolerance where slopes are not believed, ``(W, B)``."""
        if not self.thrifty:
            return np.full_like(like, 1 / self.length)
        known = account.measured.sum(0)
        rate = np.where(account.measured, account.ratios, 0).sum(0)
        if signed is not None:
            rate = rate + abs(np.where(account.measured, signed - 1, 0).sum(0))
        over_all = np.where(known > 0, rate / np.maximum(known, 1), 0) * self.length
        return np.full_like(like, 1) / (self.length * (1 + np.minimum(over_all, _THRIFT)))

    def _share(self, slope: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """What each step may spend of the tolerance, ``(W, B)``."""
        growth = np.log(np.maximum(np.where(measured, slope, 1), _TINY)).cumsum(0)
        ahead = np.exp(np.maximum.accumulate(growth[::-1])[::-1] - growth)
        return (np.maximum(1 - slope, 0) / 2 + 1 / self.length) / ahead

    def _measured(self, residual: np.ndarray | None, change: np.ndarray, rounding: np.ndarray) -> "_Account":
        """The account with this round's ratios; of residuals that may be rounding, at most that much."""
        account = self._account or _Account.opened(change)
        ratios, telling = np.full_like(change, np.nan), np.zeros_like(change, dtype=bool)
        if self._before is not None and residual is not None:
            known = min(len(change), len(self._before))
            ratios[:known] = (residual[:known] + rounding) / self._before[:known]
            telling[:known] = residual[:known] > _ROUNDING * rounding
        measured = np.isfinite(ratios)
        telling &= measured
        known, largest = telling.any(0), np.where(telling, ratios, 0).max(0)
        return replace(
            account,
            ratios=ratios,
            measured=measured,
            ratio=np.where(known, largest, account.ratio),
            blind=np.where(known, 0, account.blind + 1),
        )

    def slide(self, stride: Index, last: Index) -> None:
        """Move to the window's new first state."""
        assert self._round is not None
        assert self._account is not None
        error, allowed, change = self._round
        position, sample = np.arange(len(change))[:, None], np.arange(len(stride))
        left = np.where(position < stride, error, 0).max(0) / _SAFETY
        self.worst = left if self.worst is None else np.maximum(self.worst, left)
        moved, at = stride > 0, np.maximum(stride - 1, 0)
        self._account = replace(
            self._account,
            error=np.where(moved, error[at, sample], self._account.error),
            allowed=np.where(moved, allowed[at, sample], self._account.allowed),
        )
        position = position + stride
        ahead = change[np.minimum(position, len(change) - 1), sample]
        self._before = np.where(position >= last, np.nan, ahead)

    def restart(self) -> None:
        """Nothing is known of the states ahead."""
        self._before = None

    @np.errstate(divide="ignore")
    def widest(self, width: int) -> int:
        """As wide as the sum of the ratios stays below ``log(tolerance / rounding)``.

        In a window whose ratios add up to L, changes grow up to ``exp(L)`` times before they fall, and rounding with
        them (the largest term of ``L^k / k!``).
        """
        if self._account is None or self._rounding is None:
            return width
        known = np.isfinite(self._account.ratio) & np.isfinite(self._rounding)  # not of one that failed, or is exact
        if not known.any():
            return width
        room = -np.log(self._rounding[known].max())
        return int(np.clip(room / self._account.ratio[known].max(), 1, width))


@dataclass(frozen=True)
class _Account:
    """What is known of each sample, in units of its tolerance.

    Attributes:
        error: of the window's first state, ``(B,)``.
        allowed: what may have been spent on it, ``(B,)``.
        ratio: of residual to change, the largest of the last round that measured any, ``(B,)``.
        blind: rounds since there was one, ``(B,)``.
        ratios: of the window's steps, ``(W, B)``.
        measured: whether they could be measured in this round, ``(W, B)``.
    """

    error: np.ndarray
    allowed: np.ndarray
    ratio: np.ndarray
    blind: np.ndarray
    ratios: np.ndarray
    measured: np.ndarray

    @staticmethod
    def opened(change: np.ndarray) -> "_Account":
        """Nothing is spent, nothing is known."""
        zero = np.zeros_like(change[0])
        return _Account(zero, zero, np.full_like(zero, np.inf), zero, change, np.isnan(change))


def _nearer(swept: Swept, tolerance: Tolerance) -> Tensor:
    """What relative tolerances are relative to: of the old and the new states the smaller numbers.

    A sweep that went astray is not to be excused by the size of where it went.
    """
    if isinstance(tolerance.rtol, Tensor) or tolerance.rtol > 0:
        return torch.minimum(swept.y.abs(), (swept.y - swept.change).abs())
    if not swept.leaps:
        return swept.y
    before = swept.y - swept.change
    return torch.where((rms(swept.y) > _ASTRAY * rms(before))[..., None], before, swept.y)


def _on_host(*values: Tensor) -> np.ndarray:
    """Tensors of one shape in float64, brought over together."""
    return torch.stack(torch.broadcast_tensors(*(value.to(values[0]) for value in values))).cpu().double().numpy()


def _arriving(change: np.ndarray) -> np.ndarray:
    """The changes of the states that steps start from, of those that they lead to: ``(W, B)`` both."""
    return np.concatenate([np.zeros_like(change[:1]), change[:-1]])


def _scan(a: np.ndarray, c: np.ndarray) -> np.ndarray:
    """`recurrence` on the host, a ``(W, B)`` not negative, c ``(2, W, B)``: torch starts as many operations later."""
    shift = 1
    while shift < len(a):
        c[:, shift:] += a[shift:] * c[:, :-shift]
        a = np.concatenate([a[:shift], np.minimum(a[shift:] * a[:-shift], _HUGE)])
        shift *= 2
    return c


def stopping_of(stop: Stop, tolerance: Tolerance, chain: Chain, forgets: bool) -> Stopping:
    """The rule of a name; see `ErrorEstimate` for the last argument."""
    if stop == "increment" or tolerance.nothing:
        return Increment(tolerance)
    return (
        Residuals(tolerance)
        if stop == "residual"
        else ErrorEstimate(tolerance, chain.length, forgets, implicit=chain.implicit)
    )
