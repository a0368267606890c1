"""Warnings of a solve that went badly: one sentence each, with the remedy."""

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from picardsolve.results.history import History

STIFF = 10.0  # |lambda| h above which explicit steps and Picard iteration are hopeless; see `theory.is_stiff`
_GROWS = 30.0  # growth of errors that a warning is worth
_STALLED = 8  # rounds of one step each
_SAVED = 0.2  # share of the rounds that a solve has to save to be worth its work


class ConvergenceWarning(UserWarning):
    """A solve converged badly, or its result may be less accurate than it seems."""


class Facts(Protocol):
    """What is known of a solve. What no warning needs is not asked for, and need not be computed."""

    @property
    def steps(self) -> int:
        """N, of the grid."""
        ...

    @property
    def denoises(self) -> bool:
        """Whether the term is a denoiser."""
        ...

    @property
    def implicit(self) -> bool:
        """Whether the steps are equations, each of which takes the sequential solver several rounds."""
        ...

    @property
    def history(self) -> History:
        """The rounds."""
        ...

    @property
    def largest_growth(self) -> Tensor:
        """The largest growth of errors along the solution, between any two times, ``(B,)``; NaN where not known."""
        ...

    @property
    def errors(self) -> Tensor:
        """Estimated root mean square errors, ``(T, B)``; NaN where not known."""
        ...

    @property
    def rounding(self) -> Tensor:
        """Unit roundoff times the size of each state, ``(T, B)``."""
        ...

    @property
    def allowed(self) -> Tensor:
        """Root mean square error that the tolerance allows of each state, ``(T, B)``; 0 where none is allowed."""
        ...


def diagnose(facts: Facts) -> tuple[str, ...]:
    """The warnings that a solve deserves."""
    found, steps = [*_of_precision(facts)], facts.steps
    _, stride, width = facts.history.counts()
    count = len(stride)
    decay = facts.history.stacked().decay if count > _SAVED * steps and not facts.denoises else 0.0
    if decay > STIFF:
        found.append(
            f"stiff: |lambda| times the window's length is {decay:.3g}, too much for the iteration to converge fast; "
            "pass iteration=picardsolve.Secant() or Newton(), or a narrower window."
        )
    if not bool((facts.allowed > 0).any()):  # the exact answer was asked for
        return tuple(found)
    stall = facts.history.longest_stall
    if stall >= _STALLED:
        remedy = "shorter steps" if facts.implicit else "another iteration (picardsolve.Secant(), Newton())"
        found.append(
            f"stall: {stall} rounds in a row accepted a single step; pass {remedy}, a narrower window, or solve this "
            "stretch with picardsolve.sequential."
        )
    slow = steps >= _STALLED and count > (1 - _SAVED) * steps
    if slow and not facts.implicit and width.max(initial=1) > 1:
        found.append(
            f"uneconomic: {steps} steps took {count} rounds; picardsolve.sequential takes as long for less work: pass "
            "a wider window, a larger tolerance or another iteration, or see picardsolve.analyze."
        )
    return tuple(found)


def _of_precision(facts: Facts) -> Iterator[str]:
    """Warnings of errors that have grown, and of tolerances below the rounding of a state."""
    growth, asked = facts.largest_growth.nan_to_num(0), facts.allowed > 0
    below = torch.where(asked, facts.rounding / facts.allowed, 0).nan_to_num(0).amax(0)  # rounding in tolerances
    largest, excess = float(growth.max()), 0.0
    if largest > _GROWS:
        excess = float(torch.where(asked, facts.errors / facts.allowed, 0).nan_to_num(0).max())
    if largest > _GROWS and bool((below * growth > 1).any()):
        yield (
            f"unpredictable: rounding errors grow up to {largest:.1g} times along this solution, beyond the tolerance; "
            "no solver, sequential or parallel, can give these digits: solve a shorter time, or in float64."
        )
    elif largest > _GROWS and excess > 1:
        yield (
            f"growth: an error made on the way is up to {largest:.2g} times as large later on; the solution may be "
            f"{excess:.2g} tolerances away: see solution.certificate.recheck(), or pass a smaller tolerance."
        )
    if bool((below > 1).any()):
        yield (
            f"precision: the tolerance is {float(below.max()):.2g} times smaller than the rounding of a state; use "
            "float64, or a larger tolerance."
        )


def half_precision(dtype: torch.dtype, tolerance: float) -> str | None:
    """The warning, before any work, of a tolerance that a state in half precision cannot show; None without reason."""
    eps = torch.finfo(dtype).eps
    if dtype not in (torch.float16, torch.bfloat16) or not 0 < tolerance < eps or math.isinf(tolerance):
        return None
    return (
        f"half precision: a tolerance of {tolerance:.1g} is below the {eps:.1g} that {dtype} can show; pass "
        f"tol={2 * eps:.1g} or a state in float32."
    )
