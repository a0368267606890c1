"""Whether Newton's fewer rounds are worth its Jacobians and its algebra, from what drift calls were seen to cost."""

from collections.abc import Sequence

import numpy as np

_FEWER = 2.5  # rounds of Picard to one of Newton, as measured on problems of 10 to 32 numbers (docs/odes.md)
_SEGMENTS = 2.0  # that Newton linearises in a round, about
_FLOPS = 4e9  # a second, of an LU factorisation on one core
_OWN = 3e-4  # seconds of a round without drift and factorisation


def newton_pays(calls: Sequence[tuple[int, float]], unknowns: int, nodes: int) -> bool:
    """Compare what the solution would cost either way.

    Args:
        calls: rows and seconds of the drift calls so far; their cost is taken to be ``a + b rows``.
        unknowns: numbers that Jacobians are taken by.
        nodes: of a segment.
    """
    rows, seconds = np.array(calls, float).T
    slope, constant = np.polyfit(rows, seconds, 1) if len(set(rows)) > 1 else (0.0, seconds.min())
    slope, constant = max(slope, 0.0), max(constant, 0.0)
    factored = _SEGMENTS * 2 / 3 * (nodes * unknowns) ** 3 / _FLOPS
    newton = constant + slope * nodes * _SEGMENTS * (2 + unknowns) + factored + _OWN
    picard = constant + slope * rows.max() + _OWN
    return newton < _FEWER * picard
