"""Secant iteration of low rank."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.slopes import HIGHEST, LOWEST, SEEN, expected_slope, sampled
from picardsolve.fixed_point.sweep import Memory, Swept
from picardsolve.integrators.base import Steps
from picardsolve.problem.checks import check_positive_integer
from picardsolve.problem.recurrence import arriving, propagated, recurrence_of, rms


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
        """``Y[n+1] = F[n] + c_n (Y[n] - X[n]) + R_n' (S_n S_n' + ridge)^-1 S_n d_n``."""
        images, states, expected = steps.images(), x[:-1], expected_slope(steps, x)
        seen = _Seen.of(memory, states, images, expected) if memory else _Seen.at_first(states, expected, self.memory)
        values = images.clone()
        residual = torch.sub(images, x[1:], out=scratch)
        size, carried = rms(residual), recurrence_of(seen.slope, residual.numel())
        grouped = len(images) // (self.neighbours + 1) * (self.neighbours + 1)
        if memory and grouped:  # the last steps are few, and furthest from being accepted
            d = arriving(carried(residual[..., sampled(residual.shape[-1])].clone()))
            more = self._correction(seen, expected, d[:grouped])
            residual[:grouped].add_(more)
            images[:grouped].add_(more)
        y, change = propagated(images, seen.slope, carried(residual))
        kept = states, values, torch.ones_like(seen.slope), seen.slope - expected, *seen.directions, *seen.excess
        return Swept(y, change, size, seen.slope[..., 0], kept)

    def _correction(self, seen: "_Seen", expected: Tensor, d: Tensor) -> Tensor:
        """What the directions add to the first steps, ``(W, B, D)``; ``d``: changes of their states, sampled."""
        width, samples, _ = d.shape

        def grouped(*rows: Tensor) -> Tensor:  # m times (W, B, K) to (B groups, m steps in a group, K)
            cut = [part[:width].unflatten(0, (-1, self.neighbours + 1)).permute(2, 0, 1, 3) for part in rows]
            return torch.cat(cut, 2).flatten(0, 1)

        some = sampled(seen.directions[0].shape[-1])
        near = grouped(*(part[..., some] for part in seen.directions))
        gram = torch.baddbmm(_multiple_of_one(self.ridge, near.shape[1], near.dtype, near.device), near, near.mT)
        weights = torch.linalg.solve_ex(gram, near @ grouped(d).mT)[0].mT  # of each direction in each step's change
        known = grouped(expected - seen.slope) * weights  # less what the slope has of it
        more = torch.cat([weights, known], -1) @ grouped(*seen.excess, *seen.directions)
        return more.unflatten(0, (samples, -1)).flatten(1, 2).transpose(0, 1)


@dataclass(frozen=True)
class _Seen:
    """What the rounds so far have shown of each step.

    Attributes:
        slope: ``(W, B, 1)``.
        directions: the last changes of the state, scaled to a length of one, ``(W, B, D)`` each; zero for none.
        excess: for each of these, the change of the value beyond the expected one, likewise.
    """

    slope: Tensor
    directions: tuple[Tensor, ...]
    excess: tuple[Tensor, ...]

    @staticmethod
    def at_first(states: Tensor, expected: Tensor, memory: int) -> "_Seen":
        """Nothing yet."""
        none = (torch.zeros_like(states),) * memory
        return _Seen(expected, none, none)

    @staticmethod
    def of(memory: Memory, states: Tensor, images: Tensor, expected: Tensor) -> "_Seen":
        """With the changes since the last round."""
        before, values, seen, beyond, *kept = memory
        dx, df, some = states - before, images - values, sampled(states.shape[-1])
        largest = torch.linalg.vector_norm(dx[..., some], torch.inf, -1, keepdim=True)
        size = torch.linalg.vector_norm(states[..., some], torch.inf, -1, keepdim=True)
        dx, df = dx.div_(largest), df.div_(largest)  # the squares of small changes would underflow
        length = torch.linalg.vector_norm(dx[..., some], dim=-1, keepdim=True)
        length.masked_fill_(largest * seen <= SEEN * size, torch.nan)
        dx, df = dx.div_(length), df.div_(length)
        along = torch.linalg.vecdot(dx[..., some], df[..., some])[..., None]
        slope = torch.where(along == along, along, expected + beyond).clamp_(LOWEST, HIGHEST)
        latest = df.addcmul_(expected, dx, value=-1).nan_to_num_(0, 0, 0), dx.nan_to_num_(0, 0, 0)
        count = len(kept) // 2
        return _Seen(slope, (latest[1], *kept[: count - 1]), (latest[0], *kept[count:-1]))


@lru_cache(maxsize=64)
def _multiple_of_one(factor: float, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return factor * torch.eye(size, dtype=dtype, device=device)
