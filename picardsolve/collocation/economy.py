"""Whether Newton's fewer rounds are worth its Jacobians and its algebra, from what drift calls were seen to cost."""

from collections.abc import Sequence

import numpy as np

_FEWER = 2.2  # rounds of Picard to one of Newton on panels: 1.5 to 12 on seven problems, the median
_MADE = 3.0  # segments that are linearised in a round, about
_HELD = 8.0  # segments in flight, about
_ROWS = 10.0  # states of a segment where Jacobians are seen
_FLOPS = 4e9  # a second, on one core
_OWN = 5e-4, 2e-3  # seconds of a round of either without drift and factorisation
_TIE = 1.5  # so much slower may be what needs fewer rounds
_CHEAP = 1e-2  # seconds of a call, below which its rows are not what is waited for


def newton_pays(calls: Sequence[tuple[int, float]], unknowns: int, nodes: int) -> bool:
    """Compare what the solution would cost either way.

    Args:
        calls: rows and seconds of the drift calls so far; their cost is taken to be ``a + b rows``.
        unknowns: numbers that Jacobians are taken by.
        nodes: of a segment.
    """
    rows, seconds = np.array(calls[1:], float).T  # the first also warms up
    if np.median(seconds) < _CHEAP:
        return True
    slope, constant = np.polyfit(rows, seconds, 1) if len(set(rows)) > 1 else (0.0, seconds.min())
    slope, constant = max(slope, 0.0), max(constant, 0.0)
    algebra = _MADE * 14 * (2 * unknowns) ** 3 / _FLOPS
    newton = constant + slope * (nodes * _HELD + _MADE * _ROWS * (1 + unknowns)) + algebra + _OWN[1]
    picard = constant + slope * nodes * _HELD + _OWN[0]
    return newton < _TIE * _FEWER * picard
