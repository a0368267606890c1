"""Which states of a window may be left behind."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from picardsolve.history import Estimates
from picardsolve.integrators.base import Chain
from picardsolve.iterations.base import Swept
from picardsolve.recurrence import arriving, recurrence
from picardsolve.tolerances import Tolerance

Stop = Literal["error", "residual", "increment"]

_HUGE = 1e200  # growth beyond it is as bad
_TINY = 1e-6  # slopes are taken for no smaller in a product
_ROUNDING = 10.0  # changes and residuals below so many units of rounding say nothing of those above
_SAFETY = 2.0  # estimates are 0.3 to 3 times the true error, see docs/benchmarks.md


class Stopping(ABC):
    """A rule, with what it remembers of the rounds of one solve.

    Attributes:
        tolerance: what it is about.
        estimates: what it let the last round estimate; None for a rule that does not.
    """

    tolerance: Tolerance
    estimates: Estimates | None = None

    @abstractmethod
    def judge(self, swept: Swept, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Judge the states that a sweep made.

        Args:
            swept: of W steps of B samples.
            noise: standard deviation of each step's noise, ``(W, B)``, or None where there is none.

        Returns:
            ``(W, B)`` booleans: the leading ones, and of an explicit chain the state after them, may be left; and the
            root mean square of each change, ``(W, B)``.
        """

    def slide(self, stride: Tensor, last: Tensor) -> None:  # noqa: B027
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

    def judge(self, swept: Swept, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compare changes with the tolerance."""
        scaled, size = self.tolerance.measure(swept.change, swept.y, noise)
        return scaled <= 1, size


@dataclass
class Residuals(Stopping):
    """A state may be left when its change, and the residuals up to it, added up, are within the tolerance.

    The sum is what Picard iteration would change the state by at most, whatever the iteration made of it: an iteration
    that foresees much changes states by little, also where it is wrong.
    """

    tolerance: Tolerance

    def judge(self, swept: Swept, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compare changes and sums of residuals with the tolerance."""
        scaled, size = self.tolerance.measure(swept.change, swept.y, noise)
        if swept.residual is not None and not self.tolerance.nothing:
            total = torch.where(size > 0, swept.residual * (scaled / size), 0).cumsum(0)
            scaled = torch.maximum(scaled, total)
        return scaled <= 1, size


@dataclass
class ErrorEstimate(Stopping):
    """A state may be left when its estimated distance to the sequential solution is within the tolerance.

    The new states have residuals ``Phi_n(Y[n]) - Y[n+1]`` that the next round would show. They are predicted from what
    this round showed of the last sweep: ``q_n = |F[n] - X[n+1]| / |change of X[n] in the last round|`` is how much of a
    change the iteration failed to foresee, so that ``q_n |Y[n] - X[n]|`` is to be expected now. Slopes c carry the
    errors on, ``E[n+1] = |c_n| E[n] + 2 q_n |Y[n] - X[n]|``, from the error that the window's first state was left
    with; the 2 is for safety.

    What may be spent grows by a share for each step, and by what the step forgives, both divided by how much an error
    of its state grows in the window ahead, as far as slopes were measured there:
    ``A[n+1] = |c_n| A[n] + (max(1 - |c_n|, 0) / 2 + 1 / N) / max(1, |c_{n+1}|, |c_{n+1} c_{n+2}|, ...)`` in units of
    the tolerance. A step that has been seen only once takes the largest ratio of those seen twice in this round, or in
    the last that had one; where there was none in two rounds, a step is kept to be seen again. Changes of the size of
    rounding measure nothing, and residuals of that size are taken for as large as rounding can be. Under Newton's
    method what is missed grows with the square of a change: there every step is kept to be seen twice.

    Args:
        tolerance: what errors are measured by.
        length: steps of the grid, N.
        forgets: whether slopes below 1 are believed. A step of a denoiser draws all states towards the data; elsewhere
            the direction that changes were seen in may shrink while another grows.
        held: whether states are left by steps with this round's outputs held fixed, as a pipeline's own scheduler takes
            them, and not by the sweep: what the sweep made of the slope, ``|c_n - 1| |Y[n] - X[n]|``, is then missing.
        implicit: whether steps are equations. A residual then comes of the change of either state of a step, the larger
            of which takes the place of the first one's; and no state is exact because the one before it is.

    Attributes:
        worst: ``(B,)`` the largest error that a state was left with, without the factor for safety.
    """

    tolerance: Tolerance
    length: int
    forgets: bool = True
    held: bool = False
    implicit: bool = False
    _account: "_Account | None" = field(init=False, default=None)
    _rounding: Tensor | None = field(init=False, default=None)  # of the states, in units of the tolerance, (B,)
    _before: Tensor | None = field(init=False, default=None)  # changes of the last round, (W, B), NaN for new steps
    _round: tuple[Tensor, Tensor, Tensor] | None = field(init=False, default=None)
    estimates: Estimates | None = field(init=False, default=None)
    worst: Tensor | None = field(init=False, default=None)

    def judge(self, swept: Swept, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Estimate errors, and compare them with what may be spent."""
        scaled, size = self.tolerance.measure(swept.change, swept.y, noise)
        if self._rounding is None:
            rounding = torch.finfo(swept.y.dtype).eps * swept.y
            self._rounding = self.tolerance.measure(rounding, swept.y, noise)[0].amax(0)
        change = torch.maximum(arriving(scaled), scaled) if self.implicit else arriving(scaled)
        residual = None if swept.residual is None else swept.residual * (scaled / size)
        account = self._account = self._measured(residual, change, self._rounding)
        ratio = torch.where(account.measured, account.ratios, torch.inf if swept.tangent else account.ratio)
        tiny = change <= _ROUNDING * self._rounding
        ratio = torch.where(tiny, ratio.clamp(max=1), ratio)
        if self.held and swept.slope is not None:
            ratio = ratio + (swept.slope - 1).abs()
        expected = torch.where(change == 0, 0, _SAFETY * ratio * change)
        slope = None if swept.slope is None else swept.slope.abs()
        slope = slope if slope is None or self.forgets else slope.clamp(min=1)
        share = torch.full_like(size, 1 / self.length) if slope is None else self._share(slope, account.measured)
        new, left = torch.stack([expected, share], -1), torch.stack([account.error, account.allowed], -1)
        error, allowed = self._carried(slope, new, left).unbind(-1)
        self._round = error, allowed, change.masked_fill(tiny, torch.nan)
        slope = swept.slope if swept.slope is not None else torch.full_like(size, torch.nan)
        self.estimates = Estimates(error / allowed, account.ratios, slope)
        fits = error <= allowed
        if self.implicit:
            return fits, size
        fits[-1] &= account.blind < 2
        return torch.cat([fits[1:], torch.zeros_like(fits[:1])]), size

    def _carried(self, slope: Tensor | None, new: Tensor, left: Tensor) -> Tensor:
        """What is new in each step, ``(W, B, 2)``, and what was left before, carried on: ``(W, B, 2)``."""
        if slope is None or self.forgets:
            return recurrence(None if slope is None else slope[..., None], new, left)
        growth = slope.double().cumprod(0).clamp(max=_HUGE)[..., None]  # at least 1: nothing is lost in dividing by it
        return ((left + (new / growth).cumsum(0)) * growth).to(new.dtype)

    def _share(self, slope: Tensor, measured: Tensor) -> Tensor:
        """What each step may spend of the tolerance, ``(W, B)``."""
        growth = torch.where(measured, slope, 1).clamp(min=_TINY).log().cumsum(0)
        ahead = (growth.flip(0).cummax(0).values.flip(0) - growth).exp()
        return ((1 - slope).clamp(min=0) / 2 + 1 / self.length) / ahead

    def _measured(self, residual: Tensor | None, change: Tensor, rounding: Tensor) -> "_Account":
        """The account with this round's ratios; of residuals that may be rounding, at most that much."""
        account = self._account or _Account.opened(change)
        ratios, telling = torch.full_like(change, torch.nan), torch.zeros_like(change, dtype=torch.bool)
        if self._before is not None and residual is not None:
            known = min(len(change), len(self._before))
            ratios[:known] = (residual[:known] + rounding) / self._before[:known]
            telling[:known] = residual[:known] > _ROUNDING * rounding
        measured = ratios.isfinite()
        telling &= measured
        known, largest = telling.any(0), torch.where(telling, ratios, 0).amax(0)
        return replace(
            account,
            ratios=ratios,
            measured=measured,
            ratio=torch.where(known, largest, account.ratio),
            blind=torch.where(known, 0, account.blind + 1),
        )

    def slide(self, stride: Tensor, last: Tensor) -> None:
        """Move to the window's new first state."""
        assert self._round is not None
        assert self._account is not None
        error, allowed, change = self._round
        position = torch.arange(len(change), device=change.device)[:, None]
        left = torch.where(position < stride, error, 0).amax(0) / _SAFETY
        self.worst = left if self.worst is None else torch.maximum(self.worst, left)
        at = (stride - 1).clamp(min=0)[None]
        self._account = replace(
            self._account,
            error=torch.where(stride > 0, error.gather(0, at)[0], self._account.error),
            allowed=torch.where(stride > 0, allowed.gather(0, at)[0], self._account.allowed),
        )
        position = position + stride
        moved = change.gather(0, position.clamp(max=len(change) - 1))
        self._before = moved.masked_fill(position >= last, torch.nan)

    def restart(self) -> None:
        """Nothing is known of the states ahead."""
        self._before = None

    def widest(self, width: int) -> int:
        """As wide as the sum of the ratios stays below ``log(tolerance / rounding)``.

        In a window whose ratios add up to L, changes grow up to ``exp(L)`` times before they fall, and rounding with
        them (the largest term of ``L^k / k!``).
        """
        if self._account is None or self._rounding is None:
            return width
        known = self._account.ratio.isfinite() & self._rounding.isfinite()  # not of one that failed, or is exact
        if not bool(known.any()):
            return width
        room = -torch.log(self._rounding[known].max())
        return int(torch.clamp(room / self._account.ratio[known].max(), 1, width))


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

    error: Tensor
    allowed: Tensor
    ratio: Tensor
    blind: Tensor
    ratios: Tensor
    measured: Tensor

    @staticmethod
    def opened(change: Tensor) -> "_Account":
        """Nothing is spent, nothing is known."""
        zero = torch.zeros_like(change[0])
        return _Account(zero, zero, torch.full_like(zero, torch.inf), zero, change, change.isnan())


def stopping_of(stop: Stop, tolerance: Tolerance, chain: Chain, forgets: bool) -> Stopping:
    """The rule of a name; see `ErrorEstimate` for the last argument."""
    if stop == "increment" or tolerance.nothing:
        return Increment(tolerance)
    return (
        Residuals(tolerance)
        if stop == "residual"
        else ErrorEstimate(tolerance, chain.length, forgets, implicit=chain.implicit)
    )
