"""Gradients of a solution by collocation, by the implicit function theorem: no iteration is stored or differentiated.

The states at the nodes satisfy ``Y = start + h A F(Y)``. A cotangent of them is carried back through the transposed
equations, segment by segment, to a cotangent of the drift at every node and of the start (discrete adjoint of a
collocation method: Sandu 2006; equilibrium models: Bai, Kolter & Koltun 2019); then one vector-Jacobian product of the
drift at all nodes gives the gradients with respect to whatever it depends on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.adjoint.recording import Adjoint, GradientSums, Inputs, Refused, pulled
from picardsolve.collocation import AdaptiveSolve
from picardsolve.collocation.trajectory import DenseStates
from picardsolve.collocation.transposed import Stack, TransposedWindow
from picardsolve.problem.parameters import recordable
from picardsolve.problem.row_function import RowFunction
from picardsolve.problem.state import LARGEST_DENSE, Layout
from picardsolve.results.solution import Solution

_DENSE = 300  # unknowns of a segment: up to here its equations are factorised
_NUMBERS = 2**24  # in the matrices of a window, or in the directions of its GMRES
_TOGETHER = 8  # segments of a sample that are iterated on together
_FEW = 16  # directions that GMRES keeps: each is as large as the states at the nodes
_DIRECTIONS = 60  # where it does not converge with these, as far as `_NUMBERS` allows
_SHARPER = 0.1  # of rtol: the residual that GMRES leaves


_MESH = "gradient: not recorded by adaptive solves with mesh=; leave mesh out, or solve on a grid."


def refused(solution: Solution, y0: Any, ts: Any, args: Sequence[Any], reach: Sequence[Tensor]) -> Solution:
    """The same solution, whose gradients are refused where they are asked for; arguments as for `differentiable`."""
    leaves = [leaf for leaf in pytree.tree_leaves((y0, ts, args)) if isinstance(leaf, Tensor)]
    asked = [leaf for leaf in (*leaves, *reach) if leaf.requires_grad]
    if not asked:
        return solution
    return replace(solution, ys=pytree.tree_map(lambda ys: Refused.apply(_MESH, ys, *asked), solution.ys))


def differentiable(
    solution: Solution, solve: AdaptiveSolve, y0: Any, ts: Any, args: Sequence[Any], reach: Sequence[Tensor]
) -> Solution:
    """The same solution, with gradients with respect to y0, ts, args and the drift's parameters, where these want them.

    Args:
        solution: by collocation.
        solve: that it was read from.
        y0: as the user gave it.
        ts: as the user gave them.
        args: as the user gave them.
        reach: leaves that the drift may depend on, whether a call has shown it or not.
    """
    start = solve.function.layout.pack(y0)
    times = recordable(ts).to("cpu", torch.float64) if isinstance(ts, Tensor) else solution.ts
    inputs = Inputs(tuple(args), tuple(solve.function.args), solve.function.parameters, reach)
    if not any(tensor.requires_grad for tensor in (times, start, *inputs.tensors)):
        return solution
    dense = _Differentiable(_SegmentAdjoint(inputs, solve), times[0], start)
    return replace(solution, ys=dense(times[-len(solution.ts) :]), dense=dense)


@dataclass(frozen=True)
class _Differentiable:
    """The states at any times, with gradients.

    Attributes:
        adjoint: of the solve.
        origin: the time of the start, ``()`` or ``(B,)``.
        start: ``(B, D)``.
    """

    adjoint: "_SegmentAdjoint"
    origin: Tensor
    start: Tensor

    def __call__(self, at: Tensor) -> Any:
        states = self.adjoint.solve.states
        return states.layout.unpack_path(self.adjoint.record(states.states(at), at, self.origin, self.start))

    def detached(self) -> DenseStates:
        """Without gradients."""
        return self.adjoint.solve.states

    def segments(self, sample: int) -> Tensor:
        """The times where a sample's segments begin, and where the last one ends, ``(S + 1,)``."""
        return self.adjoint.solve.states.segments(sample)


@dataclass(frozen=True)
class _SegmentAdjoint(Adjoint):
    """The transposed equations of the segments.

    Attributes:
        inputs: the arguments and parameters.
        solve: that is over.
    """

    inputs: Inputs
    solve: AdaptiveSolve

    def pull(self, cotangent: Tensor, leading: Sequence[Tensor], args: Any, sums: GradientSums) -> list[Tensor]:
        """The gradients with respect to the times, that of the start, and the start ``(B, D)``."""
        at, origin, _ = leading
        function = self.solve.function.with_args(args)
        elapsed, rows = self.solve.states.elapsed(at), cotangent.to("cpu", torch.float64).numpy()
        known = ~np.isnan(elapsed)
        at_start = (elapsed == 0)[..., None]
        following = np.zeros(rows.shape[1:])
        own = np.where(known[..., None] & ~at_start, rows, 0)
        for stack in Stack.several(self.solve, elapsed, own):
            longest, most = _width(stack, function.max_batch)
            for window in stack.windows(longest, most):
                self._pull_window(window, function, following, sums)
        following += np.where(at_start, rows, 0).sum(0)
        start = torch.from_numpy(following).to(cotangent)
        return [self._of_times(function, at, cotangent, known), self._of_origin(function, origin, start), start]

    def _pull_window(
        self, window: TransposedWindow, function: RowFunction, following: np.ndarray, sums: GradientSums
    ) -> None:
        """Carry cotangents over a window, and add up what it gives the inputs."""
        stack, (m, n, d) = window.stack, window.stack.states[window.at].shape
        states = _tensor(function.layout, stack.states[window.at].reshape(-1, d)).requires_grad_()
        times, sample = torch.from_numpy(stack.times[window.at].ravel()), stack.sample[window.at].repeat(n)
        with torch.enable_grad():
            drift = function(times, states, sample)
        sums.look(drift, states)
        mu = self._iterated(window, drift, states, following) if n * d > _DENSE else None
        if mu is None:
            mu = window.factorized(_jacobian(drift, states).reshape(m, n, d, d), following)
        sums.add(drift, _tensor(function.layout, window.onto_drift(mu).reshape(-1, d)))

    def _iterated(
        self, window: TransposedWindow, drift: Tensor, states: Tensor, following: np.ndarray
    ) -> np.ndarray | None:
        """The multipliers without Jacobians; None where that fails and Jacobians can be taken."""
        shape = window.stack.states[window.at].shape

        def transposed(cotangent: np.ndarray) -> np.ndarray:
            rows = _tensor(self.solve.function.layout, cotangent.reshape(len(states), -1))
            (product,) = pulled(drift, [states], rows)
            return np.zeros(shape) if product is None else _array(product).reshape(shape)

        problem = self.solve.problem
        residual = max(_SHARPER * float(problem.rtol.min()), 4 * problem.unit)
        few, more = min(_FEW, _DIRECTIONS), min(_DIRECTIONS, _NUMBERS // math.prod(shape))
        mu = window.iterated(transposed, following, residual, few)
        if mu is None and more > few:
            mu = window.iterated(transposed, following, residual, more)
        if mu is None and shape[-1] > LARGEST_DENSE:
            times = window.stack.times[window.at]
            raise RuntimeError(
                f"gradient: the transposed equations between t = {times.min():g} and {times.max():g} are too stiff to "
                "be iterated on; pass Collocation(max_step=...) with shorter steps."
            )
        return mu

    def _of_times(self, function: RowFunction, at: Tensor, cotangent: Tensor, known: np.ndarray) -> Tensor:
        """The gradient with respect to the times: a state moves along the drift."""
        if not at.requires_grad:
            return torch.zeros_like(at)
        step, sample = torch.from_numpy(known).nonzero(as_tuple=True)
        times = at[step] if at.dim() == 1 else at[step, sample]
        along, states = torch.zeros(known.shape, dtype=at.dtype), self.solve.states.states(at)[step, sample]
        along[step, sample] = _drift_times(function, times, states, sample, cotangent[step, sample])
        return along.sum(1) if at.dim() == 1 else along

    def _of_origin(self, function: RowFunction, origin: Tensor, start: Tensor) -> Tensor:
        """The gradient with respect to the time of the start: a later start is against the drift."""
        if not origin.requires_grad:
            return torch.zeros_like(origin)
        sample, states = torch.arange(len(start)), self.solve.states.states(origin[None])[0]
        along = -_drift_times(function, origin.expand(len(start)), states, sample, start)
        return along if origin.dim() else along.sum()


def _drift_times(function: RowFunction, times: Tensor, states: Tensor, sample: Tensor, cotangent: Tensor) -> Tensor:
    """The drift at rows times their cotangents, ``(R,)``."""
    return (function(times.detach(), states, sample.numpy()) * cotangent).sum(1).to("cpu", torch.float64)


def _width(stack: Stack, max_batch: int | None) -> tuple[int, int]:
    """How many segments of a sample, and of all, are solved together."""
    _, n, d = stack.states.shape
    rows = n if d > LARGEST_DENSE else n * d  # a row carries one cotangent, or one for each of its numbers
    numbers = n * d * (_FEW if d > LARGEST_DENSE else n * d)
    most = max(min(_NUMBERS // numbers, (max_batch or _NUMBERS) // rows), 1)
    return (min(_TOGETHER, most) if n * d > _DENSE else most), most


def _jacobian(drift: Tensor, states: Tensor) -> np.ndarray:
    """Of every row, ``(R, d, d)``."""
    rows, d = states.shape
    basis = torch.eye(d).to(states)[:, None].expand(d, rows, d)
    (products,) = pulled(drift, [states], basis, batched=True)
    return np.zeros((rows, d, d)) if products is None else _array(products).swapaxes(0, 1)


def _array(values: Tensor) -> np.ndarray:
    return values.to("cpu", torch.float64).numpy()


def _tensor(layout: Layout, values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).to(layout.device, layout.compute_dtype)
