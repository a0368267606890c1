"""Gradients of a solution on a grid, by the implicit function theorem along the chain: no iteration is differentiated.

``x[n+1] = Phi_n(x[n])`` gives cotangents ``l[n] = c[n] + (dPhi_n / dx)^T l[n+1]``, solved backward by windows as the
chain was forward: all steps of a window are evaluated in one call, and Picard sweeps of vector-Jacobian products
repeated until nothing moves. After k of them the last k are exact. What gradients are wanted by gets theirs from the
same products. The noise is given: of an SDE these are the gradients of the path that was taken (discrete adjoint).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.adjoint.refused import Refused
from picardsolve.integrators.base import DriftChain, Integrator, Rows
from picardsolve.problem.parameters import Held, Strangers, added
from picardsolve.problem.problem import Problem
from picardsolve.results.solution import Result, Solution

_SETTLED = 8.0  # units of rounding of the largest cotangent, which a sweep may still move
_SWEEPS = 12  # before a window is halved
_WIDEST = 256  # rows of a window

_SENTENCES = {
    "ts": "gradient: by ts it is not recorded on a grid; detach ts, or pass integrator=picardsolve.Collocation().",
    "chain": "gradient: not recorded for implicit and multistep integrators, SemilinearODE and Denoiser; detach y0 and "
    "args, or of an ODE pass integrator=picardsolve.Collocation().",
    "path": "gradient: needs the state at every time of a solve that has converged; pass save='all' and throw=True.",
    "twice": "gradient: solutions have first derivatives only; leave create_graph=True out.",
}


def recorded(
    solution: Solution, problem: Problem, integrator: Integrator, y0: Any, ts: Any, args: Any, reach: Sequence[Tensor]
) -> Solution:
    """The same solution, with gradients by whatever of y0, args and the functions' parameters requires them.

    Args:
        solution: on the grid of the problem.
        problem: that was solved, with the parameters that were noted on the way.
        integrator: that made its chain.
        y0: as the user gave it.
        ts: likewise.
        args: likewise; the keyword arguments of a `Denoiser`.
        reach: leaves that the functions may depend on, whether a call has shown it or not.
    """
    given = pytree.tree_leaves(args)
    by = tuple(i for i, leaf in enumerate(given) if isinstance(leaf, Tensor) and leaf.requires_grad)
    start = problem.layout.pack(y0)
    shown = start, *(given[i] for i in by), *dict.fromkeys(problem.parameters or ())
    known = {id(tensor) for tensor in shown}
    inputs = *shown, *(leaf for leaf in reach if id(leaf) not in known)
    asked = *inputs, *(t for t in (ts,) if isinstance(t, Tensor))
    if not any(tensor.requires_grad for tensor in asked):
        return solution
    why = _refusal(solution, problem, integrator, ts)
    if why is not None:
        ys = pytree.tree_map(lambda ys: Refused.apply(_SENTENCES[why], ys, *asked), solution.ys)
    else:
        path = problem.layout.pack_path("ys", solution.ys, len(problem.ts))
        ys = problem.layout.unpack_path(_Path.apply(problem, integrator, by, path, len(shown), *inputs))
    return replace(solution, ys=ys)


def _refusal(solution: Solution, problem: Problem, integrator: Integrator, ts: Any) -> str | None:
    """Why there are no gradients; None where there are."""
    if problem.parameters is None or integrator.chain(problem).implicit:
        return "chain"
    if isinstance(ts, Tensor) and ts.requires_grad:
        return "ts"
    reached = solution.result in (Result.converged, Result.doubtful)
    return None if reached and len(solution.ts) == len(problem.ts) else "path"


def _images(chain: DriftChain, step: np.ndarray, sample: np.ndarray, x: Tensor) -> Tensor:
    """``Phi_n(x_n)`` of rows, ``(R, D)``, recorded."""
    return chain.step(Rows(step, sample, x))[0]


class _Path(torch.autograd.Function):
    """The states of a chain, as a function of the start, arguments and parameters."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        problem: Problem,
        integrator: Integrator,
        by: tuple[int, ...],
        path: Tensor,
        shown: int,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.posed, ctx.held = (problem, integrator, by, path), Held(inputs[shown:])
        ctx.save_for_backward(*inputs[:shown])
        return path.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs = ctx.saved_tensors  # refuses parameters that were changed since
        with torch.no_grad():
            gradients = _Backward.of(*ctx.posed, tensors=inputs[1:], held=ctx.held).gradients(cotangent)
        if torch.is_grad_enabled():  # create_graph
            gradients = [
                part if part is None else Refused.apply(_SENTENCES["twice"], part, cotangent, *inputs)
                for part in gradients
            ]
        return *[None] * (len(ctx.posed) + 1), *gradients


@dataclass
class _Backward:
    """The transposed chain, and the sums of gradients.

    Attributes:
        chain: with arguments of its own that require gradients.
        path: ``(N + 1, B, D)``.
        tensors: what gradients are wanted by: those arguments, and the parameters.
        held: what else they may be by.
        sums: the gradients so far; None by what is held and was not met.
    """

    chain: DriftChain
    path: Tensor
    tensors: Sequence[Tensor]
    held: Held
    sums: list[Tensor | None] = field(init=False)

    def __post_init__(self):
        self.sums = [*map(torch.zeros_like, self.tensors), *[None] * len(self.held.tensors)]
        self._all = [*self.tensors, *self.held.tensors]
        self._strangers = Strangers(self._all)

    @staticmethod
    def of(
        problem: Problem,
        integrator: Integrator,
        by: tuple[int, ...],
        path: Tensor,
        tensors: Sequence[Tensor],
        held: Held,
    ) -> "_Backward":
        """By the arguments at the places ``by`` and the parameters."""
        values, structure = pytree.tree_flatten(problem.args)
        fresh = [values[i].detach().requires_grad_() for i in by]
        for i, leaf in zip(by, fresh, strict=True):
            values[i] = leaf
        posed = replace(problem, args=pytree.tree_unflatten(values, structure), parameters=None)
        return _Backward(integrator.chain(posed), path, [*fresh, *tensors[len(by) :]], held)

    def gradients(self, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """By the start ``(B, D)``, the tensors, and what is held."""
        samples = self.path.shape[1]
        following, end = cotangent[-1], self.chain.length
        width = max(_WIDEST // samples, 1)
        while end:
            begin = max(end - width, 0)
            reached = self._window(begin, end, cotangent[begin:end], following)
            if reached is None:
                width = max((end - begin) // 2, 1)
            else:
                following, end, width = reached, begin, min(2 * width, max(_WIDEST // samples, 1))
        self._strangers.refuse()
        shown = len(self.tensors)
        return following, *self.sums[:shown], *self.held.gradients(self.sums[shown:])

    def _window(self, begin: int, end: int, own: Tensor, following: Tensor) -> Tensor | None:
        """Carry the cotangent of state ``end`` to state ``begin``, both ``(B, D)``; None where sweeps do not settle.

        Args:
            begin: first step.
            end: behind the last step.
            own: ``(W, B, D)`` cotangents of the states that the steps leave from.
            following: that of the state behind them, with what follows on it.
        """
        width, samples, _ = own.shape
        x = self.path[begin:end].flatten(0, 1).requires_grad_()
        step, sample = np.repeat(np.arange(begin, end), samples), np.tile(np.arange(samples), width)
        with torch.enable_grad():
            images = _images(self.chain, step, sample, x)
        self._strangers.look(images, x)
        found = own.flip(0).cumsum(0).flip(0) + following  # as if every step left its state unchanged
        for sweep in range(min(_SWEEPS, width)):
            behind = torch.cat([found[1:], following[None]])
            (pulled,) = self._pulled(images, [x], behind)
            beyond = (torch.zeros_like(x) if pulled is None else pulled).reshape(own.shape) - behind
            new = (own + beyond).flip(0).cumsum(0).flip(0) + following
            moved, found = (new - found).abs().max(), new
            if bool(moved <= _SETTLED * torch.finfo(x.dtype).eps * found.abs().max()) or sweep + 1 == width:
                break
        else:
            return None
        behind = torch.cat([found[1:], following[None]])
        self.sums = [added(*pair) for pair in zip(self.sums, self._pulled(images, self._all, behind), strict=True)]
        return found[0]

    def _pulled(self, images: Tensor, by: Sequence[Tensor], cotangent: Tensor) -> Sequence[Tensor | None]:
        """Vector-Jacobian products; the graph is kept, for it may end in one that belongs to the user."""
        if not by:
            return []
        rows = cotangent.reshape(images.shape)
        return torch.autograd.grad(images, list(by), rows, retain_graph=True, allow_unused=True)
