"""By how much small changes of a state grow along a solution: from Jacobians of its steps, by differences.

Products of slopes that are seen along one change after another say nothing of that: on an orbit they grow without end,
while an error there only drifts. So the steps are differentiated in every direction, at three places of each piece of
the grid, all in one round. Their logarithms give the propagator of the piece by Magnus' series to the sixth order, on
Gauss' points (Blanes, Casas, Oteo & Ros 2009, eq. 257); of a piece of few steps it is the product of them all.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Rows
from picardsolve.problem.problem import Problem
from picardsolve.problem.state import LARGEST_DENSE
from picardsolve.problem.terms import SDE, Denoiser

_REACH = 0.6  # of a piece: its steps times how much one of them changes a state
_SHORT = 4  # steps of a piece that are all differentiated
_OUTER = 0.5 - 15**0.5 / 10  # of a piece: where the first of three points of Gauss lies
_FEWEST = 16  # pieces to begin with
_AGREE = 4.0  # times that growth to a lower order may differ; to the higher it is then far nearer
_PASSES = 10  # in which pieces are cut
_SEGMENTS = 48  # between whose ends growth is kept
_TERMS = 8  # of a logarithm's series
_DEAREST = 65  # rows for each step of the grid
_NUMBERS = 2**23  # in all Jacobians
_TOGETHER = 4096  # rows of a call


@dataclass(frozen=True)
class Growth:
    """Growth between the ends of S segments of a grid, the root mean square over all directions of a change.

    Attributes:
        ends: ``(S + 1, B)`` steps.
        table: ``(S + 1, S + 1, B)`` float64: of a change made at end i by the later end j, ``table[j, i]``; else 0. NaN
            for samples of which it is not known.
    """

    ends: np.ndarray
    table: Tensor

    @property
    def since_start(self) -> Tensor:
        """``(B,)``: of a change of the initial state, the largest."""
        return self.table[:, 0].amax(0)

    @property
    def largest(self) -> Tensor:
        """``(B,)``: between any two times."""
        return self.table.amax((0, 1))

    def carried(self, residuals: Tensor) -> Tensor:
        """Errors ``(N + 1, B)`` that residuals ``(N, B)`` of the steps have added up to, whatever their signs.

        Where the growth is not known, their sums.
        """
        zero = torch.zeros_like(residuals[:1])
        steps, added = np.arange(len(residuals) + 1)[:, None], torch.cat([zero, residuals.cumsum(0)])
        segment = torch.from_numpy(sum((steps >= end).astype(np.int64) for end in self.ends[1:-1]) + 0 * steps)
        segment = segment.expand_as(added)
        at_ends = added.gather(0, torch.from_numpy(self.ends))
        later = torch.ones(len(self.table), len(at_ends) - 1, dtype=torch.float64).tril(-1)[..., None]
        reached = (later * torch.maximum(self.table[:, :-1], self.table[:, 1:]) * at_ends.diff(dim=0)).sum(1)
        errors = reached.gather(0, segment) + added - at_ends.gather(0, segment)
        errors = errors.scatter(0, torch.from_numpy(self.ends), reached)
        return torch.where(self.table[0, 0] == 1, errors, added)


def measurable(problem: Problem, chain: DriftChain, size: int) -> bool:
    """Whether a few steps tell of the others: not of noise that depends on the state, nor of large states."""
    if chain.implicit or chain.memory or size > LARGEST_DENSE or isinstance(problem.term, Denoiser):
        return False
    if not isinstance(problem.term, SDE):
        return True
    return problem.term.noise == "additive" and problem.term.takes != "batch"  # samples may act on each other there


@torch.no_grad()
def measured(chain: DriftChain, path: Tensor, scale: Tensor, rates: Tensor, wanted: np.ndarray) -> tuple[Growth, int]:
    """Differentiate steps along a path.

    Args:
        chain: of N explicit one-step steps.
        path: ``(N + 1, B, D)`` finite states.
        scale: ``(B, D)``: by which changes of each number are measured.
        rates: ``(N, B)`` by how much a step changes a state, as far as is known; says where to look first.
        wanted: ``(B,)``: of which samples.

    Returns:
        The growth, not known of other samples, nor where it would cost more than `_DEAREST` evaluations a step or too
        much memory, or where a derivative is not finite; and the rounds that it took.
    """
    steps, (samples, size) = len(rates), path.shape[1:]
    edges = [_odd(_first_edges(rates[:, b])) for b in range(samples)]
    reach, known, sought, rounds = np.full(samples, _REACH), np.zeros(samples, bool), wanted.copy(), 0
    for _ in range(_PASSES):
        most = min(_DEAREST * steps // (size + 1), _NUMBERS // (samples * size**2))
        sought &= np.array([_places(own) <= most for own in edges])
        edges = [own if go else own[[0, -1]] for own, go in zip(edges, sought | known, strict=True)]
        longest = max(map(len, edges))
        grid = np.stack([np.pad(own, (0, longest - len(own)), mode="edge") for own in edges], 1)
        count = np.diff(grid, axis=0)
        inset = (_OUTER * count - 0.5).round().clip(0).astype(np.int64)
        places = np.stack([grid[:-1] + inset, (grid[:-1] + grid[1:] - 1) // 2, grid[1:] - 1 - inset]).clip(0, steps - 1)
        apart = (count > 1).any(1)  # of a single step the three places are one
        asked = np.concatenate([places[1], places[0, apart], places[2, apart]])
        found, more = _jacobians(chain, path, scale, asked)
        seen, rounds = found[: len(count)].repeat(3, 1, 1, 1, 1), rounds + more
        several = torch.from_numpy(apart)
        seen[0, several], seen[2, several] = found[len(count) :].unflatten(0, (2, -1))
        sought &= seen.isfinite().all(-1).all(-1).all(0).all(0).numpy()
        seen = seen.nan_to_num(0, 0, 0)
        both = _propagators(seen, torch.from_numpy(count), torch.from_numpy(count - 1 - 2 * inset) / 2)
        fine, coarse = (_between(grid, edges, pieces) for pieces in both)
        differ = (fine.largest / coarse.largest).log().abs().numpy()
        parts = np.minimum(np.ceil(_beyond(seen) * count / reach), count).astype(int).clip(1)
        short = (parts == 1).all(0)
        known = known | (sought & short & (differ <= np.log(_AGREE)))
        sought &= ~known
        if not sought.any():
            break
        parts[:, short] = np.minimum(2, count[:, short]).clip(1)
        reach = np.where(short, reach / 2, reach)
        edges = [_cut(own, parts[:, b]) if sought[b] else own for b, own in enumerate(edges)]
    table = fine.table.masked_fill(torch.from_numpy(~known), torch.nan)
    return Growth(fine.ends, table), rounds


def _places(edges: np.ndarray) -> int:
    count = np.diff(edges)
    return len(count) + 2 * int((count > 1).sum())


def _cut(edges: np.ndarray, parts: np.ndarray) -> np.ndarray:
    pieces = [np.linspace(a, b, n + 1).round()[:-1] for (a, b), n in zip(pairwise(edges), parts, strict=False)]
    return _odd(np.append(np.concatenate(pieces), edges[-1]).astype(np.int64))


def _beyond(seen: Tensor) -> np.ndarray:
    """By how much a step changes a state, ``(K, B)``: the root of the norm of the square; units matter less for it."""
    beyond = seen - torch.eye(seen.shape[-1], dtype=seen.dtype)
    return torch.linalg.matrix_norm(beyond @ beyond, 2).sqrt().amax(0).numpy()


def _first_edges(rates: Tensor) -> np.ndarray:
    """Ends of pieces that change a state about equally much, and are not too long either."""
    steps, known = len(rates), rates.nan_to_num(0, 0, 0).clamp(max=10).numpy()
    pieces = int(np.clip(np.ceil(known.sum() / _REACH), min(_FEWEST, steps), steps))
    weight = np.append(0, (known + max(known.mean(), 1e-12)).cumsum())
    ends = np.interp(np.linspace(0, weight[-1], pieces + 1), weight, np.arange(steps + 1)).round()
    return np.unique(np.concatenate([[0], ends, [steps]])).astype(np.int64)


def _odd(edges: np.ndarray) -> np.ndarray:
    """Cut short pieces into steps, and the first step off even ones: the middle of a piece is then that of a step."""
    count = np.diff(edges)
    short = [np.arange(a, a + n) for a, n in zip(edges, count, strict=False) if n <= _SHORT]
    return np.unique(np.concatenate([edges, edges[:-1][count % 2 == 0] + 1, *short]))


def _jacobians(chain: DriftChain, path: Tensor, scale: Tensor, places: np.ndarray) -> tuple[Tensor, int]:
    """Of the steps at ``places`` (K, B), in units of ``scale``: ``(K, B, D, D)`` float64 on the CPU; and the rounds."""
    samples, size = path.shape[1:]
    usual = path.double().square().mean(0).sqrt().to(scale)
    unit = torch.finfo(path.dtype).eps ** (1 / 3)  # where rounding and curvature do as little harm
    moves = unit * torch.where(usual > 0, torch.maximum(usual, 1e-3 * scale), scale)
    everyone, many = np.arange(samples), max(_TOGETHER // ((size + 1) * samples), 1)
    columns = []
    for first in range(0, len(places), many):
        part = places[first : first + many]
        states = path[torch.from_numpy(part).to(path.device), torch.from_numpy(everyone).to(path.device)]
        moved = torch.cat([states[:, None], states[:, None] + torch.diag_embed(moves).transpose(0, 1)], 1)
        step = np.repeat(part[:, None], size + 1, 1).ravel()
        rows = Rows(step, np.tile(everyone, len(part) * (size + 1)), moved.flatten(0, 2))
        image = chain.step(rows)[0].reshape(moved.shape).double()
        really = (moved[:, 1:].double() - moved[:, :1].double()).diagonal(dim1=1, dim2=3)  # as it was rounded
        columns.append(((image[:, 1:] - image[:, :1]).permute(0, 2, 3, 1) / really[:, :, None, :]).cpu())
    scale = scale.double().cpu()
    return torch.cat(columns) * scale[:, None, :] / scale[..., None], len(columns)


def _propagators(seen: Tensor, count: Tensor, apart: Tensor) -> Tensor:
    """Of pieces, to the sixth and to the fourth order: ``(2, K, B, D, D)``.

    Args:
        seen: ``(3, K, B, D, D)`` Jacobians before, in and behind their middles.
        count: ``(K, B)`` steps of each; of none the propagator is the identity.
        apart: ``(K, B)`` steps between those places.
    """
    several, one = (count > 1)[..., None, None], torch.eye(seen.shape[-1], dtype=seen.dtype)
    before, middle, behind = _logarithm(torch.where(several, seen, one))
    h, d = count[..., None, None], torch.where(several, apart[..., None, None], 1)
    a, b = h * middle, h**2 / (2 * d) * (behind - before)
    c = h**3 / (2 * d**2) * (behind - 2 * middle + before)
    ab = _commutator(a, b)
    further = _commutator(-20 * a - c + ab, b - _commutator(a, 2 * c + ab) / 60) / 240
    exponents = torch.stack([a + c / 12 + further, a + c / 12 - ab / 12]).nan_to_num(0, 0, 0)
    few = torch.where((count == 1)[..., None, None], seen[1], one)
    return torch.where(several, torch.linalg.matrix_exp(exponents), few)


def _commutator(a: Tensor, b: Tensor) -> Tensor:
    return a @ b - b @ a


def _logarithm(matrices: Tensor) -> Tensor:
    """Of matrices near the identity: where steps are taken together, each changes little."""
    beyond = matrices - torch.eye(matrices.shape[-1], dtype=matrices.dtype)
    power, total = beyond, beyond
    for k in range(2, _TERMS):
        power = power @ beyond
        total = total + power * ((-1) ** (k + 1) / k)
    return total


def _between(grid: np.ndarray, edges: list[np.ndarray], pieces: Tensor) -> Growth:
    """Multiply the propagators of pieces: of segments, and from each end of one to every later end.

    Args:
        grid: ``(K + 1, B)`` the ends of pieces, the last one repeated.
        edges: of each sample, without repetition.
        pieces: ``(K, B, D, D)``.
    """
    everyone, size = np.arange(len(edges)), pieces.shape[-1]
    many = [min(_SEGMENTS, len(own) - 1) for own in edges]
    bounds = [np.linspace(0, len(own) - 1, n + 1).round().astype(int) for own, n in zip(edges, many, strict=True)]
    longest = max(many)
    bounds = np.stack([np.pad(own, (0, longest + 1 - len(own)), mode="edge") for own in bounds], 1)
    one = torch.eye(size, dtype=torch.float64).expand(len(everyone), size, size)
    segments = one.expand(longest, *one.shape).clone()
    for k, piece in enumerate(pieces):
        at = ((bounds <= k).sum(0) - 1).clip(max=longest - 1)
        segments[at, everyone] = piece @ segments[at, everyone]
    table = torch.zeros(longest + 1, longest + 1, len(everyone), dtype=torch.float64)
    table[0, 0], since = 1, one[None]
    for j, over in enumerate(segments, 1):
        since = torch.cat([over @ since, one[None]])
        table[j, : j + 1] = (torch.linalg.matrix_norm(since) * size**-0.5).nan_to_num(torch.inf, torch.inf)
    return Growth(grid[bounds, everyone], table)
