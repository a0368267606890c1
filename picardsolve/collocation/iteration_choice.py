"""Which iteration solves a sample, where the user does not say."""

from collections.abc import Sequence

import numpy as np

from picardsolve.collocation.initial_value import InitialValueProblem
from picardsolve.collocation.march import March
from picardsolve.collocation.sweeps import Choice

# Picard iteration or Newton's method on panels: measured on seven problems
_FEWER = 2.2  # rounds of Picard iteration for one of Newton's method: 1.5 to 12, the median
_MADE = 3.0  # segments that are linearised in a round
_FLIGHT = 8.0  # segments in flight
_POINTS = 10.0  # states of a segment that Jacobians are taken at
_FLOPS = 4e9  # a second, on one core
_OWN = 5e-4, 2e-3  # seconds of a round of either without drift and factorisation
_TIE = 1.5  # the iteration that needs fewer rounds may be slower by this factor
_CHEAP = 1e-2  # seconds of a drift call: below it rows do not decide

_DENSE = 240  # unknowns of a segment's Newton system that are cheap on a CPU whatever the drift costs
_TOO_MANY = 3000  # predicted rounds: a solve without Jacobians is called stiff


def usual_iteration(problem: InitialValueProblem, order: int | None) -> Choice:
    """By the size of a state; "panels" is Newton's method with the algebra of panels."""
    if problem.unknowns * (order or 24) <= _DENSE:
        return "newton"
    return "panels" if problem.takes_jacobians else "secant"


def usual_order(unknowns: int, choice: Choice) -> int:
    """Degree of the polynomials: lower for large states by Newton's method, because its algebra is cubic in it."""
    if choice != "newton":
        return 20
    return 24 if unknowns <= 10 else 16 if unknowns <= 20 else 12


def newton_pays(calls: Sequence[tuple[int, float]], unknowns: int, nodes: int) -> bool:
    """Whether Newton's fewer rounds are worth its Jacobians and its algebra.

    Args:
        calls: rows and seconds of the drift calls so far; their cost is fitted by ``a + b rows``.
        unknowns: numbers that Jacobians are taken with respect to.
        nodes: of a segment.
    """
    rows, seconds = np.array(calls[1:], float).T  # the first also warms up
    if np.median(seconds) < _CHEAP:
        return True
    slope, constant = np.polyfit(rows, seconds, 1) if len(set(rows)) > 1 else (0.0, seconds.min())
    slope, constant = max(slope, 0.0), max(constant, 0.0)
    algebra = _MADE * 14 * (2 * unknowns) ** 3 / _FLOPS
    newton = constant + slope * (nodes * _FLIGHT + _MADE * _POINTS * (1 + unknowns)) + algebra + _OWN[1]
    picard = constant + slope * nodes * _FLIGHT + _OWN[0]
    return newton < _TIE * _FEWER * picard


def rounds_if_stiff(march: March, sample: np.ndarray) -> np.ndarray:
    """The rounds that samples ``(A,)`` are predicted to take without Jacobians, where these are too many; else NaN.

    Newton's method with Jacobians at all nodes is never judged, the others in every fiftieth round.
    """
    rounds, reached, span = march.rounds[sample], march.accepted.reached[sample], march.span[sample]
    if march.sweep.name == "newton":
        return np.full(len(sample), np.nan)
    looking = (reached == 0) & (rounds < 200)  # for the length of the first segment
    predicted = rounds * span / np.maximum(reached, 1e-9 * span)
    return np.where((rounds % 50 == 0) & ~looking & (predicted >= _TOO_MANY), predicted, np.nan)
