"""How much small changes of a state grow along a solution, from Jacobians of its steps.

The slopes that rounds show do not tell: on an orbit their products grow without limit, while an error only drifts. So
steps are differentiated in every direction, by differences, at three places of each piece of the grid. The logarithms
of these Jacobians give the propagator of the piece by Magnus' series on Gauss' points (Blanes, Casas, Oteo & Ros 2009,
eq. 257).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picardsolve.certificate.pieces import GrowthPieces, changes, cut, first_edges, places_of
from picardsolve.certificate.step_jacobians import StepJacobians
from picardsolve.integrators.base import DriftChain
from picardsolve.problem.denoiser import Denoiser
from picardsolve.problem.problem import Problem
from picardsolve.problem.state import LARGEST_DENSE
from picardsolve.problem.terms import SDE

_AIM = 0.7  # relative change of a state over one of the first pieces, as rates predict it
_REACH = 1.2  # relative change of a state above which a piece is cut
_FEWEST = 16  # pieces to begin with
_AGREE = 4.0  # factor by which growth of the two orders may differ; the higher order is then far more accurate
_PASSES = 10  # passes that may cut pieces
_SEGMENTS = 48  # segments of the grid between whose ends growth is kept
_DEAREST = 65  # rows per step of the grid, at most
_NUMBERS = 2**23  # in all Jacobians


@dataclass(frozen=True)
class Growth:
    """Growth of changes between the ends of S segments of a grid, the root mean square over all directions.

    Attributes:
        ends: ``(S + 1, B)`` steps.
        table: ``(S + 1, S + 1, B)`` float64: ``table[j, i]`` is the growth from end i to the later end j; else 0. NaN
            for samples whose growth is not known.
    """

    ends: np.ndarray
    table: Tensor

    @property
    def since_start(self) -> Tensor:
        """``(B,)``: the largest growth of a change of the initial state."""
        return self.table[:, 0].amax(0)

    @property
    def largest(self) -> Tensor:
        """``(B,)``: the largest growth between any two times."""
        return self.table.amax((0, 1))

    def carried(self, residuals: Tensor) -> Tensor:
        """Errors ``(N + 1, B)`` that residuals ``(N, B)`` of the steps add up to, whatever their signs.

        Where the growth is not known, their sums.
        """
        added = torch.cat([torch.zeros_like(residuals[:1]), residuals.cumsum(0)])
        steps, ends = np.arange(len(added)), torch.from_numpy(self.ends)
        segment = [np.searchsorted(own[1:-1], steps, side="right") for own in self.ends.T]
        segment = torch.from_numpy(np.stack(segment, 1))
        at_ends = added.gather(0, ends)
        later = torch.ones(len(self.table), len(at_ends) - 1, dtype=torch.float64).tril(-1)[..., None]
        reached = (later * torch.maximum(self.table[:, :-1], self.table[:, 1:]) * at_ends.diff(dim=0)).sum(1)
        errors = reached.gather(0, segment) + added - at_ends.gather(0, segment)
        errors = errors.scatter(0, ends, reached)
        return torch.where(self.table[0, 0].isnan(), added, errors)


def measurable(problem: Problem, chain: DriftChain, size: int) -> bool:
    """Whether Jacobians of a few steps represent the others; they do not where noise depends on the state."""
    if chain.implicit or chain.memory or size > LARGEST_DENSE or isinstance(problem.term, Denoiser):
        return False
    if not isinstance(problem.term, SDE):
        return True
    return problem.term.noise == "additive" and problem.term.takes != "batch"  # samples may act on each other there


@torch.no_grad()
def measured(chain: DriftChain, path: Tensor, scale: Tensor, rates: Tensor, wanted: np.ndarray) -> tuple[Growth, int]:
    """Measure growth along a path.

    Args:
        chain: of N explicit one-step steps.
        path: ``(N + 1, B, D)`` finite states.
        scale: ``(B, D)`` units of each number, which sizes of changes are measured in.
        rates: ``(N, B)`` relative change of a change of the state by each step, as far as is known; sets the length of
            the first pieces.
        wanted: ``(B,)`` booleans: the samples to measure.

    Returns:
        The growth, and the rounds that it took. The growth is NaN for other samples, for samples that would need more
        than `_DEAREST` evaluations a step or too much memory, and where a derivative is not finite.
    """
    steps, (samples, size) = len(rates), path.shape[1:]
    most = min(_DEAREST * steps // (size + 1), _NUMBERS // (samples * size**2))  # places
    jacobians, many = StepJacobians(chain, path, scale), min(_SEGMENTS, steps)
    ends = np.repeat(np.linspace(0, steps, many + 1).astype(np.int64)[:, None], samples, 1)
    table = torch.full((many + 1, many + 1, samples), torch.nan, dtype=torch.float64)
    fewest = _FEWEST if chain.smooth else steps
    edges = {b: first_edges(rates[:, b], _AIM, fewest) for b in map(int, np.flatnonzero(wanted))}
    reach = np.full(samples, _REACH)
    for _ in range(_PASSES):
        edges = {b: own for b, own in edges.items() if places_of(own) <= most}
        if not edges:
            break
        pieces = GrowthPieces.between(edges)
        seen = jacobians.at(pieces.places, pieces.sample)
        moved = changes(seen)
        parts = np.minimum(np.ceil(moved * pieces.count / reach[pieces.sample]), pieces.count).clip(1)
        parts = dict(zip(edges, np.split(parts, np.flatnonzero(np.diff(pieces.sample)) + 1), strict=True))
        short = [b for b, own in parts.items() if (own == 1).all()]
        bounds = [np.linspace(0, len(parts[b]), many + 1).round().astype(np.int64) for b in short]
        tables = _tables(pieces.propagators(seen, moved, short), bounds) if short else []
        for b, own, (fine, coarse) in zip(short, bounds, tables, strict=True):
            if abs(float((fine.amax() / coarse.amax()).log())) <= np.log(_AGREE):
                ends[:, b], table[..., b] = edges.pop(b)[own], fine
            else:
                reach[b], parts[b] = reach[b] / 2, 0 * parts[b] + 2
        edges = {b: cut(own, parts[b].astype(int)) for b, own in edges.items() if np.isfinite(parts[b]).all()}
    return Growth(ends, table), jacobians.rounds


def _tables(pieces: Tensor, bounds: list[np.ndarray]) -> Tensor:
    """Multiply the propagators of pieces: growth from each end of a segment to every later end.

    Args:
        pieces: ``(2, P, D, D)`` of R samples one after another, of both orders.
        bounds: for each sample the index of the first piece of each of S segments, then the number of its pieces.

    Returns:
        ``(R, 2, S + 1, S + 1)``.
    """
    size, count = pieces.shape[-1], len(bounds[0]) - 1
    offsets = np.cumsum([0, *(own[-1] for own in bounds[:-1])])
    places = np.stack([own + offset for own, offset in zip(bounds, offsets, strict=True)])
    one = torch.eye(size, dtype=pieces.dtype)
    segments, last = one.expand(2, len(bounds), count, size, size), places[:, 1:]
    for k in range(int(np.diff(places).max())):
        at = places[:, :-1] + k
        further = pieces[:, torch.from_numpy(np.minimum(at, pieces.shape[1] - 1))]
        segments = torch.where(torch.from_numpy(at < last)[..., None, None], further @ segments, segments)
    segments = segments.flatten(0, 1)
    since = segments.new_zeros(len(segments), (count + 1) * size, size)  # transposed, from one end after another
    table = segments.new_zeros(len(segments), count + 1, count + 1)
    for j in range(count + 1):
        if j:
            since[:, : j * size] = since[:, : j * size] @ segments[:, j - 1].mT
        since[:, j * size : (j + 1) * size] = one
        norms = torch.linalg.vector_norm(since[:, : (j + 1) * size].unflatten(1, (-1, size)), dim=(2, 3))
        table[:, j, : j + 1] = (norms / one.norm()).nan_to_num(torch.inf, torch.inf)
    return table.unflatten(0, (2, -1)).transpose(0, 1)
