"""What a user should know of a solve that went badly, a sentence each, with the remedy."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.results.history import Round

_GROWS = 30.0  # times: an error within tolerance is then visible to the naked eye
_STIFF = 10.0  # of |lambda| times the window's length (Prothero & Robinson 1974)
_STALLED = 8  # rounds of one step each
_SAVED = 0.2  # of the rounds, at least, for a solve that was worth it


class ConvergenceWarning(UserWarning):
    """A solve converged badly, or its result is worth less than it seems."""


@dataclass(frozen=True)
class Facts:
    """What is known of a solve.

    Attributes:
        history: its rounds.
        steps: of the grid, N.
        denoises: whether the term is a denoiser.
        growth: ``(B,)`` by how much errors grew along the solution, between any two times; NaN where not known.
        errors: ``(T, B)`` estimated root mean square errors; NaN where not known.
        rounding: ``(T, B)`` unit roundoff times the size of each state.
        allowed: ``(T, B)`` root mean square error that the tolerance allows of each state; 0 where none is.
        implicit: whether the steps are equations, of which the sequential solver solves one in several rounds.
    """

    history: Sequence[Round]
    steps: int
    denoises: bool
    growth: Tensor
    errors: Tensor
    rounding: Tensor
    allowed: Tensor
    implicit: bool = False

    @property
    def below_rounding(self) -> Tensor:
        """``(B,)``: how far rounding is above the tolerance, at most; 0 where no tolerance was asked for."""
        return torch.where(self.allowed > 0, self.rounding / self.allowed, 0).nan_to_num(0).amax(0)

    @property
    def excess(self) -> float:
        """The largest estimated error, in tolerances; 0 where none was asked for, or nothing is known."""
        return float(torch.where(self.allowed > 0, self.errors / self.allowed, 0).nan_to_num(0).max())

    @property
    def asked(self) -> bool:
        """Whether anything but the exact answer was asked for."""
        return bool((self.allowed > 0).any())

    @property
    def windows(self) -> list[Round]:
        """The rounds of a window: `Parareal` has none."""
        return [record for record in self.history if record.step is None]


def diagnose(facts: Facts) -> tuple[str, ...]:
    """The warnings that a solve deserves."""
    return tuple(_found(facts))


def _found(facts: Facts) -> Iterator[str]:
    growth = float(facts.growth.nan_to_num(0).max())
    if growth > _GROWS and bool((facts.below_rounding * facts.growth.nan_to_num(0) > 1).any()):
        yield (
            f"unpredictable: rounding errors grow up to {growth:.1g} times along this solution, beyond the tolerance; "
            "no solver, sequential or parallel, can give these digits: solve a shorter time, or in float64."
        )
    elif growth > _GROWS and facts.excess > 1:
        yield (
            f"growth: an error made on the way is up to {growth:.2g} times as large later on; the solution may be "
            f"{facts.excess:.2g} tolerances away: see solution.certificate.recheck(), or pass a smaller tolerance."
        )
    if bool((facts.below_rounding > 1).any()):
        yield (
            f"precision: the tolerance is {float(facts.below_rounding.max()):.2g} times smaller than the rounding of a "
            "state; use float64, or a larger tolerance."
        )
    stiffness = 0.0 if facts.denoises else max(map(_stiffness, facts.windows), default=0.0)
    if stiffness > _STIFF and len(facts.history) > _SAVED * facts.steps:
        yield (
            f"stiff: |lambda| times the window's length is {stiffness:.3g}, too much for the iteration to converge "
            "fast; pass iteration=picardsolve.Secant() or Newton(), or a narrower window."
        )
    if not facts.asked:
        return
    stalled = _longest_stall(facts.windows)
    if stalled >= _STALLED:
        remedy = "shorter steps" if facts.implicit else "another iteration (picardsolve.Secant(), Newton())"
        yield (
            f"stall: {stalled} rounds in a row accepted a single step; pass {remedy}, a narrower window, or solve this "
            "stretch with picardsolve.sequential."
        )
    rounds, widest = len(facts.history), max((int(r.width.max()) for r in facts.history), default=1)
    if not facts.implicit and widest > 1 and facts.steps >= _STALLED and rounds > (1 - _SAVED) * facts.steps:
        yield (
            f"uneconomic: {facts.steps} steps took {rounds} rounds; picardsolve.sequential takes as long for less "
            "work: pass a wider window, a larger tolerance or another iteration, or see picardsolve.analyze."
        )


def _stiffness(record: Round) -> float:
    """``-sum (c_n - 1)`` over the window: |lambda| times its length, where all that changes decays."""
    if record.estimates is None:
        return 0.0
    decay = (1 - record.estimates.slopes.nan_to_num(1, 1, 1)).sum(0)
    return float(decay.max()) if len(decay) else 0.0


def _longest_stall(history: Sequence[Round]) -> int:
    """Rounds in a row in which a sample accepted one step of many."""
    longest = run = torch.zeros(1, dtype=torch.int64)
    for record in history:
        run = torch.where((record.stride <= 1) & (record.width > 1), run + 1, 0)
        longest = torch.maximum(longest, run)
    return int(longest.max())


def half_precision(dtype: torch.dtype, tolerance: float) -> str | None:
    """What to say, before any work, of a tolerance that a state in half precision cannot show."""
    eps = torch.finfo(dtype).eps
    if dtype not in (torch.float16, torch.bfloat16) or not 0 < tolerance < eps or math.isinf(tolerance):
        return None
    return (
        f"half precision: a tolerance of {tolerance:.1g} is below the {eps:.1g} that {dtype} can show; pass "
        f"tol={2 * eps:.1g} or a state in float32."
    )
