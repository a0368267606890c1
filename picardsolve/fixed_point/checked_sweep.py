"""An iteration from outside the library, held to the contract of `Iteration` in every round.

What stopping rules and certificates conclude from a sweep is true only if the sweep keeps the contract. A damped sweep,
``X + w (P(X) - X)``, would end far from the solution, with small changes and small residuals of its own making.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from picardsolve.fixed_point.slopes import HIGHEST, LOWEST, sampled
from picardsolve.fixed_point.sweep import Memory, Sweep, Swept, fitted
from picardsolve.integrators.step_maps import Steps
from picardsolve.problem.recurrence import arriving, rms

_ROUNDING = 64.0  # units of rounding by which two ways to compute the same number may differ
_CLOSE = 1e-3  # relative difference of a residual that is allowed
_LOST = 0.1  # and of a change, which may lose digits to cancellation where a window diverges
_DIVERGED = 100.0  # sizes of the states: larger changes are of a window that diverges, and may have no digits left
_LOW, _HIGH, _SLACK = 0.7, 1.4, 0.05  # a slope may be so much below the smallest, or above the largest, that is likely
_MOVED = 0.5  # power of the unit of rounding: changes below it, relative to the state, show no slope

_IN_PLACE = "x must not be written to; compute in scratch or in the images"
_EXACT = (
    "y must be F where no state before has changed, at the window's first step always; damp the change of the state "
    "before a step, not the step"
)
_CHANGE = "change must be y - x[1:]"
_RESIDUAL = "residual must be the root mean square of F - x[1:] over a state; or return None"
_SLOPE = "slope must be the factor c in y[n] = F[n] + c[n] (y[n - 1] - x[n]); or return None"


def checked(iteration: Sweep) -> Sweep:
    """The iteration itself if it is the library's, otherwise a `CheckedSweep`."""
    ours = type(iteration).__module__.partition(".")[0] == "picardsolve"
    return iteration if ours else CheckedSweep(iteration)


@dataclass(frozen=True)
class CheckedSweep(Sweep):
    """Sweeps of another iteration, checked. What it does not report is computed.

    The slope is the larger one of what is reported and what is measured, between rounds or else in this sweep. For that
    the memory begins with the last change of each step's state, and with the change of the step map's value that the
    sweep predicted from it.

    Attributes:
        iteration: the other one.
    """

    iteration: Sweep

    def directions(self, size: int, rounds: int) -> Tensor | None:
        """The directions of the other iteration.

        Raises:
            ValueError: they have another shape.
        """
        wanted = self.iteration.directions(size, rounds)
        if wanted is not None and (not isinstance(wanted, Tensor) or wanted.dim() != 2 or wanted.shape[1] != size):
            raise self._broken(f"directions must be a tensor (P, {size}) or None, got {_shape(wanted)}")
        return wanted

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """The sweep of the other iteration.

        Raises:
            TypeError: it returns no `Swept`.
            ValueError: it breaks a rule.
        """
        images, old, memory = steps.images().clone(), x.clone(), fitted(memory, len(x) - 1)
        swept = self.iteration.sweep(steps, x, torch.empty_like(images), memory[2:])
        self._check_shapes(swept, images)
        seen = _Observed.of(swept, images, old, memory[:2])
        broken = {_IN_PLACE: (x != old) & ~(x.isnan() & old.isnan())} | seen.broken(swept, old)
        for rule, found in zip(broken, torch.stack([each.any() for each in broken.values()]).tolist(), strict=True):
            if found:
                raise self._broken(rule)
        some = sampled(images.shape[-1])
        kept = seen.before[..., some], seen.delta[..., some], *swept.memory
        memory = tuple(part.clone() for part in kept)
        return replace(swept, residual=rms(seen.residual), slope=seen.larger_slope(swept), memory=memory)

    def _check_shapes(self, swept: object, images: Tensor) -> None:
        if not isinstance(swept, Swept):
            raise TypeError(
                f"iteration: {self.iteration!r} must return a Swept from sweep, got {type(swept).__name__}."
            )
        width, samples, _ = images.shape
        for name, shape in (("y", images.shape), ("change", images.shape), ("residual", ()), ("slope", ())):
            value, wanted = getattr(swept, name), tuple(shape or (width, samples))
            if value is None and not shape:
                continue
            if not isinstance(value, Tensor) or value.shape != wanted or value.dtype != images.dtype:
                raise self._broken(f"{name} must be a tensor {wanted} of {images.dtype}, got {_shape(value)}")
        if not isinstance(swept.memory, tuple):
            raise self._broken(f"memory must be a tuple of tensors, got {type(swept.memory).__name__}")
        for part in swept.memory:
            if not isinstance(part, Tensor) or part.shape[:2] != (width, samples):
                raise self._broken(f"memory must be tensors ({width}, {samples}, ...), got {_shape(part)}")

    def _broken(self, rule: str) -> ValueError:
        return ValueError(f"iteration: {self.iteration!r} breaks a rule of picardsolve.Iteration: {rule}.")


@dataclass(frozen=True)
class _Observed:
    """What a sweep did, whatever it reports: ``(W, B, D)``, or ``(W, B)`` from ``reach`` on.

    Attributes:
        moved: ``Y - X``.
        before: the change of the state that each step leaves from.
        delta: ``Y - F``.
        residual: ``F - X[1:]``.
        reach: the largest number in the window up to each step.
        slope: between the last two rounds; where that is not known, the one in this sweep.
        known: whether it is the one between rounds.
    """

    moved: Tensor
    before: Tensor
    delta: Tensor
    residual: Tensor
    reach: Tensor
    slope: Tensor
    known: Tensor

    @staticmethod
    def of(swept: Swept, images: Tensor, old: Tensor, last: Memory) -> "_Observed":
        """Observe a sweep; ``last`` is ``before`` and ``delta`` of the sweep before.

        If the sweep before changed a state, and predicted the change ``delta`` of the step map's value, this value has
        now changed by ``delta`` and the residual found now.
        """
        moved, residual = swept.y - old[1:], images - old[1:]
        before, delta = arriving(moved), swept.y - images
        reach = torch.stack([images, old[1:], swept.y, swept.change]).abs().amax((0, -1)).cummax(0).values
        slope, known = _multiple(before, delta), torch.zeros_like(reach, dtype=torch.bool)
        if last:
            changed, predicted = last
            measured = _multiple(changed, predicted + residual[..., sampled(residual.shape[-1])])
            known = measured.isfinite() & (changed.abs().amax(-1) > _unit(reach) ** _MOVED * reach)
            slope = torch.where(known, measured, slope)
        return _Observed(moved, before, delta, residual, reach, slope, known)

    def broken(self, swept: Swept, old: Tensor) -> dict[str, Tensor]:
        """Where each rule is broken, ``(W, B)``; a comparison with what is not finite is false."""
        rounding, size = _ROUNDING * _unit(self.reach) * self.reach, rms(self.residual)
        at_rest = (self.before != 0).any(-1).cumsum(0) == 0
        apart, largest = swept.change - self.moved, torch.maximum(swept.change.abs(), self.moved.abs())
        if swept.cautious:
            apart = torch.where(swept.change.abs() > self.moved.abs(), 0, apart)
        largest = largest.amax(-1)
        diverged = largest.cummax(0).values > _DIVERGED * old.abs().amax((0, -1))
        found = {
            _EXACT: at_rest & (self.delta.abs().amax(-1) > rounding),
            _CHANGE: (apart.abs().amax(-1) > _LOST * largest + rounding) & ~diverged,
        }
        if swept.residual is not None:
            found[_RESIDUAL] = (swept.residual - size).abs() > _CLOSE * size + rounding
        return found if swept.slope is None else found | {_SLOPE: self._other_slope(swept.slope.abs())}

    def _other_slope(self, given: Tensor) -> Tensor:
        """Where a slope is far from the used one and the measured one, although delta is a multiple of the change."""
        used, size, moved = _multiple(self.before, self.delta), rms(self.before), _unit(self.reach) ** _MOVED
        across = rms(self.delta - used[..., None] * self.before)
        clear = self.known & (size > moved * self.reach) & (across <= 10 * moved * size)
        likely = torch.stack([used, self.slope, self.slope.clamp(LOWEST, HIGHEST)]).abs()
        return clear & ~((given >= _LOW * likely.amin(0) - _SLACK) & (given <= _HIGH * likely.amax(0) + _SLACK))

    def larger_slope(self, swept: Swept) -> Tensor:
        """The larger one of the reported slope, 1 where there is none, and the observed one."""
        given = torch.ones_like(self.slope) if swept.slope is None else swept.slope
        return torch.where(self.slope.isfinite() & (self.slope.abs() > given.abs()), self.slope, given)


def _unit(values: Tensor) -> float:
    return torch.finfo(values.dtype).eps


def _multiple(d: Tensor, of: Tensor) -> Tensor:
    """The number c for which ``c d`` is nearest to another vector, ``(W, B)``."""
    return torch.linalg.vecdot(d, of) / torch.linalg.vecdot(d, d)


def _shape(value: object) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
