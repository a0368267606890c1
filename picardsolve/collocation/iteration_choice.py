"""Which iteration solves the samples, where the user does not say: by the size of a state, and by what calls cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picardsolve.collocation.initial_value import InitialValueProblem
from picardsolve.collocation.march import March
from picardsolve.collocation.panels import POINTS
from picardsolve.collocation.sweeps import Choice
from picardsolve.problem.state import LARGEST_DENSE

# of a sample over about eight segments, measured on networks of 2 to 64 numbers and on seven problems of the bank
_ROUNDS = {"newton": 9, "panels": 9, "secant": 20}
_LINEARIZED = {"newton": 12, "panels": 12, "secant": 8}  # segments; by a secant, for their checks
_SWEPT = {"newton": 12, "panels": 15, "secant": 45}  # evaluations at every node
_TIE, _LITTLE = 1.2, 0.05  # Newton's method, which finds more in fewer rounds, may be slower by this factor or seconds

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


@dataclass(frozen=True)
class Prices:
    """Seconds of a drift call, and of each of its rows."""

    call: float
    row: float

    @staticmethod
    def possible(calls: "Sequence[tuple[int, float]]") -> "tuple[Prices, ...]":
        """What the rows and seconds of the first calls allow, the first of which also warms up.

        Of one call it may be the call that costs, or its rows.
        """
        rows, seconds = np.array(calls, float).T
        if len(calls) == 1:
            return Prices(seconds[0], 0.0), Prices(0.0, seconds[0] / rows[0])
        call = seconds.min()
        return (Prices(call, float(np.median((seconds[1:] - call) / rows[1:]))),)


def seconds(problem: InitialValueProblem, choice: Choice, n: int, price: Prices) -> float:
    """What a solve of all samples costs, for n nodes; in units of the solve that the constants are of."""
    u, d = problem.unknowns, problem.numbers
    if choice == "newton":
        moved, algebra = n * u, 2 / 3 * (n * u) ** 3 + 2 * (n * u) ** 2 * d
    elif choice == "panels" or d <= LARGEST_DENSE:
        moved, algebra = len(POINTS) * (1 + u), 140 * d**3
    else:
        moved = algebra = 0
    rows = _LINEARIZED[choice] * moved + _SWEPT[choice] * n
    own = rows * price.row + _LINEARIZED[choice] * algebra / problem.arrays.flops
    return _ROUNDS[choice] * price.call + problem.samples * own


def newton_pays(
    problem: InitialValueProblem, march: March, order: int | None, calls: Sequence[tuple[int, float]]
) -> bool:
    """Whether a march by Newton's method may be as fast as one by a secant, after so many calls."""
    name, n = march.sweep.name, march.nodes.n
    instead = order or usual_order(problem.unknowns, "secant")
    costs = [
        (seconds(problem, name, n, price), seconds(problem, "secant", instead, price))
        for price in Prices.possible(calls)
    ]
    return any(newton <= max(_TIE * secant, secant + _LITTLE) for newton, secant in costs)


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
