"""Extrapolation of the last states as a guess."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.guesses.base import Entering, Guess
from picardsolve.fixed_point.guesses.frozen import held
from picardsolve.integrators.base import Chain, Index
from picardsolve.problem.checks import check_positive_integer
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import SDE


@dataclass(frozen=True)
class Polynomial(Guess):
    """Extrapolate the last states of the window over the grid's times, and go on with the last output held fixed.

    The nodes are spread over as many steps back as are looked ahead, and it is never looked further ahead than back:
    so what becomes of the nodes' errors is bounded, whatever the window (17 times the largest for degree 2, 111 for 3,
    769 for 4, on equal steps). Helps on smooth ODEs with windows that take many to cover the grid (a third to a half
    of the rounds saved), not where one or two do, and not on samplers.

    Args:
        degree: of the polynomial; lower where fewer states are known.
    """

    degree: int = 3
    ts: Tensor | None = field(default=None, repr=False, compare=False, kw_only=True)  # once the problem is known

    def __post_init__(self):
        check_positive_integer("degree", self.degree)

    def prepared(self, problem: Problem, chain: Chain) -> Guess:
        """Refuse chains with noise, whose paths are not smooth."""
        if chain.noise_size > 0 or isinstance(problem.term, SDE):
            raise TypeError("guess: Polynomial needs a chain without noise; pass FrozenOutput() or FrozenSample().")
        return replace(self, ts=problem.ts)

    def ahead(self, entering: Entering) -> Tensor:
        """The chain with its last output held fixed, moved to the polynomial; beyond its reach, by a fixed distance."""
        assert self.ts is not None
        frozen, reach = held(entering, "output"), within_reach(entering)
        states = extrapolated(entering, self.ts, self.degree, None)
        return frozen + (states - frozen[torch.from_numpy(reach), torch.arange(reach.shape[1])])


def within_reach(entering: Entering) -> Index:
    """``(L, B)`` the row itself, or the last one that an extrapolation reaches."""
    assert entering.trail is not None
    reach = np.minimum(entering.trail.last, entering.wanted)
    return np.minimum(np.arange(len(entering.n))[:, None], np.maximum(reach - 1, 0))


def extrapolated(entering: Entering, ts: Tensor, degree: int, path: Tensor | None) -> Tensor:
    """The polynomial through earlier states less those of a path, ``(L, B, D)``; constant beyond its reach.

    Args:
        entering: what is asked for.
        ts: ``(N + 1,)`` times of the grid.
        degree: of the polynomial, where so many states are known.
        path: ``(N + 1, B, D)``; None for zeros.
    """
    trail, times, row = entering.trail, ts.numpy(), within_reach(entering)
    assert trail is not None
    reach, first = np.minimum(trail.last, entering.wanted), entering.n[0] + np.zeros_like(trail.last)
    degrees = np.minimum(degree, reach)
    back = np.arange(degree + 1)[:, None] * reach // np.maximum(degrees, 1)
    nodes, at = np.maximum(first - back, 0), np.minimum(first + 1 + row, len(times) - 1)
    terms = []
    for weight, node, steps in zip(_lagrange(times[nodes], times[at], degrees), nodes, back, strict=True):
        state = trail.state(np.maximum(trail.last - steps, 0))
        if path is not None:
            state = state - path[torch.from_numpy(node), torch.arange(len(node))]
        terms.append(torch.from_numpy(weight[..., None]).to(state) * state)
    return sum(terms[1:], terms[0])


def _lagrange(nodes: np.ndarray, at: np.ndarray, degree: Index) -> list[np.ndarray]:
    """Weights ``(L, B)`` of the values at nodes ``(K, B)`` for the polynomial's at ``at``; 0 beyond the degree."""
    weights, count = [], len(nodes)
    for j in range(count):
        weight = np.where(j <= degree, np.ones_like(at), 0.0)
        for other in range(count):
            if other != j:
                apart = np.where(np.maximum(j, other) <= degree, nodes[j] - nodes[other], 1.0)
                weight *= np.where(np.maximum(j, other) <= degree, (at - nodes[other]) / apart, 1.0)
        weights.append(weight)
    return weights
