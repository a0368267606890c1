"""What a user should know of a solve that went badly, a sentence each, with the remedy."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.history import Round

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
        widest: the widest window that was asked for.
        denoises: whether the term is a denoiser.
        growth: ``(B,)`` by how much errors grew along the solution.
        rounding: ``(B,)`` unit roundoff times the largest state.
        transient: ``(B,)`` the same times how large the iterates of a window grow before they converge.
        allowed: ``(B,)`` root mean square error that the tolerance allows; 0 where none is.
    """

    history: Sequence[Round]
    steps: int
    denoises: bool
    growth: Tensor
    rounding: Tensor
    transient: Tensor
    allowed: Tensor


def diagnose(facts: Facts) -> tuple[str, ...]:
    """The warnings that a solve deserves."""
    return tuple(_found(facts))


def _found(facts: Facts) -> Iterator[str]:
    asked, growth = facts.allowed > 0, float(facts.growth.max())
    unseen = asked & (facts.rounding * facts.growth > facts.allowed)
    if bool(unseen.any()):
        yield (
            f"unpredictable: rounding errors grow up to {growth:.1g} times along this solution, beyond the tolerance; "
            "no solver, sequential or parallel, can give these digits: solve a shorter time, or in float64."
        )
    elif growth > _GROWS:
        yield (
            f"growth: an error made on the way is up to {growth:.2g} times as large later on; see "
            "solution.certificate.recheck(), or pass a tolerance that much smaller."
        )
    if bool((asked & ~unseen & (facts.transient > facts.allowed)).any()):
        yield (
            f"precision: rounding in the iterates, up to {float(facts.transient.max()):.1g}, reaches the tolerance of "
            f"{float(facts.allowed[asked].min()):.1g}; use float64, a narrower window, or a larger tolerance."
        )
    stiffness = 0.0 if facts.denoises else max(map(_stiffness, facts.history), default=0.0)
    if stiffness > _STIFF:
        yield (
            f"stiff: |lambda| times the window's length is {stiffness:.3g}, too much for the iteration to converge "
            "fast; pass iteration=picardsolve.Secant() or Newton(), or a narrower window."
        )
    if _longest_stall(facts.history) >= _STALLED:
        yield (
            f"stall: {_longest_stall(facts.history)} rounds in a row accepted a single step; pass another iteration "
            "(picardsolve.Secant()), a narrower window, or solve this stretch with picardsolve.sequential."
        )
    rounds, widest = len(facts.history), max((int(r.width.max()) for r in facts.history), default=1)
    if widest > 1 and facts.steps >= _STALLED and rounds > (1 - _SAVED) * facts.steps:
        yield (
            f"uneconomic: {facts.steps} steps took {rounds} rounds; picardsolve.sequential takes as long for less "
            "work: pass a wider window, a larger tolerance or another iteration, or see picardsolve.analyze."
        )


def _stiffness(record: Round) -> float:
    """``-sum (c_n - 1)`` over the window: |lambda| times its length, where all that changes decays."""
    if record.estimates is None:
        return 0.0
    decay = (1 - record.estimates.slopes.double().nan_to_num(1, 1, 1)).sum(0)
    return float(decay.max()) if len(decay) else 0.0


def _longest_stall(history: Sequence[Round]) -> int:
    longest = run = 0
    for record in history:
        stuck = (record.stride <= 1) & (record.width > 1)
        run = run + 1 if bool(stuck.any()) else 0
        longest = max(longest, run)
    return longest


def half_precision(dtype: torch.dtype, tolerance: float) -> str | None:
    """What to say, before any work, of a tolerance that a state in half precision cannot show."""
    eps = torch.finfo(dtype).eps
    if dtype not in (torch.float16, torch.bfloat16) or not 0 < tolerance < eps or math.isinf(tolerance):
        return None
    return (
        f"half precision: a tolerance of {tolerance:.1g} is below the {eps:.1g} that {dtype} can show; pass "
        f"tol={2 * eps:.1g} or a state in float32."
    )
