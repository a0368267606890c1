"""GrowthPieces of a grid, and the propagators of the linearised steps over each."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

_SHORT = 4  # steps of a piece up to which all are differentiated
_OUTER = 0.5 - 15**0.5 / 10  # the first of three Gauss points of a piece, relative to its length
_PRECISE = 1e-6  # neglected part of a logarithm, relative to its first term
_MOST_TERMS = 8  # of the series of a logarithm
_DEGREE = 9  # of the series of an exponential, for matrices with norms of about 1


@dataclass(frozen=True)
class GrowthPieces:
    """P pieces of the grid, sample by sample; each has an odd number of steps, so that one step is in its middle.

    Attributes:
        sample: ``(P,)``.
        begin: ``(P,)`` the first step of each.
        count: ``(P,)`` the steps of each.
    """

    sample: np.ndarray
    begin: np.ndarray
    count: np.ndarray

    @staticmethod
    def between(edges: dict[int, np.ndarray]) -> "GrowthPieces":
        """The pieces between the edges of each sample."""
        sample = np.repeat(list(edges), [len(own) - 1 for own in edges.values()])
        begin = np.concatenate([own[:-1] for own in edges.values()])
        return GrowthPieces(sample, begin, np.concatenate([np.diff(own) for own in edges.values()]))

    @property
    def _inset(self) -> np.ndarray:
        """Steps before the first of the three places."""
        return (_OUTER * self.count - 0.5).round().clip(0).astype(np.int64)

    @property
    def places(self) -> np.ndarray:
        """``(3, P)`` the steps to differentiate; three times the same for a piece of one step."""
        inset, end = self._inset, self.begin + self.count
        return np.stack([self.begin + inset, (self.begin + end - 1) // 2, end - 1 - inset])

    def propagators(self, seen: Tensor, moved: np.ndarray, samples: list[int]) -> Tensor:
        """The propagators of some samples' P' pieces, by the sixth order and by the fourth: ``(2, P', D, D)``.

        Args:
            seen: ``(3, P, D, D)`` Jacobians at the places.
            moved: ``(P,)`` their `changes`.
            samples: the samples, in the order of the pieces.
        """
        mine = np.isin(self.sample, samples)
        count, inset, seen = self.count[mine], self._inset[mine], seen[:, torch.from_numpy(mine)]
        long = torch.from_numpy(count > 1)
        h, d = (torch.from_numpy(value)[long, None, None] for value in (count * 1.0, (count - 1 - 2 * inset) / 2))
        before, middle, behind = _logarithm(seen[:, long], moved[mine][count > 1].max(initial=0))
        a, b = h * middle, h**2 / (2 * d) * (behind - before)
        c = h**3 / (2 * d**2) * (behind - 2 * middle + before)
        ab = _commutator(a, b)
        further = _commutator(-20 * a - c + ab, b - _commutator(a, 2 * c + ab) / 60) / 240
        found = seen[1].repeat(2, 1, 1, 1)
        found[:, long] = _exponential(torch.stack([a + c / 12 + further, a + c / 12 - ab / 12]))
        return found


def changes(seen: Tensor) -> np.ndarray:
    """Relative change of a change of the state by one step, ``(P,)``: the largest of three Jacobians ``(3, P, D, D)``.

    It is the root of a bound of ``||(J - I)^2||``, which depends less on the units of the state than ``||J - I||``.
    """
    beyond = seen - torch.eye(seen.shape[-1], dtype=seen.dtype)
    square = (beyond @ beyond).abs()
    return (square.sum(-1).amax(-1) * square.sum(-2).amax(-1)).amax(0).pow(0.25).numpy()


def places_of(edges: np.ndarray) -> int:
    """How many steps are differentiated: one for a piece of a single step, three for a longer one."""
    return len(edges) - 1 + 2 * int((np.diff(edges) > 1).sum())


def first_edges(rates: Tensor, aim: float, fewest: int) -> np.ndarray:
    """Edges of pieces in which rates ``(N,)`` add up to about ``aim``; rates below half their mean count as that."""
    steps, known = len(rates), rates.nan_to_num(0, 0, 0).clamp(max=10).numpy()
    known = np.maximum(known, known.mean() / 2 + 1e-12)
    pieces = int(np.clip(np.ceil(known.sum() / aim), min(fewest, steps), steps))
    weight = np.append(0, known.cumsum())
    ends = np.interp(np.linspace(0, weight[-1], pieces + 1), weight, np.arange(steps + 1)).round()
    return _odd(np.unique(ends).astype(np.int64))


def cut(edges: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Cut each piece into about as many parts as given; the edges of other pieces stay where they are."""
    inner = [
        a + _odd(np.unique(np.linspace(0, b - a, n + 1).round().astype(np.int64)))[1:]
        for (a, b), n in zip(pairwise(edges), parts, strict=True)
    ]
    return np.concatenate([edges[:1], *inner])


def _odd(edges: np.ndarray) -> np.ndarray:
    """Cut short pieces into steps, and move edges by at most one step, so that pieces have odd numbers of steps."""
    short = [np.arange(a, b) for a, b in pairwise(edges) if b - a <= _SHORT]
    edges = np.unique(np.concatenate([edges, *short]))
    last = edges[-1]
    edges = np.unique(np.minimum(edges + (edges - np.arange(len(edges))) % 2, last))  # even, odd, even, ...
    return edges if (last - edges[-2]) % 2 else np.insert(edges, -1, last - 1)


def _commutator(a: Tensor, b: Tensor) -> Tensor:
    return a @ b - b @ a


def _logarithm(matrices: Tensor, moved: float) -> Tensor:
    """Logarithms, by their series, of matrices ``(..., D, D)`` that differ by about ``moved`` from the identity."""
    one = torch.eye(matrices.shape[-1], dtype=matrices.dtype)
    beyond = (matrices - one).flatten(0, -3)
    terms = int(np.clip(np.log(_PRECISE) / np.log(np.clip(moved, 1e-12, 0.5)), 1, _MOST_TERMS - 1)) + 1
    total = one.expand_as(beyond) * ((-1) ** (terms + 1) / terms)
    for k in range(terms - 1, 0, -1):
        total = torch.baddbmm(one, beyond, total, beta=(-1) ** (k + 1) / k)
    return (beyond @ total).reshape(matrices.shape)


def _exponential(matrices: Tensor) -> Tensor:
    """Exponentials, by their series, of matrices ``(..., D, D)`` with norms of about 1."""
    one, flat = torch.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.flatten(0, -3)
    total = one + flat / _DEGREE
    for k in range(_DEGREE - 1, 0, -1):
        total = torch.baddbmm(one, flat, total, alpha=1 / k)
    return total.reshape(matrices.shape)
