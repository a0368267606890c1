"""A guess that extrapolates the last states."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.guesses.base import Entering, Guess
from picardsolve.fixed_point.placement import Pick, sent
from picardsolve.integrators.base import Chain, Index
from picardsolve.problem.checks import check_positive_integer
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import SDE


@dataclass(frozen=True)
class Polynomial(Guess):
    """The polynomial through the last states of the window; beyond its reach, steps with the last output held fixed.

    The nodes cover as many steps before the window's end as there are states to guess after it. The polynomial
    extrapolates no further than its nodes reach back. So errors of the nodes grow by a bounded factor for any window:
    on equal steps by at most 17 for degree 2, 111 for 3, 769 for 4. On smooth ODEs this guess saves a third to a half
    of the rounds where many windows cover the grid, and none where one or two do. On samplers this guess does not help.

    Args:
        degree: degree of the polynomial, at least 1; 3 by default. The degree is lower where fewer states are known.

    Raises:
        TypeError: the degree is not an integer; in a solve, the chain has noise.
        ValueError: the degree is below 1.
    """

    degree: int = 3
    ts: Tensor | None = field(default=None, repr=False, compare=False, kw_only=True)  # set for a problem

    def __post_init__(self):
        check_positive_integer("degree", self.degree)

    def prepared(self, problem: Problem, chain: Chain) -> Guess:
        """The guess on this grid; a TypeError for chains with noise, whose paths are not smooth."""
        if chain.noise_size > 0 or isinstance(problem.term, SDE):
            raise TypeError("guess: Polynomial needs a chain without noise; pass FrozenOutput() or FrozenSample().")
        return replace(self, ts=problem.ts)

    def ahead(self, entering: Entering) -> Tensor:
        """The polynomial; beyond its reach, steps with the last output held fixed, shifted to the polynomial's end."""
        assert self.ts is not None
        frozen, reach = entering.extended("output"), within_reach(entering)
        states = extrapolated(entering, self.ts, self.degree, None)
        return frozen + (states - Pick.at(reach).of(frozen))


def within_reach(entering: Entering) -> Index:
    """For each of the L states its row, or the last row that the extrapolation reaches, ``(L, B)``."""
    assert entering.trail is not None
    reach = np.minimum(entering.trail.last, entering.wanted)
    return np.minimum(np.arange(len(entering.n))[:, None], np.maximum(reach - 1, 0))


def extrapolated(entering: Entering, ts: Tensor, degree: int, path: Tensor | None) -> Tensor:
    """The polynomial through earlier states minus ``path`` (None: 0), ``(L, B, D)``; constant beyond its reach."""
    trail, times, row = entering.trail, ts.numpy(), within_reach(entering)
    assert trail is not None
    reach, first = np.minimum(trail.last, entering.wanted), entering.n[0] + np.zeros_like(trail.last)
    degrees = np.minimum(degree, reach)
    back = np.arange(degree + 1)[:, None] * reach // np.maximum(degrees, 1)
    nodes, at = np.maximum(first - back, 0), np.minimum(first + 1 + row, len(times) - 1)
    known, earlier = Pick.at(np.maximum(trail.last - back, 0)), Pick.at(nodes)
    sent(trail.y.device, [known] if path is None else [known, earlier], [])
    states = known.of(torch.cat([trail.start[None], trail.y]))
    if path is not None:
        states = states - earlier.of(path)
    weights = np.stack(_lagrange(times[nodes], times[at], degrees), -1)  # (L, B, K)
    return torch.einsum("lbk,kbd->lbd", torch.from_numpy(weights).to(states), states)


def _lagrange(nodes: np.ndarray, at: np.ndarray, degree: Index) -> list[np.ndarray]:
    """Weights ``(L, B)`` of each node ``(K, B)`` in the polynomial at ``at``; 0 for nodes beyond the degree."""
    weights, count = [], len(nodes)
    for j in range(count):
        weight = np.where(j <= degree, np.ones_like(at), 0.0)
        for other in range(count):
            if other != j:
                apart = np.where(np.maximum(j, other) <= degree, nodes[j] - nodes[other], 1.0)
                weight *= np.where(np.maximum(j, other) <= degree, (at - nodes[other]) / apart, 1.0)
        weights.append(weight)
    return weights
