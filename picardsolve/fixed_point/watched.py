"""Somebody else's iteration, held to the contract of `Iteration` in every round.

What a rule for stopping and a certificate conclude from a sweep is true of sweeps that keep it, and of no others: a
damped one, ``X + w (P(X) - X)``, ends far from the solution with small changes and small residuals of its own making.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from picardsolve.fixed_point.slopes import HIGHEST, LOWEST, sampled
from picardsolve.fixed_point.sweep import Memory, Sweep, Swept
from picardsolve.integrators.base import Steps
from picardsolve.problem.recurrence import arriving, rms

_ROUNDING = 64.0  # units of rounding that two ways to compute the same may differ by
_CLOSE = 1e-3  # likewise of a residual, relative
_SAME = 0.1  # of a change, relative: a sweep may lose digits to cancellation where it diverges
_WILD = 100.0  # sizes of the states: changes beyond are of a window that diverges, and all their digits may be lost
_LOW, _HIGH, _SLACK = 0.7, 1.4, 0.05  # a slope may be off by: parts of the smallest and largest that there is, and both
_MOVED = 0.5  # power of the unit of rounding: changes below it, relative to the state, tell no slope

_RULES = (
    "x must not be written to; compute in scratch or in the images",
    "y must be F where no state before has changed, at the window's first step always; damp the change of the state "
    "before a step, not the step",
    "change must be y - x[1:]",
    "residual must be the root mean square of F - x[1:] over a state; or return None",
    "slope must be the factor c in y[n] = F[n] + c[n] (y[n - 1] - x[n]); or return None",
)


def watched(iteration: Sweep) -> Sweep:
    """An iteration of this library's as it is, of anybody else's within a `Watched`."""
    ours = type(iteration).__module__.partition(".")[0] == "picardsolve"
    return iteration if ours else Watched(iteration)


@dataclass(frozen=True)
class Watched(Sweep):
    """Sweeps of another iteration, checked; what it does not report is computed, slopes as by `Picard`.

    A slope that it reports is held against the one that it used and the one that was seen; errors are then carried on
    by the larger of what it reports and what was seen. It remembers the last change of each step's state and what the
    sweep made of it, before the other's own memory.

    Attributes:
        iteration: somebody else's.
    """

    iteration: Sweep

    def directions(self, size: int, rounds: int) -> Tensor | None:
        """The other's.

        Raises:
            ValueError: they have another shape.
        """
        wanted = self.iteration.directions(size, rounds)
        if wanted is not None and (not isinstance(wanted, Tensor) or wanted.dim() != 2 or wanted.shape[1] != size):
            raise self._broken(f"directions must be a tensor (P, {size}) or None, got {_shape(wanted)}")
        return wanted

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """What the other makes of copies of what it is given.

        Raises:
            TypeError: it returns no `Swept`.
            ValueError: it breaks a rule.
        """
        images, old, own, theirs = steps.images().clone(), x.clone(), memory[:2], memory[2:]
        swept = self.iteration.sweep(steps, x, torch.empty_like(images), theirs)
        self._check_shapes(swept, images)
        moved, residual = swept.y - old[1:], rms(images - old[1:])
        before, made = arriving(moved), swept.y - images
        reach = torch.stack([images, old[1:], swept.y, swept.change]).abs().amax((0, -1)).cummax(0).values
        slack = _ROUNDING * torch.finfo(images.dtype).eps * reach
        seen, known = _seen_slope(own, residual_of=images - old[1:], reach=reach)
        used = torch.linalg.vecdot(before, made) / torch.linalg.vecdot(before, before)
        off = self._off(swept, moved, residual, slack, old.abs().amax((0, -1)))
        lies = self._lies(swept, used, rms(made - used[..., None] * before), rms(before), reach, seen, known)
        exact = (before != 0).any(-1).cumsum(0) == 0  # no state up to here has changed
        at_rest = exact & (made.abs().amax(-1) > slack)
        self._judge(_differs(x, old), at_rest, *off, lies)
        given = torch.ones_like(residual) if swept.slope is None else swept.slope
        largest = torch.where(known & ~(seen.abs() < given.abs()), seen, given)
        unseen = ~known & (used.abs() > given.abs()) & used.isfinite()
        some = sampled(images.shape[-1])
        kept = before[..., some].clone(), made[..., some].clone(), *(part.clone() for part in swept.memory)
        slope = torch.where(unseen, used, largest)
        return replace(swept, residual=residual, slope=slope, memory=kept)

    def _off(self, swept: Swept, moved: Tensor, residual: Tensor, slack: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Where change and residual, ``(W, B)``, are not what they should be."""
        apart, largest = swept.change - moved, torch.maximum(swept.change.abs(), moved.abs()).amax(-1)
        if swept.cautious:
            apart = torch.where(swept.change.abs() > moved.abs(), 0, apart)
        changes = (apart.abs().amax(-1) > _SAME * largest + slack) & (largest.cummax(0).values <= _WILD * size)
        if swept.residual is None:
            return changes, torch.zeros_like(changes)
        return changes, (swept.residual - residual).abs() > _CLOSE * residual + slack

    def _lies(
        self, swept: Swept, used: Tensor, across: Tensor, size: Tensor, reach: Tensor, seen: Tensor, known: Tensor
    ) -> Tensor:
        """Where a slope is far from the one used and the one seen, if a number is all that was used; ``(W, B)``."""
        if swept.slope is None:
            return torch.zeros_like(known)
        unit = torch.finfo(reach.dtype).eps ** _MOVED
        along = known & (size > unit * reach) & (across <= 10 * unit * size)
        likely = torch.stack([used, seen, seen.clamp(LOWEST, HIGHEST)]).abs()
        low, high, slope = likely.amin(0), likely.amax(0), swept.slope.abs()
        return along & ~((slope >= _LOW * low - _SLACK) & (slope <= _HIGH * high + _SLACK))

    def _judge(self, *broken: Tensor) -> None:
        """Raise the first rule that is broken anywhere; comparisons with what is not finite are false."""
        for rule, found in zip(_RULES, torch.stack([each.any() for each in broken]).tolist(), strict=True):
            if found:
                raise self._broken(rule)

    def _check_shapes(self, swept: object, images: Tensor) -> None:
        if not isinstance(swept, Swept):
            raise TypeError(
                f"iteration: {self.iteration!r} must return a Swept from sweep, got {type(swept).__name__}."
            )
        width, samples, size = images.shape
        for name, value, shape in (
            ("y", swept.y, (width, samples, size)),
            ("change", swept.change, (width, samples, size)),
            ("residual", swept.residual, (width, samples)),
            ("slope", swept.slope, (width, samples)),
        ):
            optional = value is None and name in ("residual", "slope")
            if not optional and (not isinstance(value, Tensor) or value.shape != shape or value.dtype != images.dtype):
                raise self._broken(f"{name} must be a tensor {shape} of {images.dtype}, got {_shape(value)}")
        if not isinstance(swept.memory, tuple):
            raise self._broken(f"memory must be a tuple of tensors, got {type(swept.memory).__name__}")
        for part in swept.memory:
            if not isinstance(part, Tensor) or part.shape[:2] != (width, samples):
                raise self._broken(f"memory must be tensors ({width}, {samples}, ...), got {_shape(part)}")

    def _broken(self, rule: str) -> ValueError:
        return ValueError(f"iteration: {self.iteration!r} breaks a rule of picardsolve.Iteration: {rule}.")


def _seen_slope(own: Memory, residual_of: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """The slope between the last two rounds, and where it is known, ``(W, B)`` both.

    A state that changed by d, of whose image the sweep foresaw a change of ``made``, has an image that changed by that
    and by the residual that is found now.
    """
    if not own:
        none = torch.zeros_like(reach)
        return none, none.bool()
    before, made = own
    found = made + residual_of[..., sampled(residual_of.shape[-1])]
    slope = torch.linalg.vecdot(before, found) / torch.linalg.vecdot(before, before)
    unit = torch.finfo(reach.dtype).eps ** _MOVED
    return slope, slope.isfinite() & (before.abs().amax(-1) > unit * reach)


def _differs(x: Tensor, old: Tensor) -> Tensor:
    return (x != old) & ~(x.isnan() & old.isnan())


def _shape(value: object) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
