"""Secant iteration of low rank."""

from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.slopes import differences, expected_slope, latest_slope
from picardsolve.fixed_point.sweep import Memory, Swept
from picardsolve.integrators.base import Steps
from picardsolve.problem.checks import check_positive_integer
from picardsolve.problem.recurrence import rms


@dataclass(frozen=True)
class MultiSecant(Iteration):
    """``delta = c (y - x) + R' (S S' + ridge)^-1 S (y - x)``: `Secant`, corrected along directions that have been seen.

    The rows of S are the last changes of the state of a step and of its neighbours, scaled to length one. The rows of R
    are the changes of the step map's values beyond the scalar slope c. Steps close in time have almost the same
    Jacobian, so a change of a neighbour is nearly as informative as one of the step itself: this is a limited-memory
    Broyden update that steps share. It costs no evaluation, but a sweep takes ``2 memory (2 neighbours + 1)`` passes
    over each state, one step after the other. The default for a `Denoiser`.

    Args:
        memory: number of changes of each step that are kept, 2 by default.
        neighbours: number of steps on either side that share their changes, 2 by default.
        ridge: regularization, > 0; the larger it is, the nearer is the sweep to `Secant`. 0.1 by default.

    Raises:
        TypeError, ValueError: an argument has a wrong type or value.
    """

    memory: int = 2
    neighbours: int = 2
    ridge: float = 0.1

    def __post_init__(self):
        check_positive_integer("memory", self.memory)
        if type(self.neighbours) is not int or self.neighbours < 0:
            raise ValueError(f"neighbours: expected an integer >= 0, got {self.neighbours!r}; pass 0 to share nothing.")
        if not isinstance(self.ridge, int | float) or not self.ridge > 0:
            raise ValueError(f"ridge: expected a number > 0, got {self.ridge!r}; pass 0.1.")

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """``Y[n+1] = F[n] + delta_n(Y[n], X[n])``, one step after the other."""
        images, states, expected = steps.images(), x[:-1], expected_slope(steps, x)
        slope, seen, excess = self._seen(images, states, expected, memory)
        kept = states, images.clone(), slope, torch.ones_like(slope), seen, excess
        change = torch.sub(images, x[1:], out=scratch)
        residual = rms(change)
        near, beyond = self._shared(seen), self._shared(excess)
        weight, more = self._inverse(near), slope - expected
        span = self.memory * (2 * self.neighbours + 1)
        for n in range(1, len(images)):
            around, before = slice(n * self.memory, n * self.memory + span), change[n - 1]
            along = weight[n] @ (near[:, around] @ before[..., None])
            moved = (along.mT @ beyond[:, around])[:, 0]
            predicted = (along.mT @ near[:, around])[:, 0]  # the part of the change that was seen before
            moved.addcmul_(slope[n], before).addcmul_(more[n], predicted, value=-1)
            change[n] += moved
            images[n] += moved
        return Swept(images, change, residual, slope[..., 0], kept)

    def _seen(self, images: Tensor, states: Tensor, expected: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes ``(W, B, 1)``; unit changes and what images did beyond the expected, ``(W, B, memory, D)``."""
        if not memory:
            none = images.new_zeros(*images.shape[:2], self.memory, images.shape[-1])
            return expected, none, none
        before, image_before, slope_before, seen, directions, excess = memory
        dx, df, fresh = differences(states, before, images, image_before, seen)
        length = torch.linalg.vector_norm(dx, dim=-1, keepdim=True)
        dx, df = dx.div_(length), df.div_(length)
        along = torch.linalg.vecdot(dx, df)[..., None]
        slope = latest_slope(along, fresh, slope_before, seen, expected)
        fresh = (fresh & along.isfinite())[..., None]
        new = dx[:, :, None], torch.addcmul(df, expected, dx, value=-1)[:, :, None]
        directions, excess = (
            torch.where(fresh, torch.cat([latest, kept[:, :, :-1]], 2), kept)
            for latest, kept in zip(new, (directions, excess), strict=True)
        )
        return slope, directions, excess

    def _shared(self, rows: Tensor) -> Tensor:
        """``(W, B, memory, D)`` as ``(B, (W + 2 neighbours) memory, D)``, with zeros for neighbours outside."""
        outside = rows.new_zeros(self.neighbours, *rows.shape[1:])
        return torch.cat([outside, rows, outside]).transpose(0, 1).flatten(1, 2)

    def _inverse(self, near: Tensor) -> Tensor:
        """``(S S' + ridge)^-1`` of every step, ``(W, B, p, p)`` with ``p = memory (2 neighbours + 1)``."""
        count = 2 * self.neighbours + 1
        near = near.unflatten(1, (-1, self.memory)).transpose(0, 1)
        width = len(near) - count + 1
        gram = near.new_empty(width, near.shape[1], count, self.memory, count, self.memory)
        for apart in range(count):
            products = near[: len(near) - apart] @ near[apart:].transpose(-1, -2)
            for i in range(count - apart):
                gram[:, :, i, :, i + apart] = products[i : i + width]
                gram[:, :, i + apart, :, i] = products[i : i + width].transpose(-1, -2)
        gram = gram.flatten(4, 5).flatten(2, 3)
        gram.diagonal(dim1=-2, dim2=-1).add_(self.ridge)
        return torch.cholesky_inverse(torch.linalg.cholesky_ex(gram)[0])
