"""Secant iteration of low rank."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.slopes import changes, clipped, expected_slope, from_expected, ones, sampled, slope_along
from picardsolve.fixed_point.sweep import Memory, Swept, fitted
from picardsolve.integrators.base import Steps
from picardsolve.problem.checks import check_positive_integer
from picardsolve.problem.recurrence import Recurrence, arriving, propagated, rms


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
        memory: number of changes of each step that are kept, 1 by default.
        neighbours: number of steps that a step shares its changes with, 3 by default: groups of four.
        ridge: regularization, > 0; the larger it is, the nearer is the sweep to `Secant`. 0.1 by default.

    Raises:
        TypeError, ValueError: an argument has a wrong type or value.
    """

    memory: int = 1
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
        images, expected = steps.images(), expected_slope(steps, x)
        now = torch.cat([x[:-1], images], -1)
        seen = _Seen.of(memory, now, expected) if memory else _Seen.at_first(expected)
        residual = torch.sub(images, x[1:], out=scratch)
        size, carried = rms(residual), Recurrence(seen.slope, residual.numel())
        if seen.pairs:  # of the first steps; those behind are new
            count = len(seen.pairs[0])
            d = arriving(carried.of_copy(residual[..., sampled(residual.shape[-1])]))
            more = self._correction(seen, d[:count])
            residual[:count].add_(more)
            images[:count].add_(more)
        y, change = propagated(images, seen.slope, carried(residual))
        numbers = torch.cat([ones(expected.shape, expected.dtype, expected.device), seen.beyond], -1)
        older = seen.pairs or (torch.zeros_like(now),) * self.memory
        return Swept(y, change, size, seen.slope[..., 0], (now, numbers, *older[: self.memory - 1]))

    def _correction(self, seen: "_Seen", d: Tensor) -> Tensor:
        """What the directions add to the first steps, ``(W, B, D)``; ``d``: changes of their states, sampled."""
        width, samples, _ = d.shape
        more = -width % (self.neighbours + 1)  # steps that fill the last group; nothing was seen of them

        def grouped(*rows: Tensor) -> Tensor:  # m times (W, B, K) to (B groups, m steps in a group, K)
            full = [pad(part[:width], (0, 0, 0, 0, 0, more)) if more else part[:width] for part in rows]
            cut = [part.unflatten(0, (-1, self.neighbours + 1)).permute(2, 0, 1, 3) for part in full]
            return torch.cat(cut, 2).flatten(0, 1)

        pairs = grouped(*seen.pairs)
        near = pairs[..., : pairs.shape[-1] // 2][..., sampled(pairs.shape[-1] // 2)]
        gram = torch.baddbmm(_multiple_of_one(self.ridge, near.shape[1], near.dtype, near.device), near, near.mT)
        weights = torch.linalg.solve_ex(gram, torch.bmm(near, grouped(d).mT))[0].mT  # of directions in steps' changes
        followed = torch.bmm(weights, pairs).unflatten(0, (samples, -1)).flatten(1, 2).transpose(0, 1)
        along, beyond = (followed[:width] if more else followed).chunk(2, -1)
        return beyond.addcmul(seen.beyond[:width], along, value=-1)  # the slope has a part of it already


@dataclass(frozen=True)
class _Seen:
    """What the rounds so far have shown of each step.

    Attributes:
        slope: ``(W, B, 1)``.
        beyond: ``(W, B, 1)``, the slope less the expected one.
        pairs: the last changes of the state, scaled to a length of one, with the changes of the step map's value beyond
            the expected ones behind them, for the first steps, which have been seen before, ``(<= W, B, 2 D)`` each;
            zero where there is none.
    """

    slope: Tensor
    beyond: Tensor
    pairs: tuple[Tensor, ...] = ()

    @staticmethod
    def at_first(expected: Tensor) -> "_Seen":
        """What is expected."""
        slope = clipped(expected)
        return _Seen(slope, slope - expected)

    @staticmethod
    def of(memory: Memory, now: Tensor, expected: Tensor) -> "_Seen":
        """With what has changed since the last round, up to ``now``: states and values side by side."""
        before, numbers, *older = memory
        seen, beyond = numbers.chunk(2, -1)
        count = len(before)
        pair, _ = changes(now[:count], before, now.shape[-1] // 2, seen)
        dx, df = pair.chunk(2, -1)
        slope = from_expected(slope_along(dx, df, expected[:count] + beyond), expected)
        df.addcmul_(expected[:count], dx, value=-1)
        older = fitted(tuple(older), count)
        return _Seen(slope, slope - expected, (pair.nan_to_num_(0, 0, 0), *older))


@lru_cache(maxsize=64)
def _multiple_of_one(factor: float, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return factor * torch.eye(size, dtype=dtype, device=device)
