"""How local errors are carried on to later times, and how far they grow on the way."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picardsolve.embedded.allowed import Allowed
from picardsolve.embedded.flows import flows
from picardsolve.embedded.local_errors import local_errors
from picardsolve.embedded.pair import Pair
from picardsolve.embedded.path import Steps
from picardsolve.embedded.rows import Asks
from picardsolve.problem.index import on_device
from picardsolve.problem.state import LARGEST_DENSE

_FEW = 10  # numbers in a state up to which its Jacobians are taken at all nodes
_TOGETHER = 256  # numbers in all samples, up to which they are taken for states of up to `LARGEST_DENSE`


@dataclass(frozen=True)
class Propagated:
    """Errors at the M nodes of a path, in what the user's tolerance allows there.

    Attributes:
        error: ``(M, D)`` sizes.
        floor: ``(M, D)`` standard deviations from rounding.
        allowed: ``(M, D)``.
        growth: ``(B,)`` the factor by which an error at the start has grown at the end; NaN where not known.
    """

    error: Tensor
    floor: Tensor
    allowed: Tensor
    growth: Tensor


def propagated(steps: Steps, pair: Pair, allowed: Allowed, unit: float, samples: int) -> Asks[Propagated]:
    """Errors along a path; asks for the drift at rows beside its nodes, all in one call."""
    y, device, begins = steps.y, steps.y.device, steps.begins
    sizes, ends = y.abs(), on_device(begins + 1, device)
    largest = sizes.index_copy(0, ends, torch.maximum(sizes.index_select(0, ends - 1), sizes.index_select(0, ends)))
    scale = allowed.at(on_device(steps.sample, device))(largest)
    own = scale.index_select(0, ends)
    local = local_errors(steps, pair, own) / own  # in what is allowed
    rounding = unit * sizes.index_select(0, ends) / own
    numbers = y.shape[1]
    if numbers > _FEW and (numbers > LARGEST_DENSE or numbers * samples > _TOGETHER):
        return _added(steps, scale, local, rounding)
    flow = yield from flows(steps, scale, pair.nodes)
    return _carried(steps, scale, local, rounding, flow)


def _levels(steps: Steps):
    """For every step number, the samples that have one: their numbers, the nodes where it ends, and the steps."""
    step_of_node = np.full(len(steps.t), -1)
    step_of_node[steps.begins + 1] = np.arange(len(steps.begins))
    for level in range(1, int(steps.count.max(initial=1))):
        active = np.flatnonzero(steps.count > level)
        node = steps.first[active] + level
        yield active, node, step_of_node[node]


def _added(steps: Steps, scale: Tensor, local: Tensor, rounding: Tensor) -> Propagated:
    """Without a linearised equation: the sizes of errors are added up."""
    total = local.new_zeros(2, len(steps.t), local.shape[1])
    ends = on_device(steps.begins + 1, local.device)
    total = total.index_copy(1, ends, torch.stack([local.abs(), rounding**2])).cumsum(1)
    before = total.index_select(1, on_device(np.repeat(steps.first, steps.count), local.device))
    error, floor = (total - before).clamp(min=0)
    growth = local.new_full((len(steps.count),), torch.nan)
    return Propagated(error, floor.sqrt(), scale, growth)


def _carried(steps: Steps, scale: Tensor, local: Tensor, rounding: Tensor, flow: Tensor) -> Propagated:
    """Errors carried through steps by ``flow``, ``(N, D, D)``: summed, or, if that is more, as if independent."""
    device, numbers, count = local.device, local.shape[1], len(steps.count)
    error, floor = torch.zeros_like(scale), torch.zeros_like(scale)
    now, covariance = local.new_zeros(count, numbers, 1), local.new_zeros(2, count, numbers, numbers)
    flown = torch.eye(numbers, dtype=local.dtype, device=device).repeat(count, 1, 1)
    own = local[..., None], torch.diag_embed(torch.stack([local, rounding]) ** 2)
    for active, node, step in _levels(steps):
        keep = step >= 0  # the others begin a piece, where the sample's last step ended
        at = on_device(node[~keep], device)
        error = error.index_copy(0, at, error.index_select(0, at - 1))
        floor = floor.index_copy(0, at, floor.index_select(0, at - 1))
        rows, at, which = (on_device(part[keep], device) for part in (active, node, step))
        f = flow.index_select(0, which)
        moved = f @ now.index_select(0, rows) + own[0].index_select(0, which)
        spread = f @ covariance.index_select(1, rows) @ f.mT + own[1].index_select(1, which)
        now, covariance = now.index_copy(0, rows, moved), covariance.index_copy(1, rows, spread)
        flown = flown.index_copy(0, rows, f @ flown.index_select(0, rows))
        deviation = spread.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
        error = error.index_copy(0, at, torch.maximum(moved[..., 0].abs(), deviation[0]))
        floor = floor.index_copy(0, at, deviation[1])
    finite = flown.isfinite().flatten(1).all(1)
    size = torch.linalg.matrix_norm(torch.where(finite[:, None, None], flown, 0.0))
    return Propagated(error, floor, scale, torch.where(finite, size, torch.inf))
