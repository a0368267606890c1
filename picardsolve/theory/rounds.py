"""How many rounds a solve takes, predicted from those done."""

import math
from typing import Literal, get_args

from picardsolve.problem.checks import check_choice, check_count, check_not_negative, check_positive_integer

Law = Literal["factorial", "root-factorial", "geometric"]

_POWER = {"factorial": 1.0, "root-factorial": 0.5, "geometric": 0.0}
_MOST = 2**53  # rounds that a float can count


def predicted_rounds(
    change: float, contraction: float, tolerance: float, done: int = 0, law: Law = "factorial"
) -> int | float:
    """The smallest ``K >= done`` with ``change * prod_{j=done}^{K-1} Lambda / (j + 1)^p <= tolerance``.

    The changes of Picard's rounds on ``y' = lambda y`` are ``Lambda^k / k!`` (p = 1: "factorial"). Noise that depends
    on the state makes their root mean square ``c^k / sqrt(k!)`` (p = 1/2: "root-factorial"; see
    `root_factorial_bound`); a linearly convergent iteration has ``q^k`` (p = 0: "geometric"). An ESTIMATE, with
    whichever law fits: refit Lambda by `fitted_contraction` in every round.

    Args:
        change: of round ``done``; for ``done=0``, the error or change that the guess is thought to have.
        contraction: Lambda, c or q.
        tolerance: the change that is small enough.
        done: rounds done.
        law: how changes fall off.

    Returns:
        K, counted from the first round; infinity if it is never reached: tolerance 0, or a geometric ratio from 1.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is negative, or an unknown law.
    """
    check_not_negative("change", change)
    check_not_negative("contraction", contraction)
    check_not_negative("tolerance", tolerance)
    check_count("done", done)
    check_choice("law", law, get_args(Law))
    if change <= tolerance:
        return done
    if contraction == 0:
        return done + 1
    if tolerance == 0 or math.inf in (change, contraction) or (law == "geometric" and contraction >= 1):
        return math.inf
    fall, slope, power = math.log(tolerance) - math.log(change), math.log(contraction), _POWER[law]

    def reached(k: int) -> bool:
        return (k - done) * slope - power * (math.lgamma(k + 1) - math.lgamma(done + 1)) <= fall

    # the product rises to its maximum and falls from there on: once below the tolerance it stays there
    low, high = done, done + 1
    while not reached(high):
        low, high = high, 2 * high - done
        if high > _MOST:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def fitted_contraction(change: float, before: float, done: int, law: Law = "factorial") -> float:
    """``k^p |Delta_k| / |Delta_{k-1}|``: Lambda (c, q) of `predicted_rounds`, from the last two of ``k = done`` rounds.

    On ``y' = lambda y`` changes are ``Lambda^k / k!``, so that this is Lambda, exactly. Euler's method at state n has
    ``C(n, k) (h lambda)^k``, and this is ``(n - k + 1) h lambda``. Elsewhere an ESTIMATE.

    Args:
        change: of the last round, ``|Delta_k|``, in any norm.
        before: of the round before, ``|Delta_{k-1}|``.
        done: k, the rounds done, at least 1.
        law: as in `predicted_rounds`; p = 1, 1/2 and 0.

    Returns:
        The constant; infinity if nothing changed before and something does now, 0 if nothing changes.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is negative, done below 1, or an unknown law.
    """
    check_not_negative("change", change)
    check_not_negative("before", before)
    check_positive_integer("done", done)
    check_choice("law", law, get_args(Law))
    if before == 0:
        return math.inf if change > 0 else 0.0
    return done ** _POWER[law] * (change / before)
