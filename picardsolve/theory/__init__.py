"""Convergence theory as plain functions: what is proved about these iterations, and what is only estimated.

Bounds hold under the hypotheses in their docstrings. What is a lower bound, an estimate or a rule of thumb says so.
"""

from picardsolve.theory.bounds import (
    binomial_bound,
    contraction,
    factorial_bound,
    newton_kantorovich,
    propagated_bound,
    root_factorial_bound,
    step_lipschitz,
    total_variation,
)
from picardsolve.theory.constants import logarithmic_norm, sampled_lipschitz, sampled_one_sided, spectral_norm
from picardsolve.theory.precision import hump, largest_contraction
from picardsolve.theory.rounds import fitted_contraction, predicted_rounds
from picardsolve.theory.stability import is_stiff, lyapunov_exponent, predictable_span
from picardsolve.theory.wall_clock import WallClock, wall_clock

__all__ = [
    "WallClock",
    "binomial_bound",
    "contraction",
    "factorial_bound",
    "fitted_contraction",
    "hump",
    "is_stiff",
    "largest_contraction",
    "logarithmic_norm",
    "lyapunov_exponent",
    "newton_kantorovich",
    "predictable_span",
    "predicted_rounds",
    "propagated_bound",
    "root_factorial_bound",
    "sampled_lipschitz",
    "sampled_one_sided",
    "spectral_norm",
    "step_lipschitz",
    "total_variation",
    "wall_clock",
]
