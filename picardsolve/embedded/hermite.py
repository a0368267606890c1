"""Polynomials through states and slopes of several steps: between times, and as a check of the steps.

A polynomial of degree 2 k - 1 goes through k states with their slopes. Its error is that of a method of order 2 k, and
it costs no call of the drift. The divided difference over all of them vanishes for polynomials up to degree 2 k - 2:
what it shows beyond that are the local errors of the steps between them.
"""

import numpy as np

_SHORT = 0.2  # a step shorter than this part of its neighbour's may cross a kink: no polynomial goes on beyond it


def neighbours(begins: np.ndarray, ends: np.ndarray, first: np.ndarray, last: np.ndarray, t: np.ndarray, k: int):
    """Which nodes the polynomials of steps go through.

    Args:
        begins: ``(N,)`` the nodes where the steps begin.
        ends: ``(N,)`` those where they end.
        first: ``(N,)`` the first node that may be used.
        last: ``(N,)`` the last one.
        t: times of all nodes.
        k: how many nodes a polynomial has, at most.

    Returns:
        The lowest and the highest node of each, ``(N,)``.
    """
    low, high = begins.copy(), ends.copy()
    shortest, length = _SHORT * np.abs(t[ends] - t[begins]), np.abs(np.diff(t, append=t[-1:]))
    before = np.ones(len(begins), bool)
    for turn in range(2 * k):
        few = high - low + 1 < k
        if turn % 2:
            longer = few & (high < last) & (length[np.minimum(high, last)] >= shortest)
            high += longer
        else:
            longer = few & (low > first) & (length[np.maximum(low - 1, 0)] >= shortest)
            low -= longer
        if not (longer.any() or before.any()):
            break
        before = longer
    return low, high


def interpolation(x: np.ndarray, nodes: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``(Q, k)`` of states and of slopes at nodes ``(Q, k)`` that give the value at times ``(Q,)``.

    Nodes that are not used, ``used`` ``(Q, k)``, have weight 0.
    """
    nodes, used = np.ascontiguousarray(nodes.T), np.ascontiguousarray(used.T)
    gaps, both = _gaps(nodes, used)
    away = x - nodes
    ratio = np.where(both, away / gaps, 1.0)
    square = np.where(used, ratio.prod(1) ** 2, 0.0)
    slope = np.where(both, 1 / gaps, 0.0).sum(1)
    return ((1 - 2 * away * slope) * square).T, (away * square).T


def difference(nodes: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``(N, k)`` of states and of slopes at nodes ``(N, k)`` in the divided difference over all of them."""
    nodes, used = np.ascontiguousarray(nodes.T), np.ascontiguousarray(used.T)
    gaps, both = _gaps(nodes, used)
    inverse = 1 / gaps
    square = np.where(used, np.where(both, inverse, 1.0).prod(1) ** 2, 0.0)
    return (-2 * square * np.where(both, inverse, 0.0).sum(1)).T, square.T


def _gaps(nodes: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(k, k, Q)`` differences of nodes ``(k, Q)``, 1 where there is none, and where there is one."""
    both = used[:, None] & used & ~np.eye(len(nodes), dtype=bool)[:, :, None]
    return np.where(both, nodes[:, None] - nodes, 1.0), both
