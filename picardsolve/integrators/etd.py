"""Exponential time differencing: the linear part is solved exactly, the rest by Runge-Kutta. Each stage is a round."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Evaluated, Hold, Index, Integrator, Rows, accepted_term
from picardsolve.integrators.step_maps import Steps
from picardsolve.integrators.step_table import Times
from picardsolve.problem.linear import Linear, Table
from picardsolve.problem.problem import Problem
from picardsolve.problem.recurrence import arriving, rms
from picardsolve.problem.terms import SemilinearODE

Phi: TypeAlias = list[Table]
# a stage: its time within the step, and the weights by which it is reached, for given phi_k(h L) and phi_k(h L / 2):
# one for the state before the step, one for h N of each earlier stage (0: none). The last stage is the step itself.
Stage: TypeAlias = tuple[float, Callable[[Phi, Phi], tuple[Table, list]]]

_EULER: tuple[Stage, ...] = ((1.0, lambda p, q: (p[0], [p[1]])),)
_SECOND: tuple[Stage, ...] = (*_EULER, (1.0, lambda p, q: (p[0], [p[1] - p[2], p[2]])))
_FOURTH: tuple[Stage, ...] = (
    (0.5, lambda p, q: (q[0], [q[1] / 2])),
    (0.5, lambda p, q: (q[0], [0, q[1] / 2])),
    (1.0, lambda p, q: (p[0], [p[1] - q[1], 0, q[1]])),  # q_1 (q_0 - 1) / 2 = p_1 - q_1
    (1.0, lambda p, q: (p[0], [p[1] - 3 * p[2] + 4 * p[3], *[2 * p[2] - 4 * p[3]] * 2, 4 * p[3] - p[2]])),
)
_INSTEAD = "picardsolve.SemilinearODE(linear, nonlinear), or another integrator"


@dataclass(frozen=True)
class ETD1(Integrator):
    """Exponential Euler for a `SemilinearODE`, ``x[n+1] = e^{hL} x[n] + h phi_1(hL) N(t[n], x[n])``; order 1.

        term = ps.SemilinearODE(-rates, lambda t, y: y.sin())
        sol = ps.solve(term, y0, ts, integrator=ps.ETD1())

    Source: Cox & Matthews 2002, eq. 4. The method is stable for any linear part, and exact without the nonlinear part.
    The functions ``phi_k`` are computed without cancellation (Kassam & Trefethen 2005). The default iteration is
    `Exponential`, which solves the linear part exactly, so that only N is iterated. For a matrix, one set of functions
    is computed for each different step length, which is cheap on uniform grids.

    Raises:
        TypeError: in a solve, the term is no `SemilinearODE`.
    """

    order = 1

    def chain(self, problem: Problem) -> DriftChain:
        """The chain of a `SemilinearODE`."""
        return ETDChain(self, problem, _EULER)


@dataclass(frozen=True)
class ETDRK2(Integrator):
    """`ETD1` with a second stage; order 2, so that a window takes two rounds (Cox & Matthews 2002, eq. 22).

    sol = ps.solve(ps.SemilinearODE(linear, nonlinear), y0, ts, integrator=ps.ETDRK2())
    """

    order = 2

    def chain(self, problem: Problem) -> DriftChain:
        """The chain of a `SemilinearODE`."""
        return ETDChain(self, problem, _SECOND)


@dataclass(frozen=True)
class ETDRK4(Integrator):
    """`ETD1` with four stages; order 4, so that a window takes four rounds (Cox & Matthews 2002, eqs. 26 to 29).

        sol = ps.solve(ps.SemilinearODE(linear, nonlinear), y0, ts, integrator=ps.ETDRK4())

    The order is lower where N varies along stiff modes (Hochbruck & Ostermann 2005).
    """

    order = 4

    def chain(self, problem: Problem) -> DriftChain:
        """The chain of a `SemilinearODE`."""
        return ETDChain(self, problem, _FOURTH)


class ETDChain(DriftChain):
    """``Phi_n(x) = e^{hL} x + h sum_i b_i(hL) N_i``; the output of a step is ``N_i`` of all stages side by side."""

    iteration = "exponential"

    def __init__(self, integrator: Integrator, problem: Problem, stages: tuple[Stage, ...]):
        term, layout = accepted_term(integrator, problem, SemilinearODE, instead=_INSTEAD), problem.layout
        self.length, self.rounds = len(problem.ts) - 1, len(stages)
        self.function = problem.row_function("nonlinear", term.nonlinear)
        h = problem.ts.diff()
        self._operator, self._shape = term.operator, tuple(layout.shapes[0])
        lengths, self._length = _distinct(problem.ts)
        whole, half = (term.operator.phi(h, min(len(stages), 3), self._shape) for h in (lengths, lengths / 2))
        self._exact = [_Combination.of(lengths, reach(whole, half)) for _, reach in stages]
        self._tables = [c.cast(layout.compute_dtype, layout.device) for c in self._exact]
        nodes = [0.0, *(node for node, _ in stages[:-1])]
        self._stages = Times(torch.stack([problem.ts[:-1] + node * h for node in nodes]), self.function)

    def evaluate(self, rows: Rows) -> Tensor:
        """``N`` of all stages, ``(R, rounds D)``, and their derivatives."""
        states, found, at = rows.dual, [], self._length[rows.step]
        y = states
        for t, table in zip(self._stages.numbers(rows.step), self._tables, strict=True):
            found.append(self.function(t, y, rows.sample))
            if len(found) < self.rounds:
                y = self._reached(table, at, states, found)
        return torch.cat(found, -1)

    def _reached(self, table: "_Combination", at: Index, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """``start x + sum_i weight_i N_i`` of rows ``(..., *at.shape, D)``."""
        terms = [(_of_rows(table.start, at), x.unflatten(-1, self._shape))]
        for weight, output in zip(table.weights, outputs, strict=True):
            if weight is not None:
                terms.append((_of_rows(weight, at), output.unflatten(-1, self._shape)))
        return self._operator.combined(terms).reshape(x.shape)

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The step maps of a window."""
        step, at = self._tables[-1], self._length[n]
        images = self._reached(step, at, x, outputs.split(x.shape[-1], -1))
        return _ETDSteps(images, _of_rows(step.start, at), self._operator, self._shape)

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """Steps with ``N`` of each stage held fixed."""
        step, at = self._tables[-1], self._length[n]
        zero = torch.zeros_like(start).expand(len(n), *start.shape)
        outputs = source.output.expand(len(n), *source.output.shape).split(start.shape[-1], -1)
        added = self._reached(step, at, zero, outputs)
        factor = _of_rows(step.start, at)
        leaving = self._operator.combined([(factor[:1], start[None].unflatten(-1, self._shape))]).flatten(2)
        added = torch.cat([added[:1] + leaving, added[1:]]).unflatten(-1, self._shape)
        return self._operator.recur(factor, added).flatten(2)

    def step_constants(self, lipschitz: Tensor, one_sided: Tensor | None) -> Tensor:
        """``|start| + sum |weight_i| l_i`` for each stage, where ``l_i`` is L times the same sum for stage i."""
        if one_sided is not None:
            raise TypeError("one_sided: only of use to Euler() and BackwardEuler(); leave it out for a SemilinearODE.")
        reached = [torch.ones_like(lipschitz)]
        for table in self._exact:
            norms = [None if w is None else self._operator.norm(w)[self._length] for w in table.weights]
            found = sum(w * lipschitz * l for w, l in zip(norms, reached, strict=True) if w is not None)
            reached.append(self._operator.norm(table.start)[self._length] + found)
        return reached[-1][:, None]


@dataclass(frozen=True)
class _Combination:
    """How a stage is reached: the weights of the state before the step and of the earlier N, h included; None for 0."""

    start: Table
    weights: list[Table | None]

    @staticmethod
    def of(h: Tensor, reach: tuple[Table, list]) -> "_Combination":
        start, weights = reach
        h = h.reshape(-1, *[1] * (start.dim() - 1))
        return _Combination(start, [h * w if isinstance(w, Tensor) else None for w in weights])

    def cast(self, dtype: torch.dtype, device: torch.device) -> "_Combination":
        def moved(table: Table) -> Table:
            return table.to(device, dtype.to_complex() if table.is_complex() else dtype)

        return _Combination(moved(self.start), [w if w is None else moved(w) for w in self.weights])


@dataclass(frozen=True)
class _ETDSteps(Steps):
    """Step maps whose change is the linear part's, with N held fixed."""

    image: Tensor
    factor: Table
    operator: Linear
    shape: tuple[int, ...]

    def images(self) -> Tensor:
        return self.image

    def frozen(self, x: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        residual = torch.sub(self.image, x[1:], out=scratch)
        size = rms(residual)
        change = self.operator.recur(self.factor, residual.clone().unflatten(-1, self.shape)).reshape(residual.shape)
        passed = self.passed(arriving(change))
        return self.image + passed, residual + passed, size

    def passed(self, change: Tensor) -> Tensor:
        return self.operator.combined([(self.factor, change.unflatten(-1, self.shape))]).reshape(change.shape)


def _of_rows(table: Table, at: Index) -> Table:
    """The entries at ``at``, ``(*at.shape, ...)``. A table with a single entry is expanded, not copied."""
    if len(table) == 1:
        return table.expand(at.size, *table.shape[1:]).unflatten(0, at.shape)
    return table[torch.from_numpy(at)]


def _distinct(ts: Tensor) -> tuple[Tensor, Index]:
    """Step lengths ``(U,)`` that differ by more than the rounding of the times, and the index of each step's length."""
    h, slack = ts.diff().numpy(), 8 * np.finfo(np.float64).eps * float(ts.abs().max())
    order = np.argsort(h)
    fresh = np.diff(h[order], prepend=-np.inf) > slack
    group = np.empty_like(order)
    group[order] = fresh.cumsum() - 1
    return torch.from_numpy(h[order][fresh]), group
