"""Anderson and triangular Anderson acceleration."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.sweep import Memory, Swept, fitted
from picardsolve.integrators.base import Steps
from picardsolve.problem.checks import check_choice, check_optional_positive_integer, check_positive_integer
from picardsolve.problem.recurrence import linear_sweep, rms


@dataclass(frozen=True)
class Anderson(Iteration):
    """A base sweep ``G``, corrected by the differences of its residual ``R = G(X) - X`` between the last rounds.

    ``Y = X + R - sum_i gamma_i (dX_i + dR_i)``. Here d is a difference of successive rounds, and ``gamma`` is the
    least-squares solution of ``sum_i gamma_i dR_i = R``. Triangular (Tang et al. 2024, ParaTAA): state n has its own
    ``gamma``, from the states up to n, so that later states do not disturb converged ones. Otherwise the window has one
    ``gamma`` (Pokle et al. 2022, DEQ-DDIM). Where no earlier state has changed, the base is not corrected.
    `picardsolve.presets` has the published settings of both.

    A correction may cancel a residual that is not small. So the change that is compared with the tolerance is the
    larger of the base's change and the corrected change.

    Args:
        memory: number of stored differences, at least 1, 2 by default; each costs two windows of states.
        triangular: True, the default: a ``gamma`` for every state. False: one for the window.
        base: "picard", the default, or "exponential".
        ridge: added to the diagonal of the normal equations, relative to their trace; 1e-8 by default.
        order: number of steps over which the base propagates changes (the k-th order equations of ParaTAA). None, the
            default: from the start of the window.
        absolute_ridge: added to the same diagonal, unscaled; 0 by default.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a wrong value.
    """

    memory: int = 2
    triangular: bool = True
    base: Literal["picard", "exponential"] = "picard"
    ridge: float = 1e-8
    order: int | None = None
    absolute_ridge: float = 0.0

    def __post_init__(self):
        check_positive_integer("memory", self.memory)
        check_optional_positive_integer("order", self.order)
        check_choice("base", self.base, ("picard", "exponential"))
        if not isinstance(self.triangular, bool):
            raise TypeError(f"triangular: expected True or False, got {self.triangular!r}.")
        for name, value in (("ridge", self.ridge), ("absolute_ridge", self.absolute_ridge)):
            if not isinstance(value, int | float):
                raise TypeError(f"{name}: expected a number >= 0, got {value!r}.")
            if not value >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {value!r}.")

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """``Y = G(X) - sum_i gamma_i dG_i``, where ``G(X)`` is not yet the sequential solution."""
        y, residual, size = self._base(steps, x, scratch)
        seen, *past = fitted(memory, len(y)) or (torch.zeros_like(y[..., :1]),)
        kept = (seen + 1, residual.clone(), y.clone(), *past)[: 1 + 2 * self.memory]
        if not past:
            return Swept(y, residual, size, memory=kept)
        correction = self._correction((residual, *past[::2]), (y, *past[1::2]), seen)
        moved = (residual != 0).any(-1, keepdim=True).cumsum(0) > 0
        moved = torch.cat([torch.zeros_like(moved[:1]), moved[:-1]])
        usable = moved & correction.isfinite().all(-1, keepdim=True).all(0)
        correction = torch.where(usable, correction, 0.0)
        change = residual - correction
        change = torch.where(change.abs() > residual.abs(), change, residual)
        return Swept(y - correction, change, size, memory=kept, cautious=True)

    def _base(self, steps: Steps, x: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.order is not None:
            return self._base_of_order(self.order, steps, x)
        if self.base == "picard":
            return linear_sweep(steps.images(), None, x, scratch)
        return steps.frozen(x, scratch)

    def _base_of_order(self, order: int, steps: Steps, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``change[n + 1] = r[n] + a_n change[n]``, ``order`` times from ``change = 0``."""
        images = steps.images()
        residual = images - x[1:]
        change, passed = residual, torch.zeros_like(residual)
        for _ in range(min(order, len(images)) - 1):
            before = torch.cat([torch.zeros_like(change[:1]), change[:-1]])
            passed = before if self.base == "picard" else steps.passed(before)
            change = residual + passed
        return images + passed, change, rms(residual)

    def _correction(self, residuals: tuple[Tensor, ...], images: tuple[Tensor, ...], seen: Tensor) -> Tensor:
        """``sum_i gamma_i dG_i``, ``(W, B, D)``, of the current round and earlier ones, newest first."""
        dr, dg = (
            torch.stack([torch.where(seen > age, new - old, 0.0) for age, (new, old) in enumerate(pairwise(rounds))])
            for rounds in (residuals, images)
        )
        scale = dr.abs().amax((0, 1, 3))[:, None]  # otherwise squares of small changes underflow
        dr, r = dr / scale, residuals[0] / scale
        gram, target = torch.einsum("iwbd,jwbd->wbij", dr, dr), torch.einsum("iwbd,wbd->wbi", dr, r)
        if self.triangular:
            gram, target = gram.cumsum(0), target.cumsum(0)
        else:
            gram, target = gram.sum(0, keepdim=True), target.sum(0, keepdim=True)
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        trace = diagonal.sum(-1, keepdim=True)
        absolute = (self.absolute_ridge / scale / scale).clamp(max=torch.finfo(scale.dtype).max ** 0.5)
        diagonal += self.ridge * trace + absolute
        gamma = torch.linalg.solve_ex(gram, target[..., None])[0]
        gamma = torch.where(trace > 0, gamma[..., 0], 0.0)
        return (gamma.movedim(-1, 0)[..., None] * dg).sum(0)
