"""The local errors of accepted steps, from the states and slopes around them."""

import numpy as np
import torch
from torch import Tensor

from picardsolve.embedded.hermite import difference, neighbours
from picardsolve.embedded.pair import Pair
from picardsolve.embedded.path import Steps
from picardsolve.problem.index import on_device

_AT_ONCE = 2**24  # numbers: sums over nodes are gathered in parts of so many


def local_errors(steps: Steps, pair: Pair, scale: Tensor) -> Tensor:
    """Signed errors of the N steps, ``(N, D)``; ``scale``, of the same shape, is what is allowed.

    A divided difference over k states and their slopes vanishes on smooth solutions. What it shows are the local errors
    of the steps between, which grow as the lengths to the power ``order + 1``. On sharp tolerances these are found
    (measured on the bank: 0.7 to 1.4 times), where the pair's own estimate, of a method of lower order, is up to a
    hundred times as large. On loose ones it is up to fifty times as large; there it counts up to a multiple of the
    pair's. Where there are fewer nodes the pair's is taken.
    """
    begins, k, order = steps.begins, pair.window, pair.order
    own = steps.error.index_select(0, on_device(begins + 1, steps.y.device))
    if steps.count.max() < k:
        return own
    first, last = steps.bounds
    low, high = neighbours(begins, begins + 1, first[begins], last[begins], steps.t, k)
    full = high - low + 1 == k
    if not full.any():
        return own
    index = np.where(full[:, None], low[:, None] + np.arange(k), begins[:, None])
    length = steps.t[begins + 1] - steps.t[begins]
    t = (steps.t[index] - steps.t[begins][:, None]) / length[:, None]
    t = np.where(full[:, None], t, np.arange(k))
    of_states, of_slopes = difference(t, np.ones(t.shape, bool))
    behind = of_states[:, ::-1].cumsum(1)[:, ::-1][:, 1:]  # what a jump between two nodes gives
    response = (behind * np.diff(t, axis=1) ** (order + 1)).sum(1)
    of_states, of_slopes = of_states / response[:, None], of_slopes * (length / response)[:, None]
    found = combined(steps, index, of_states, of_slopes)
    larger = torch.linalg.vector_norm(found / scale, dim=-1) / torch.linalg.vector_norm(own / scale, dim=-1)
    found = found * (pair.cap / larger).clamp(max=1).nan_to_num(1)[:, None]
    return torch.where(on_device(full, own.device)[:, None], found, own)


def combined(steps: Steps, index: np.ndarray, of_states: np.ndarray, of_slopes: np.ndarray) -> Tensor:
    """States and slopes at nodes ``(Q, k)`` times their weights: ``(Q, D)``."""
    y, slope = steps.y, steps.slope
    many, k = index.shape
    weights = torch.from_numpy(np.stack([of_states, of_slopes])).to(y.device, y.dtype, non_blocking=True)[:, :, None]
    at, part = on_device(index.ravel(), y.device), max(_AT_ONCE // (k * y.shape[1]), 1)
    out = []
    for begin in range(0, many, part):
        some = at[begin * k : (begin + part) * k]
        states, slopes = (rows.index_select(0, some).view(-1, k, y.shape[1]) for rows in (y, slope))
        own = weights[:, begin : begin + part]
        out.append(torch.baddbmm(own[0] @ states, own[1], slopes)[:, 0])
    return out[0] if len(out) == 1 else torch.cat(out)
