"""New segments that follow no other one: the first of a sample, and the parts of one that is split."""

import numpy as np

from picardsolve.collocation.arrays import Array, Arrays
from picardsolve.collocation.flight import Flight, Memory
from picardsolve.collocation.initial_value import Limits
from picardsolve.collocation.nodes import Nodes


def speeds(limits: Limits, sample: np.ndarray, start: Array, drift: Array) -> Array:
    """Sizes of starts ``(k, d)`` and of drifts there, in tolerances, ``(2, k)``."""
    arrays = limits.problem.arrays
    allowed = limits.allowed(arrays.size(start), sample)
    return arrays.root(arrays.concat([((part / allowed) ** 2).sum(1)[None] for part in (start, drift)]))


def first_lengths(limits: Limits, span: np.ndarray, size: np.ndarray, speed: np.ndarray) -> np.ndarray:
    """Of first segments, ``(k,)``: half as long as the state takes to change by its own size."""
    known = (size != 0) & (speed != 0)
    h = np.where(known, np.maximum(0.5 * size / speed, 1e-6 * span), 1e-3 * span)
    if limits.first is not None:
        h = np.full(len(span), float(limits.first))
    return np.minimum(np.minimum(np.where(np.isfinite(h), h, 1e-3 * span), span), limits.longest)


def straight(nodes: Nodes, limits: Limits, start: Array, h: np.ndarray, drift: Array, sizes: np.ndarray) -> Array:
    """States ``(k, n, d)`` along straight lines; constant where these lead far away, by `speeds`."""
    arrays, (size, speed) = limits.problem.arrays, sizes
    near = h * speed < 10 * size
    moves = arrays.array(h)[:, None, None] * arrays.constant(nodes.c)[:, None] * drift[:, None]
    return start[:, None] + arrays.where(arrays.array(near)[:, None, None], moves, 0.0)


def halves(arrays: Arrays, nodes: Nodes, own: Flight, part: np.ndarray, blank: Memory) -> list[Flight]:
    """Two segments in the place of each, with its iterate; the first is a part of it."""
    part, cut = part[:, None], part * own.h
    values = own.values(arrays, nodes)
    first = arrays.array(nodes.interpolate(part * nodes.c)) @ values
    second = arrays.array(nodes.interpolate(part + (1 - part) * nodes.c)) @ values
    return [
        Flight.new(own.sample, own.t, cut, own.starts, first, blank),
        Flight.new(own.sample, own.t + cut, own.h - cut, first[:, -1], second, blank),
    ]
