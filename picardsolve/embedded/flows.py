"""The derivatives of steps with respect to where they begin, from Jacobians at nodes and between them."""

import numpy as np
import torch
from torch import Tensor

from picardsolve.embedded.dense import between
from picardsolve.embedded.path import Steps
from picardsolve.embedded.rows import Asks, Rows
from picardsolve.problem.index import on_device

_CHANGES = 1.0  # of the Jacobian times the length over a step, from which one between its ends is taken
_DERIVATIVE = 50.0  # of the exponent of a step that was accepted: beyond, the difference crossed a jump of the drift


def flows(steps: Steps, scale: Tensor, k: int) -> Asks[Tensor]:
    """The derivative of every step, ``(N, D, D)``, with respect to errors in what ``scale`` allows ``(M, D)``.

    They are exponentials of the mean of the Jacobians at both ends; where it changes much in a step, of Magnus'
    expansion to order 4, with one more Jacobian in the middle, by a polynomial through k nodes.
    """
    jacobian, device = (yield from _jacobians(steps.inside, steps.y, steps.slope, steps.sample, scale)), scale.device
    begins = on_device(steps.begins, device)
    length = torch.from_numpy(np.diff(steps.t)[steps.begins]).to(device, scale.dtype)[:, None, None]
    before, after = scale.index_select(0, begins), scale.index_select(0, begins + 1)
    first, last = jacobian.index_select(0, begins), jacobian.index_select(0, begins + 1)
    turned = before[:, None, :] / before[:, :, None] * length
    exponent, change = (first + last) / 2 * turned, (last - first) * turned
    bends = np.flatnonzero(~(torch.linalg.vector_norm(change, dim=(1, 2)) < _CHANGES).cpu().numpy())
    if len(bends):
        at, node = on_device(bends, device), steps.begins[bends]
        t, own = (steps.t[node] + steps.t[node + 1]) / 2, before.index_select(0, on_device(bends, device))
        middle = yield from _jacobians(t, between(steps, t, node, k), None, steps.sample[node], own)
        one, two, turn = (part.index_select(0, at) for part in (first, last, turned))
        one, two, middle = one * turn, two * turn, middle * turn
        magnus = (one + 4 * middle + two) / 6 - (one @ two - two @ one) / 12
        exponent = exponent.index_copy(0, at, magnus)
    known = torch.linalg.vector_norm(exponent, dim=(1, 2), keepdim=True) < _DERIVATIVE
    return (before / after)[:, :, None] * _exponential(torch.where(known, exponent, 0.0))


def _jacobians(t: np.ndarray, y: Tensor, slope: Tensor | None, sample: np.ndarray, scale: Tensor) -> Asks[Tensor]:
    """Derivatives of the drift at rows, ``(R, D, D)``, by differences: one call."""
    rows, numbers = y.shape
    moved = y[:, None] + torch.diag_embed(torch.finfo(y.dtype).eps ** 0.5 * torch.maximum(y.abs(), scale))
    shift = (moved - y[:, None]).diagonal(dim1=1, dim2=2)
    if slope is None:
        moved = torch.cat([moved, y[:, None]], 1)
    many = np.repeat(np.arange(rows), moved.shape[1])
    found = (yield Rows(torch.from_numpy(t[many]), moved.view(-1, numbers), sample[many])).view(moved.shape)
    base = found[:, -1:] if slope is None else slope[:, None]
    return ((found[:, :numbers] - base) / shift[..., None]).mT


def _exponential(exponent: Tensor) -> Tensor:
    """Exponentials of small matrices: a Taylor polynomial of a sixteenth, squared four times."""
    small = exponent / 16
    square = small @ small
    one = torch.eye(small.shape[-1], dtype=small.dtype, device=small.device)
    total = one + small + square / 2 + (square @ (small / 6 + square / 24))
    for _ in range(4):
        total = total @ total
    return total
