"""How local errors are carried on to later times, and how far they grow on the way."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from picardsolve.embedded.allowed import Allowed
from picardsolve.embedded.flows import flows
from picardsolve.embedded.pair import Pair
from picardsolve.embedded.path import Steps
from picardsolve.embedded.rows import Asks
from picardsolve.problem.index import on_device
from picardsolve.problem.state import LARGEST_DENSE

_FEW = 10  # numbers in a state up to which its Jacobians are taken at all nodes
_LARGEST = 60.0  # logarithm of a growth that is told from infinity
_TOGETHER = 256  # numbers in all samples, up to which they are taken for states of up to `LARGEST_DENSE`


@dataclass(frozen=True)
class Propagated:
    """Errors at the M nodes of a path, in what the user's tolerance allows there.

    Attributes:
        error: ``(M, D)`` sizes.
        floor: ``(M, D)`` standard deviations from rounding.
        growth: ``(B,)`` the factor by which an error at the start has grown at the end; NaN where not known.
    """

    error: Tensor
    floor: Tensor
    growth: Tensor


@dataclass(frozen=True)
class Linearised:
    """The equation of errors along a path of M nodes and N steps.

    Attributes:
        steps: of the path.
        scale: ``(M, D)`` what the user's tolerance allows.
        rounding: ``(N, D)`` of every step, in that.
        flow: ``(N, D, D)`` the derivatives of steps in that; None for large states.
        grows: ``(N,)`` by what factors large states' errors grow, where that is known; 1 elsewhere.
    """

    steps: Steps
    scale: Tensor
    rounding: Tensor
    flow: Tensor | None
    grows: np.ndarray

    @cached_property
    def ends(self) -> Tensor:
        """The nodes where steps end, on the device."""
        return on_device(self.steps.begins + 1, self.scale.device)

    @cached_property
    def own(self) -> Tensor:
        """What is allowed where steps end, ``(N, D)``."""
        return self.scale.index_select(0, self.ends)

    def part(self, samples: np.ndarray) -> "tuple[Linearised, np.ndarray, np.ndarray]":
        """That of some samples; and the numbers of its nodes and of its steps in this one."""
        keep = np.isin(self.steps.sample, samples)
        node, step = np.flatnonzero(keep), np.flatnonzero(keep[self.steps.begins])
        at, of_steps = on_device(node, self.scale.device), on_device(step, self.scale.device)
        scale, rounding = self.scale.index_select(0, at), self.rounding.index_select(0, of_steps)
        flow = None if self.flow is None else self.flow.index_select(0, of_steps)
        return Linearised(self.steps.of(node), scale, rounding, flow, self.grows[step]), node, step

    def propagated(self, local: Tensor) -> Propagated:
        """Errors that follow from local errors ``(N, D)``."""
        local = local / self.own
        return self._added(local) if self.flow is None else self._carried(local, self.flow)

    def worst(self, local: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Errors, what is allowed, and rounding of the component that is furthest off, ``(3, M)``; growth ``(B,)``.

        One wait.
        """
        found = self.propagated(local)
        error, at = found.error.nan_to_num(torch.inf).max(-1, keepdim=True)
        parts = torch.cat([error, self.scale.gather(1, at), found.floor.gather(1, at)], 1)
        numbers = torch.cat([parts.T.flatten(), found.growth]).cpu().numpy().astype(float)
        return numbers[: parts.numel()].reshape(3, -1), numbers[parts.numel() :]

    def directions(self, local: Tensor) -> Tensor:
        """Displacements ``(N, D)`` of where steps begin, along sums of local errors ``(N, D)``, to tell growth by."""
        begins = self.ends - 1
        total = torch.zeros_like(self.scale).index_copy(0, self.ends, local).cumsum(0)
        before = total.index_select(0, on_device(np.repeat(self.steps.first, self.steps.count), local.device))
        along, scale = (total - before).index_select(0, begins), self.scale.index_select(0, begins)
        sizes = torch.linalg.vector_norm(along / scale, dim=1, keepdim=True)
        first = local / torch.linalg.vector_norm(local / scale, dim=1, keepdim=True)
        along = torch.where(sizes > 0, along / sizes, first)
        y = self.steps.y.index_select(0, begins)
        seen = torch.finfo(y.dtype).eps ** 0.5 * torch.linalg.vector_norm(y / scale, dim=1, keepdim=True)
        return along.nan_to_num(0, 0, 0) * seen.clamp(min=1)

    def growing(self, some: np.ndarray, beside: Tensor, moved: Tensor) -> "Linearised":
        """The same where displacements of some steps' beginnings have become others at their ends."""
        at = on_device(some, beside.device)
        before, after = (
            beside / self.scale.index_select(0, self.ends - 1).index_select(0, at),
            moved / self.own.index_select(0, at),
        )
        ratio = torch.linalg.vector_norm(after, dim=1) / torch.linalg.vector_norm(before, dim=1)
        grows = self.grows.copy()
        grows[some] = np.maximum(np.nan_to_num(ratio.cpu().numpy().astype(float), nan=1.0), 1.0)
        return replace(self, grows=grows)

    def _added(self, local: Tensor) -> Propagated:
        """Without a linearised equation: the sizes of errors are added up, and grow as one direction does."""
        steps, device = self.steps, local.device
        logs = np.zeros(len(steps.t))
        logs[steps.begins + 1] = np.log(self.grows)
        logs = logs.cumsum()
        logs -= np.repeat(logs[np.minimum(steps.first, len(logs) - 1)], steps.count)
        grown = torch.from_numpy(np.exp(logs.clip(max=_LARGEST))).to(device, local.dtype)[:, None]
        total = local.new_zeros(2, len(steps.t), local.shape[1])
        parts = torch.stack([local.abs(), self.rounding]) / grown.index_select(0, self.ends)
        parts[1].square_()
        total = total.index_copy(1, self.ends, parts).cumsum(1)
        before = total.index_select(1, on_device(np.repeat(steps.first, steps.count), device))
        error, floor = (total - before).clamp(min=0)
        return Propagated(error * grown, floor.sqrt() * grown, local.new_full((len(steps.count),), torch.nan))

    def _carried(self, local: Tensor, flow: Tensor) -> Propagated:
        """Errors carried through steps: summed, or, if that is more, as if independent. All samples go side by side."""
        device, numbers, levels = local.device, local.shape[1], _Levels.of(self.steps)
        # side by side: the error, what has become of one at the start, and covariances of errors and of rounding
        parts = [1, numbers, 2 * numbers]
        now = local.new_zeros(int(np.count_nonzero(self.steps.count)), numbers, sum(parts))
        now[:, :, 1 : 1 + numbers].diagonal(dim1=1, dim2=2).fill_(1.0)
        found = [now]
        if levels.counts:
            flow, local, rounding = levels.by_level(flow, local, self.rounding)
            squares = torch.diag_embed(torch.stack([local, rounding], 1) ** 2).transpose(1, 2).flatten(2)
            own = torch.cat([local[:, :, None], torch.zeros_like(flow), squares], 2)
            for f, added in zip(flow.split(levels.counts), own.split(levels.counts), strict=True):
                moved = f @ now[: len(f)]
                spread = moved[:, :, 1 + numbers :].unflatten(2, (2, numbers)).transpose(1, 3).flatten(2)
                now = added + torch.cat([moved[:, :, : 1 + numbers], f @ spread], 2)
                found.append(now)
        every = torch.cat(found).index_select(0, on_device(levels.back, device))
        error, flown, spread = every.split(parts, 2)
        deviation = spread.unflatten(2, (2, numbers)).diagonal(dim1=1, dim2=3).clamp(min=0).sqrt()
        ends = on_device(np.maximum(self.steps.first + self.steps.count - 1, 0), device)
        growth = torch.linalg.vector_norm(flown.flatten(1), dim=1).index_select(0, ends).nan_to_num(torch.inf)
        return Propagated(torch.maximum(error[:, :, 0].abs(), deviation[:, 0]), deviation[:, 1], growth)


@dataclass(frozen=True)
class _Levels:
    """The nodes of a path in the order of their numbers within samples, those of samples with most nodes first.

    Attributes:
        counts: of the nodes of each number, from the second on.
        step: ``(M - B,)`` the steps that end at nodes from the second on; -1 where a piece begins.
        back: ``(M,)`` the places of nodes in this order.
    """

    counts: list[int]
    step: np.ndarray
    back: np.ndarray

    @staticmethod
    def of(steps: Steps) -> "_Levels":
        """Those of a path."""
        samples, nodes = len(steps.count), len(steps.t)
        rank = np.empty(samples, np.int64)
        rank[np.argsort(-steps.count, kind="stable")] = np.arange(samples)
        level = np.arange(nodes) - steps.first[steps.sample]
        order = np.argsort(level * samples + rank[steps.sample])
        back = np.empty(nodes, np.int64)
        back[order] = np.arange(nodes)
        step = np.full(nodes, -1)
        step[steps.begins + 1] = np.arange(len(steps.begins))
        return _Levels(np.bincount(level)[1:].tolist(), step[order[np.count_nonzero(steps.count) :]], back)

    def by_level(self, flow: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
        """Derivatives ``(N, D, D)`` and rows ``(N, D)`` of steps, in order; where a piece begins nothing changes."""
        index = on_device(np.maximum(self.step, 0), flow.device)
        flow, *rows_ = (part.index_select(0, index) for part in (flow, *rows))
        if (self.step < 0).any():
            begins = on_device(self.step < 0, flow.device)[:, None]
            rows_ = [part.masked_fill(begins, 0.0) for part in rows_]
            one = torch.eye(flow.shape[-1], dtype=flow.dtype, device=flow.device)
            flow = torch.where(begins[..., None], one, flow)
        return flow, *rows_


def linearised(steps: Steps, pair: Pair, allowed: Allowed, unit: float, samples: int) -> Asks[Linearised]:
    """The equation of errors along a path; asks for the drift at rows beside its nodes, in one call or two."""
    y, device = steps.y, steps.y.device
    sizes, ends = y.abs(), on_device(steps.begins + 1, device)
    after = sizes.index_select(0, ends)
    largest = sizes.index_copy(0, ends, torch.maximum(sizes.index_select(0, ends - 1), after))
    scale = allowed.of_nodes(steps.sample, device)(largest)
    rounding, numbers = unit * after / scale.index_select(0, ends), y.shape[1]
    grows = np.ones(len(steps.begins))
    if numbers > _FEW and (numbers > LARGEST_DENSE or numbers * samples > _TOGETHER):
        return Linearised(steps, scale, rounding, None, grows)
    return Linearised(steps, scale, rounding, (yield from flows(steps, scale, pair.nodes)), grows)
