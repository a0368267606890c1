"""What rounding does to the iterates of a wide window.

The errors of Picard's iterates may grow to ``hump(Lambda)`` times that of the guess before they decay (so they do for
``y' = -lambda y``). Each iterate is rounded to eps of its size: ``eps * scale * hump(Lambda)`` is an ESTIMATE of the
rounding where iterates are largest, which 400 to 1200 steps make 15 to 22 times larger. That rounding decays with the
iterates: what is left in the end is the rounding of the sequential solver.
"""

import math

from picardsolve.problem.checks import check_not_negative
from picardsolve.theory.bounds import factorial_bound


def hump(contraction: float) -> float:
    """``max_k Lambda^k / k!``, exactly.

    The largest term is that of ``k = floor(Lambda)``: each is the one before times ``Lambda / k``.

    Raises:
        TypeError: contraction is not a number.
        ValueError: contraction is negative or infinite.
    """
    check_not_negative("contraction", contraction)
    if contraction == math.inf:
        raise ValueError("contraction: expected a finite number, got infinity.")
    return factorial_bound(math.floor(contraction), contraction)


def largest_contraction(tolerance: float, eps: float, scale: float = 1.0) -> float:
    """``ln(tolerance / (eps * scale))``: the Lambda up to which rounding in the iterates stays within the tolerance.

    It solves ``eps * scale * e^Lambda = tolerance``. The exponential is an upper bound of `hump`, so this is on the
    safe side: a window with a larger Lambda may converge, too, since rounding decays with the iterates.

    Args:
        tolerance: largest error that rounding may leave.
        eps: unit roundoff, positive.
        scale: size of the states, or of the error of the guess, positive.

    Returns:
        Lambda, 0 where even the rounding of a state is above the tolerance.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is negative, or eps or scale is 0.
    """
    check_not_negative("tolerance", tolerance)
    check_not_negative("eps", eps)
    check_not_negative("scale", scale)
    if eps == 0 or scale == 0:
        raise ValueError(f"eps, scale: expected positive numbers, got {eps!r} and {scale!r}.")
    return max(math.log(tolerance) - math.log(eps) - math.log(scale), 0.0) if tolerance > 0 else 0.0
