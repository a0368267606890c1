"""Secant iteration of low rank."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, threshold

from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.slopes import HIGHEST, LOWEST, SEEN, expected_slope, sampled
from picardsolve.fixed_point.sweep import Memory, Swept
from picardsolve.integrators.base import Steps
from picardsolve.problem.checks import check_positive_integer
from picardsolve.problem.recurrence import arriving, propagated, recurrence, rms


@dataclass(frozen=True)
class MultiSecant(Iteration):
    """``delta = c (y - x) + R' (S S' + ridge)^-1 S d``: `Secant`, corrected along directions that have been seen.

    The rows of S are the last changes of the states of a group of steps, scaled to length one. The rows of R are what
    the step map's values changed by beyond the scalar slope c. d is the change of the state that `Secant` alone would
    make. Steps close in time have almost the same Jacobian, so a change of a neighbour is nearly as informative as one
    of the step itself: this is a limited-memory Broyden update that steps share. It costs no evaluation, and a sweep is
    a few products of matrices for all groups at once. The default for a `Denoiser`.

    Directions are compared on a sample of about 256 numbers of a large state.

    Args:
        memory: number of changes of each step that are kept, 2 by default.
        neighbours: number of steps that a step shares its changes with, 3 by default: groups of four.
        ridge: regularization, > 0; the larger it is, the nearer is the sweep to `Secant`. 0.1 by default.

    Raises:
        TypeError, ValueError: an argument has a wrong type or value.
    """

    memory: int = 2
    neighbours: int = 3
    ridge: float = 0.1

    def __post_init__(self):
        check_positive_integer("memory", self.memory)
        if type(self.neighbours) is not int or self.neighbours < 0:
            raise ValueError(f"neighbours: expected an integer >= 0, got {self.neighbours!r}; pass 0 to share nothing.")
        if not isinstance(self.ridge, int | float) or not self.ridge > 0:
            raise ValueError(f"ridge: expected a number > 0, got {self.ridge!r}; pass 0.1.")

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """``Y[n+1] = F[n] + c_n (Y[n] - X[n]) + (what the directions add)``."""
        images, states, expected = steps.images(), x[:-1], expected_slope(steps, x)
        seen = (
            _Seen.at_first(states, images, expected, self.memory)
            if not memory
            else _Seen.of(memory, states, images, expected)
        )
        residual = torch.sub(images, x[1:], out=scratch)
        kept, size = seen.memory(images, expected), rms(residual)
        if memory and len(images) > 1:
            more = self._correction(seen, residual)
            residual += more
            images += more
        y, change = propagated(images, seen.slope, residual)
        return Swept(y, change, size, seen.slope[..., 0], kept)

    def _correction(self, seen: "_Seen", residual: Tensor) -> Tensor:
        """What the directions add to each step, ``(W, B, D)``."""
        width, samples, size = residual.shape
        some, group = sampled(size), self.neighbours + 1
        d = arriving(recurrence(seen.slope, residual[..., some].clone()))
        count = -(-width // group)

        def grouped(rows: Tensor) -> Tensor:  # (W, B, m, K) to (B count, group m, K)
            rows = pad(rows, (0, 0, 0, 0, 0, 0, 0, count * group - width)) if width % group else rows
            return rows.unflatten(0, (count, group)).permute(2, 0, 1, 3, 4).reshape(samples * count, -1, rows.shape[-1])

        near, moved = grouped(seen.directions), grouped(d[:, :, None])
        ridge = torch.eye(near.shape[1], dtype=near.dtype, device=near.device).mul_(self.ridge)
        gram = torch.baddbmm(ridge, near, near.mT)
        weights = torch.linalg.solve_ex(gram, near @ moved.mT)[0]  # of each direction in each step's change
        more = weights.mT @ grouped(torch.stack(seen.excess, 2))
        return more.unflatten(0, (samples, -1)).flatten(1, 2)[:, :width].transpose(0, 1)


@dataclass(frozen=True)
class _Seen:
    """What the last rounds have shown of each step.

    Attributes:
        states: ``(W, B, D)``, where the step left from.
        images: ``(W, B, D)``, the values of the step map there.
        slope: ``(W, B, 1)``.
        size: ``(W, B, 1)``, one over the length of the state; 0 for steps that have not been seen.
        directions: ``(W, B, memory, ~256)``, changes of the state, of length one, sampled; zero where there are none.
        excess: for each of these, ``(W, B, D)``, the change of the value beyond the slope.
    """

    states: Tensor
    images: Tensor
    slope: Tensor
    size: Tensor
    directions: Tensor
    excess: tuple[Tensor, ...]

    @staticmethod
    def at_first(states: Tensor, images: Tensor, expected: Tensor, memory: int) -> "_Seen":
        """Nothing but where steps leave from."""
        some = states[..., sampled(states.shape[-1])]
        directions = torch.zeros_like(some)[:, :, None].expand(-1, -1, memory, -1)
        return _Seen(states, images, expected, _size(some), directions, (torch.zeros_like(states),) * memory)

    @staticmethod
    def of(memory: Memory, states: Tensor, images: Tensor, expected: Tensor) -> "_Seen":
        """With the changes since the last round."""
        before, values, directions, numbers, *excess = memory
        size, beyond = numbers.unbind(-1)
        size, some = size[..., None], sampled(states.shape[-1])
        dx, df = ((now - then)[..., some] * size for now, then in ((states, before), (images, values)))
        length = torch.linalg.vector_norm(dx, dim=-1, keepdim=True)
        length = threshold(length, SEEN, torch.nan)  # smaller changes are rounding, and show no slope
        direction = dx / length
        along = torch.linalg.vecdot(direction, df)[..., None] / length
        slope = torch.where(along.abs() < torch.inf, along, expected + beyond[..., None]).clamp(LOWEST, HIGHEST)
        change = (images - values).addcmul_(slope, states - before, value=-1).mul_(size / length)
        latest = direction.nan_to_num_(0, 0, 0)[:, :, None]
        directions = torch.cat([latest, directions[:, :, :-1]], 2)
        excess = change.nan_to_num_(0, 0, 0), *excess[:-1]
        return _Seen(states, images, slope, _size(states[..., some]), directions, excess)

    def memory(self, images: Tensor, expected: Tensor) -> Memory:
        """What the next sweep needs."""
        numbers = torch.cat([self.size, self.slope - expected], -1)
        return self.states, images.clone(), self.directions, numbers, *self.excess


def _size(states: Tensor) -> Tensor:
    return torch.linalg.vector_norm(states, dim=-1, keepdim=True).reciprocal_()
