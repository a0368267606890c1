"""Gradients of a solution by collocation, by the implicit function theorem: no iteration is stored or differentiated.

The states at the nodes satisfy ``Y = start + h A F(Y)``. A cotangent of them is carried back through the transposed
equations, segment by segment, to a cotangent of the drift at every node and of the start (discrete adjoint of a
collocation method: Sandu 2006; equilibrium models: Bai, Kolter & Koltun 2019); then one vector-Jacobian product of the
drift at all nodes gives the gradients of whatever it depends on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.adjoint.refused import Refused
from picardsolve.collocation import AdaptiveSolve
from picardsolve.collocation.trajectory import DenseStates
from picardsolve.collocation.transposed import Stack, Window
from picardsolve.problem.parameters import Held, Strangers, added, recordable
from picardsolve.problem.row_function import RowFunction
from picardsolve.problem.state import LARGEST_DENSE
from picardsolve.results.solution import Solution

_DENSE = 300  # unknowns of a segment whose equations are factorised at once
_NUMBERS = 2**24  # in the matrices of a window, or in the directions of its iteration
_TOGETHER = 8  # segments of a sample that are iterated on together
_FEW = 16  # directions of the iteration, which are kept: so many times what the states at the nodes are
_DIRECTIONS = 60  # where those do not do, as far as `_NUMBERS` allows
_SHARPER = 0.1  # of rtol: the residual that an iteration leaves

_ONCE = "gradient: solutions by collocation have first derivatives only; leave create_graph=True out."


def differentiable(
    solution: Solution, trajectory: AdaptiveSolve, y0: Any, ts: Any, args: Sequence[Any], reach: Sequence[Tensor]
) -> Solution:
    """The same solution, with gradients by whatever of y0, ts, args and the drift's parameters requires them.

    Args:
        solution: by collocation.
        trajectory: what it was read from.
        y0: as the user gave it.
        ts: likewise.
        args: likewise.
        reach: leaves that the drift may depend on, whether a call has shown it or not.
    """
    layout = trajectory.function.layout
    start = layout.pack(y0)
    times = recordable(ts).to("cpu", torch.float64) if isinstance(ts, Tensor) else solution.ts
    given = pytree.tree_leaves(tuple(args))
    by = tuple(i for i, leaf in enumerate(given) if isinstance(leaf, Tensor) and leaf.requires_grad)
    shown = start, *(given[i] for i in by), *dict.fromkeys(trajectory.function.parameters or ())
    known = {id(tensor) for tensor in shown}
    inputs = *shown, *(leaf for leaf in reach if id(leaf) not in known)
    if not any(tensor.requires_grad for tensor in (times, *inputs)):
        return solution

    dense = _Differentiable(trajectory, by, len(shown), times[0], inputs)
    return replace(solution, ys=dense(times[-len(solution.ts) :]), dense=dense)


@dataclass(frozen=True)
class _Differentiable:
    """The states at any times, with gradients.

    Attributes:
        trajectory: what they are read from.
        by: the places of arguments that require gradients.
        shown: how many of the inputs are not held back, see `Held`.
        origin: the time of the start, ``()`` or ``(B,)``.
        inputs: the start, those arguments, parameters, and what else is in reach.
    """

    trajectory: AdaptiveSolve
    by: tuple[int, ...]
    shown: int
    origin: Tensor
    inputs: Sequence[Tensor]

    def __call__(self, at: Tensor) -> Any:
        layout = self.trajectory.function.layout
        return layout.unpack_path(_States.apply(self.trajectory, self.by, self.shown, at, self.origin, *self.inputs))

    def detached(self) -> DenseStates:
        """Without gradients."""
        return self.trajectory.states

    def segments(self, sample: int) -> Tensor:
        """As of `Course`."""
        return self.trajectory.states.segments(sample)


class _States(torch.autograd.Function):
    """States at times, as a function of the times, that of the start, the start, arguments and parameters."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        trajectory: AdaptiveSolve,
        by: tuple[int, ...],
        shown: int,
        at: Tensor,
        origin: Tensor,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.trajectory, ctx.by, ctx.held = trajectory, by, Held(inputs[shown:])
        ctx.save_for_backward(at, origin, *inputs[:shown])
        return trajectory.states.states(at)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        at, origin, _, *tensors = inputs = ctx.saved_tensors  # refuses parameters that were changed since
        with torch.no_grad():
            gradients = Adjoint.of(ctx.trajectory, ctx.by, tensors, ctx.held).gradients(at, origin, cotangent)
        if torch.is_grad_enabled():  # create_graph: not by `once_differentiable`, which lets linear losses pass
            gradients = [part if part is None else Refused.apply(_ONCE, part, cotangent, *inputs) for part in gradients]
        return None, None, None, *gradients


@dataclass
class Adjoint:
    """The transposed equations of a trajectory, and the sums of gradients.

    Attributes:
        trajectory: of which.
        function: its drift, with arguments of its own that require gradients.
        tensors: what gradients are wanted by: those arguments, and the parameters.
        held: what else they may be by.
        sums: the gradients so far; None by what is held and was not met.
    """

    trajectory: AdaptiveSolve
    function: RowFunction
    tensors: Sequence[Tensor]
    held: Held
    sums: list[Tensor | None] = field(init=False)

    def __post_init__(self):
        self.sums = [*map(torch.zeros_like, self.tensors), *[None] * len(self.held.tensors)]
        self._all = [*self.tensors, *self.held.tensors]
        self._strangers = Strangers(self._all)

    @staticmethod
    def of(trajectory: AdaptiveSolve, by: tuple[int, ...], tensors: Sequence[Tensor], held: Held) -> "Adjoint":
        """By the arguments at the places ``by`` and the parameters."""
        leaves, structure = pytree.tree_flatten(tuple(trajectory.function.args))
        fresh = [leaves[i].detach().requires_grad_() for i in by]
        for i, leaf in zip(by, fresh, strict=True):
            leaves[i] = leaf
        function = replace(trajectory.function, args=pytree.tree_unflatten(leaves, structure), parameters=None)
        return Adjoint(trajectory, function, [*fresh, *tensors[len(by) :]], held)

    def gradients(self, at: Tensor, origin: Tensor, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """By the times, that of the start, the start ``(B, D)``, the tensors, and what is held."""
        clocks, rows = self.trajectory.states.elapsed(at), cotangent.to("cpu", torch.float64).numpy()
        known = ~np.isnan(clocks)
        at_start = (clocks == 0)[..., None]
        following = np.zeros(rows.shape[1:])
        for stack in Stack.several(self.trajectory.samples, clocks, np.where(known[..., None] & ~at_start, rows, 0)):
            longest, most = self._window(stack)
            for window in stack.windows(longest, most):
                self._solve(window, following)
        following += np.where(at_start, rows, 0).sum(0)
        start = torch.from_numpy(following).to(cotangent)
        self._strangers.refuse()
        by_time, shown = (self._by_times(at, cotangent, known), self._by_origin(origin, start)), len(self.tensors)
        return *by_time, start, *self.sums[:shown], *self.held.gradients(self.sums[shown:])

    def _window(self, stack: Stack) -> tuple[int, int]:
        """How many segments of a sample, and of all, are solved together."""
        _, n, d = stack.states.shape
        rows = n if d > LARGEST_DENSE else n * d  # a row carries a cotangent, or one for each of its numbers
        numbers = n * d * (_FEW if d > LARGEST_DENSE else n * d)
        most = max(min(_NUMBERS // numbers, (self.function.max_batch or _NUMBERS) // rows), 1)
        return (min(_TOGETHER, most) if n * d > _DENSE else most), most

    def _solve(self, window: Window, following: np.ndarray) -> None:
        """Carry cotangents over a window, and add up what it gives the tensors."""
        stack, (m, n, d) = window.stack, window.stack.states[window.at].shape
        states = self._tensor(stack.states[window.at].reshape(-1, d)).requires_grad_()
        times, sample = torch.from_numpy(stack.times[window.at].ravel()), stack.sample[window.at].repeat(n)
        with torch.enable_grad():
            drift = self.function(times, states, torch.from_numpy(sample))
        self._strangers.look(drift, states)
        mu = self._iterated(window, drift, states, following) if n * d > _DENSE else None
        if mu is None:
            mu = window.dense(_jacobian(drift, states).reshape(m, n, d, d), following)
        pushed = self._tensor(window.onto_drift(mu).reshape(-1, d))
        self.sums = [added(*pair) for pair in zip(self.sums, _pulled(drift, self._all, pushed), strict=True)]

    def _iterated(self, window: Window, drift: Tensor, states: Tensor, following: np.ndarray) -> np.ndarray | None:
        """Without Jacobians; None where that fails and they can be had."""
        shape = window.stack.states[window.at].shape

        def pull(cotangent: np.ndarray) -> np.ndarray:
            (pulled,) = _pulled(drift, [states], self._tensor(cotangent.reshape(len(states), -1)))
            return np.zeros(shape) if pulled is None else _array(pulled).reshape(shape)

        posed = [sample.problem for sample in self.trajectory.samples]
        residual = min(max(_SHARPER * float(each.rtol.min()), 4 * each.unit) for each in posed)
        few, more = min(_FEW, _DIRECTIONS), min(_DIRECTIONS, _NUMBERS // math.prod(shape))
        mu = window.iterate(pull, following, residual, few)
        if mu is None and more > few:
            mu = window.iterate(pull, following, residual, more)
        if mu is None and shape[-1] > LARGEST_DENSE:
            times = window.stack.times[window.at]
            raise RuntimeError(
                f"gradient: the transposed equations between t = {times.min():g} and {times.max():g} are too stiff to "
                "be iterated on; pass Collocation(max_step=...) with shorter steps."
            )
        return mu

    def _tensor(self, values: np.ndarray) -> Tensor:
        layout = self.function.layout
        return torch.from_numpy(values).to(layout.device, layout.compute_dtype)

    def _by_times(self, at: Tensor, cotangent: Tensor, known: np.ndarray) -> Tensor:
        """A state moves along the drift there."""
        if not at.requires_grad:
            return torch.zeros_like(at)
        step, sample = torch.from_numpy(known).nonzero(as_tuple=True)
        times = at[step] if at.dim() == 1 else at[step, sample]
        along = torch.zeros(known.shape, dtype=at.dtype)
        states = self.trajectory.states.states(at)[step, sample]
        along[step, sample] = self._along(times, states, sample, cotangent[step, sample])
        return along.sum(1) if at.dim() == 1 else along

    def _by_origin(self, origin: Tensor, start: Tensor) -> Tensor:
        """A later start at the same state is one further back: against the drift."""
        if not origin.requires_grad:
            return torch.zeros_like(origin)
        sample = torch.arange(len(start))
        along = -self._along(origin.expand(len(start)), self.trajectory.states.states(origin[None])[0], sample, start)
        return along if origin.dim() else along.sum()

    def _along(self, times: Tensor, states: Tensor, sample: Tensor, cotangent: Tensor) -> Tensor:
        """The drift times a cotangent, ``(R,)``."""
        drift = self.function(times.detach(), states, sample)
        return (drift * cotangent).sum(1).to("cpu", torch.float64)


def _pulled(drift: Tensor, by: Sequence[Tensor], cotangent: Tensor, batched: bool = False) -> Sequence[Tensor | None]:
    """Cotangents of what a drift was computed from; None where it does not depend on it.

    The graph is kept: it may end in one that belongs to the user.
    """
    if not drift.requires_grad or not by:
        return [None] * len(by)
    return torch.autograd.grad(drift, by, cotangent, retain_graph=True, allow_unused=True, is_grads_batched=batched)


def _jacobian(drift: Tensor, states: Tensor) -> np.ndarray:
    """Of every row, ``(R, d, d)``."""
    rows, d = states.shape
    basis = torch.eye(d).to(states)[:, None].expand(d, rows, d)
    (pulled,) = _pulled(drift, [states], basis, batched=True)
    return np.zeros((rows, d, d)) if pulled is None else _array(pulled).swapaxes(0, 1)


def _array(values: Tensor) -> np.ndarray:
    return values.to("cpu", torch.float64).numpy()
