"""What rounding does to the iterates of a wide window.

Between guess and solution the errors of Picard's iterates may grow to ``max_k Lambda^k / k!`` times that of the guess
before they fall (`bounds.factorial_bound`; so they do for ``y' = -lambda y``), and each iterate is rounded to eps of
its size. In the difference form of the sweep that rounding falls off with the iterates: what is left in the end is the
rounding of the sequential solver, as measured in ``tests/test_theory_formulas.py``.
"""

import math
import sys

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


def approximate_hump(contraction: float) -> float:
    """``e^Lambda / sqrt(2 pi Lambda)``, an APPROXIMATION of `hump`.

    Stirling's formula: `hump` is this times a factor from ``1 - 1 / (12 Lambda)`` (next to integers) to
    ``1 + 1 / (24 Lambda)`` (half-way between them), to first order in ``1 / Lambda``.

    Raises:
        TypeError: contraction is not a number.
        ValueError: contraction is not positive.
    """
    check_not_negative("contraction", contraction)
    if contraction == 0:
        raise ValueError("contraction: expected a positive number, got 0, where the largest term is 1.")
    exponent = contraction - math.log(2 * math.pi * contraction) / 2
    return math.exp(exponent) if exponent < math.log(sys.float_info.max) else math.inf


def transient_rounding(scale: float, contraction: float, eps: float) -> float:
    """``eps * scale * max_k Lambda^k / k!``: an ESTIMATE of the rounding in Picard's iterates where they are largest.

    The largest iterate is about ``scale * hump(Lambda)``, and each of its steps is rounded to eps of that. Measured on
    ``y' = -lambda y``, the peak is 15 to 22 times this, with 400 steps and with 1200. It is no floor of the converged
    states. While it lasts a change cannot be told from rounding; and a hump that overflows the arithmetic ends the
    iteration.

    Args:
        scale: size of the states, or of the error of the guess.
        contraction: Lambda of the window.
        eps: unit roundoff of the arithmetic, ``torch.finfo(dtype).eps / 2``.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is negative, or contraction infinite.
    """
    check_not_negative("scale", scale)
    check_not_negative("eps", eps)
    return eps * scale * hump(contraction)


def largest_contraction(tolerance: float, eps: float, scale: float = 1.0) -> float:
    """``ln(tolerance / (eps * scale))``: a Lambda at which `transient_rounding` is within the tolerance.

    It solves ``eps * scale * e^Lambda = tolerance``. Every term of the exponential series is below its sum, so this is
    on the safe side: `hump` in the place of its bound ``e^Lambda`` allows a slightly larger one. As rounding falls off
    with the iterates, a window that passes is safe, and one that does not pass may still converge.

    Args:
        tolerance: largest error that rounding may leave.
        eps: unit roundoff, positive.
        scale: as in `transient_rounding`, positive.

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
