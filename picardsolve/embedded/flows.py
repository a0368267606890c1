"""The derivatives of steps with respect to where they begin, from Jacobians at nodes and between them."""

import numpy as np
import torch
from torch import Tensor

from picardsolve.embedded.dense import between
from picardsolve.embedded.path import Steps
from picardsolve.embedded.rows import Asks, Rows
from picardsolve.problem.index import on_device

_CHANGES = 0.3  # of the Jacobian times the length over a step, from which one between its ends is taken

_DERIVATIVE = 50.0  # of the exponent of a step that was accepted: beyond, the difference crossed a jump of the drift


def flows(steps: Steps, scale: Tensor, k: int) -> Asks[Tensor]:
    """The derivative of every step, ``(N, D, D)``, with respect to errors in what ``scale`` allows ``(M, D)``.

    They are exponentials of the mean Jacobian; where it changes much in a step, of Magnus' expansion to order 4, with
    one more Jacobian in the middle.
    """
    y, device = steps.y, steps.y.device
    slopes = steps.slope
    jacobian = yield from _jacobians(steps.inside, y, slopes, steps.sample, scale)
    begins = on_device(steps.begins, device)
    length = torch.from_numpy(np.diff(steps.t)[steps.begins]).to(device, y.dtype)[:, None, None]
    first, last = jacobian.index_select(0, begins), jacobian.index_select(0, begins + 1)
    before, after = scale.index_select(0, begins)[:, None, :], scale.index_select(0, begins + 1)[:, :, None]
    change = ((last - first) * length * before / after).flatten(1)
    exponent = (first + last) / 2 * length
    bends = np.flatnonzero(~(torch.linalg.vector_norm(change, dim=1) < _CHANGES).cpu().numpy())
    if len(bends):
        at = on_device(bends, device)
        node = steps.begins[bends]
        t = (steps.t[node] + steps.t[node + 1]) / 2
        middle = between(steps, t, node, k)
        own = yield from _jacobians(t, middle, None, steps.sample[node], scale.index_select(0, on_device(node, device)))
        h, one, two = length.index_select(0, at), first.index_select(0, at), last.index_select(0, at)
        magnus = h / 6 * (one + 4 * own + two) - h**2 / 12 * (one @ two - two @ one)
        exponent = exponent.index_copy(0, at, magnus)
    exponent = exponent * (before / after)
    known = torch.linalg.vector_norm(exponent.flatten(1), dim=1) < _DERIVATIVE
    exponent = torch.where(known[:, None, None], exponent, 0.0)
    return _exponential(exponent * (after / before)) * (before / after)


def _jacobians(t: np.ndarray, y: Tensor, slope: Tensor | None, sample: np.ndarray, scale: Tensor) -> Asks[Tensor]:
    """Derivatives of the drift at rows, ``(R, D, D)``, by differences: one call."""
    rows, numbers = y.shape
    shift = torch.finfo(y.dtype).eps ** 0.5 * torch.maximum(y.abs(), scale)
    moved = y[:, None] + torch.diag_embed(shift)
    shift = (moved - y[:, None]).diagonal(dim1=1, dim2=2)
    if slope is None:
        moved = torch.cat([moved, y[:, None]], 1)
    many = np.repeat(np.arange(rows), moved.shape[1])
    found = yield Rows(torch.from_numpy(t[many]), moved.reshape(-1, numbers), sample[many])
    found = found.view(moved.shape)
    base = found[:, -1] if slope is None else slope
    return ((found[:, :numbers] - base[:, None]) / shift[..., None]).mT


def _exponential(exponent: Tensor) -> Tensor:
    """Exponentials of small matrices: a Taylor polynomial of a sixteenth, squared four times."""
    small = exponent / 16
    term, total = small, small + torch.eye(small.shape[-1], dtype=small.dtype, device=small.device)
    for k in (2, 3, 4):
        term = term @ small / k
        total = total + term
    for _ in range(4):
        total = total @ total
    return total
