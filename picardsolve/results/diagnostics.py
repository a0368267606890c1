"""Warnings of a solve that went badly: one sentence each, with the remedy."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.results.history import Stacked

STIFF = 10.0  # |lambda| h above which explicit steps and Picard iteration are hopeless; see `theory.is_stiff`
_GROWS = 30.0  # growth of errors that a warning is worth
_STALLED = 8  # rounds of one step each
_SAVED = 0.2  # share of the rounds that a solve has to save to be worth its work


class ConvergenceWarning(UserWarning):
    """A solve converged badly, or its result may be less accurate than it seems."""


@dataclass(frozen=True)
class Facts:
    """What is known of a solve.

    Attributes:
        rounds: what its rounds did.
        steps: of the grid, N.
        denoises: whether the term is a denoiser.
        growth: ``(B,)`` the largest growth of errors along the solution, between any two times; NaN where not known.
        errors: ``(T, B)`` estimated root mean square errors; NaN where not known.
        rounding: ``(T, B)`` unit roundoff times the size of each state.
        allowed: ``(T, B)`` root mean square error that the tolerance allows of each state; 0 where none is allowed.
        implicit: whether the steps are equations, each of which takes the sequential solver several rounds.
    """

    rounds: Stacked
    steps: int
    denoises: bool
    growth: Tensor
    errors: Tensor
    rounding: Tensor
    allowed: Tensor
    implicit: bool = False


def diagnose(facts: Facts) -> tuple[str, ...]:
    """The warnings that a solve deserves."""
    found = [*_of_precision(facts)]
    count, steps, rounds = len(facts.rounds.begin), facts.steps, facts.rounds
    if not facts.denoises and rounds.decay > STIFF and count > _SAVED * steps:
        found.append(
            f"stiff: |lambda| times the window's length is {rounds.decay:.3g}, too much for the iteration to converge "
            "fast; pass iteration=picardsolve.Secant() or Newton(), or a narrower window."
        )
    if not bool((facts.allowed > 0).any()):  # the exact answer was asked for
        return tuple(found)
    if rounds.longest_stall >= _STALLED:
        remedy = "shorter steps" if facts.implicit else "another iteration (picardsolve.Secant(), Newton())"
        found.append(
            f"stall: {rounds.longest_stall} rounds in a row accepted a single step; pass {remedy}, a narrower window, "
            "or solve this stretch with picardsolve.sequential."
        )
    slow = steps >= _STALLED and count > (1 - _SAVED) * steps
    if slow and not facts.implicit and rounds.width.max(initial=1) > 1:
        found.append(
            f"uneconomic: {steps} steps took {count} rounds; picardsolve.sequential takes as long for less work: pass "
            "a wider window, a larger tolerance or another iteration, or see picardsolve.analyze."
        )
    return tuple(found)


def _of_precision(facts: Facts) -> Iterator[str]:
    """Warnings of errors that have grown, and of tolerances below the rounding of a state."""
    growth, asked = facts.growth.nan_to_num(0), facts.allowed > 0
    below = torch.where(asked, facts.rounding / facts.allowed, 0).nan_to_num(0).amax(0)  # rounding in tolerances
    excess = float(torch.where(asked, facts.errors / facts.allowed, 0).nan_to_num(0).max())
    largest = float(growth.max())
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
