"""Which iteration solves the samples, where the user does not say: by the size of a state, and by what calls cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picardsolve.collocation.initial_value import InitialValueProblem
from picardsolve.collocation.march import March
from picardsolve.collocation.nodes import Nodes, nodes
from picardsolve.collocation.panels import panels
from picardsolve.collocation.sweeps import Choice
from picardsolve.problem.state import LARGEST_DENSE

# of a sample over about eight segments, measured on networks of 2 to 64 numbers and on seven problems of the bank
_ROUNDS = {"newton": 9, "panels": 9, "secant": 20}
_LINEARIZED = {"newton": 12, "panels": 12, "secant": 8}  # segments; by a secant, for their checks
_SWEPT = {"newton": 12, "panels": 15, "secant": 45}  # evaluations at every node
_TIE, _LITTLE = 1.2, 0.05  # Newton's method, which finds more in fewer rounds, may be slower by this factor or seconds

_ORDERS = {  # from a relative tolerance on: rounds and evaluations over the bank of problems
    "newton": ((3e-6, 12), (3e-8, 16), (0.0, 24)),
    "others": ((3e-5, 12), (3e-7, 16), (0.0, 20)),
}
_DENSE = 240  # unknowns of a segment's Newton system that are cheap on a CPU whatever the drift costs
_TOO_MANY = 3000  # predicted rounds: a solve without Jacobians is called stiff


def usual_iteration(problem: InitialValueProblem, order: int | None) -> Choice:
    """By the size of a state; "panels" is Newton's method with the algebra of panels."""
    if problem.unknowns * (order or 24) <= _DENSE:
        return "newton"
    return "panels" if problem.takes_jacobians else "secant"


def usual_orders(problem: InitialValueProblem, choice: Choice) -> np.ndarray:
    """Degree of the polynomials of samples, ``(B,)``: lower at loose tolerances, where high ones save few rounds.

    Of large states it is lower by Newton's method, because its algebra is cubic in it.
    """
    steps = _ORDERS["newton" if choice == "newton" else "others"]
    limits, orders = (np.array(part) for part in zip(*steps, strict=True))
    own = orders[(_tolerances(problem)[:, None] >= limits).argmax(1)]
    if choice != "newton" or problem.unknowns <= 10:
        return own
    return np.minimum(own, 16 if problem.unknowns <= 20 else 12)


def _tolerances(problem: InitialValueProblem) -> np.ndarray:
    """The tightest ``rtol`` of each sample, ``(B,)``; where that is 0, ``atol`` relative to the start."""
    arrays = problem.arrays
    with np.errstate(over="ignore"):
        absolute = problem.atol / arrays.larger(arrays.size(problem.start), 1e-290)
    tightest = arrays.largest(-arrays.where(problem.rtol > 0, problem.rtol, absolute))
    return -arrays.fetch(tightest)[0]


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


def seconds(problem: InitialValueProblem, choice: Choice, nodes: Nodes, price: Prices) -> float:
    """What a solve of all samples costs, in units of the solve that the constants are of."""
    n, u, d = nodes.n, problem.unknowns, problem.numbers
    if choice == "newton":
        moved, algebra = n * u, 2 / 3 * (n * u) ** 3 + 2 * (n * u) ** 2 * d
    elif choice == "panels" or d <= LARGEST_DENSE:
        moved, algebra = panels(nodes) * (1 + u), 14 * panels(nodes) * d**3
    else:
        moved = algebra = 0
    rows = _LINEARIZED[choice] * moved + _SWEPT[choice] * n
    own = rows * price.row + _LINEARIZED[choice] * algebra / problem.arrays.flops
    return _ROUNDS[choice] * price.call + problem.samples * own


def newton_pays(
    problem: InitialValueProblem, march: March, order: int | None, calls: Sequence[tuple[int, float]]
) -> bool:
    """Whether a march by Newton's method may be as fast as one by a secant, after so many calls."""
    name, own = march.sweep.name, march.nodes
    instead = nodes(own.kind, order or int(usual_orders(problem, "secant").max()))
    costs = [
        (seconds(problem, name, own, price), seconds(problem, "secant", instead, price))
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
