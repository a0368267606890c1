"""Gradients of a solution on a grid, by the implicit function theorem along the chain: no iteration is differentiated.

From ``x[n+1] = Phi_n(x[n])`` follow the cotangents ``l[n] = c[n] + (dPhi_n / dx)^T l[n+1]``. They are solved backward
by windows, as the chain was forward: all steps of a window are evaluated in one call, and Picard sweeps of
vector-Jacobian products are repeated until nothing moves. After k sweeps the last k cotangents are exact. The steps of
a discrete chain are nowhere near the identity: their sweeps are Jacobi's, and start from the solution with the whole
Jacobians where states are small. The same products give the gradients with respect to arguments and parameters. The
noise is fixed: for an SDE these are the gradients along the path that was taken (discrete adjoint).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.adjoint.recording import Adjoint, GradientSums, Inputs, Refused, pulled
from picardsolve.integrators.base import DriftChain, Integrator, Rows
from picardsolve.problem.problem import Problem
from picardsolve.problem.recurrence import matrix_recurrence
from picardsolve.problem.state import LARGEST_DENSE
from picardsolve.results.solution import Result, Solution

_SETTLED = 8.0  # units of rounding of the largest cotangent: a sweep may still move cotangents by this
_SWEEPS = 12  # before a window is halved
_WIDEST = 256  # rows of a window

_REFUSED = {
    "ts": "gradient: not recorded with respect to ts on a grid; detach ts, or pass "
    "integrator=picardsolve.Collocation().",
    "chain": "gradient: not recorded for implicit and multistep integrators, SemilinearODE and Denoiser; detach y0 and "
    "args, or for an ODE pass integrator=picardsolve.Collocation().",
    "path": "gradient: needs the state at every time of a solve that has converged; pass save='all' and throw=True.",
}


def recorded(
    solution: Solution, problem: Problem, integrator: Integrator, y0: Any, ts: Any, args: Any, reach: Sequence[Tensor]
) -> Solution:
    """The same solution, with gradients with respect to y0, args and the functions' parameters, where these want them.

    Args:
        solution: on the grid of the problem.
        problem: that was solved, with the parameters that were noted on the way.
        integrator: that made its chain.
        y0: as the user gave it.
        ts: as the user gave them.
        args: as the user gave them; the keyword arguments of a `Denoiser`.
        reach: leaves that the functions may depend on, whether a call has shown it or not.
    """
    inputs, start = Inputs(args, problem.args, problem.parameters, reach), problem.layout.pack(y0)
    asked = start, *inputs.tensors, *(t for t in (ts,) if isinstance(t, Tensor))
    if not any(tensor.requires_grad for tensor in asked):
        return solution
    why = _refusal(solution, problem, ts)
    if why is not None:
        return replace(solution, ys=pytree.tree_map(lambda ys: Refused.apply(_REFUSED[why], ys, *asked), solution.ys))
    path = problem.layout.pack_path("ys", solution.ys, len(problem.ts))
    path = _ChainAdjoint(inputs, problem, integrator, path).record(path, start)
    return replace(solution, ys=problem.layout.unpack_path(path))


def _refusal(solution: Solution, problem: Problem, ts: Any) -> str | None:
    """Why there are no gradients; None where there are."""
    if problem.parameters is None:
        return "chain"
    if isinstance(ts, Tensor) and ts.requires_grad:
        return "ts"
    reached = solution.result in (Result.converged, Result.doubtful)
    return None if reached and len(solution.ts) == len(problem.ts) else "path"


@dataclass(frozen=True)
class _ChainAdjoint(Adjoint):
    """The transposed chain.

    Attributes:
        inputs: the arguments and parameters.
        problem: that was solved.
        integrator: that makes its chain.
        path: ``(N + 1, B, D)``.
    """

    inputs: Inputs
    problem: Problem
    integrator: Integrator
    path: Tensor

    def pull(self, cotangent: Tensor, leading: Sequence[Tensor], args: Any, sums: GradientSums) -> list[Tensor]:
        """The gradient with respect to the start, ``(B, D)``."""
        chain = self.integrator.chain(replace(self.problem, args=args, parameters=None))
        following, end = cotangent[-1], chain.length
        width = widest = max(_WIDEST // self.path.shape[1], 1)
        while end:
            begin = max(end - width, 0)
            reached = self._window(chain, begin, cotangent[begin:end], following, sums)
            if reached is None:
                width = max((end - begin) // 2, 1)
            else:
                following, end, width = reached, begin, min(2 * width, widest)
        return [following]

    def _window(
        self, chain: DriftChain, begin: int, own: Tensor, following: Tensor, sums: GradientSums
    ) -> Tensor | None:
        """The cotangent of the state that a window begins with, ``(B, D)``; None where sweeps do not settle.

        Args:
            chain: to evaluate.
            begin: the window's first step.
            own: ``(W, B, D)`` cotangents of the states that its steps leave from.
            following: ``(B, D)`` that of the state behind them, all later states included.
            sums: gets the gradients with respect to the inputs.
        """
        width, samples, _ = own.shape
        x = self.path[begin : begin + width].flatten(0, 1).requires_grad_()
        step, sample = np.repeat(np.arange(begin, begin + width), samples), np.tile(np.arange(samples), width)
        with torch.enable_grad():
            images, _ = chain.step(Rows(step, sample, x))
        sums.look(images, x)
        unchanged = own.flip(0).cumsum(0).flip(0) + following  # as if every step left its state unchanged
        found = unchanged if chain.smooth else _by_jacobians(images, x, own, following)
        most = _SWEEPS if chain.smooth else max(_SWEEPS, width // 4)
        for sweep in range(min(most, width)):
            behind = torch.cat([found[1:], following[None]])
            (product,) = pulled(images, [x], behind.reshape(images.shape))
            carried = (torch.zeros_like(x) if product is None else product).reshape(own.shape)
            new = own + carried
            if chain.smooth:
                new = (new - behind).flip(0).cumsum(0).flip(0) + following
            moved, found = (new - found).abs().max(), new
            if bool(moved <= _SETTLED * torch.finfo(x.dtype).eps * found.abs().max()) or sweep + 1 == width:
                break
        else:
            return None
        sums.add(images, torch.cat([found[1:], following[None]]).reshape(images.shape))
        return found[0]


def _by_jacobians(images: Tensor, x: Tensor, own: Tensor, following: Tensor) -> Tensor:
    """The cotangents of a window from the Jacobians of its steps, ``(W, B, D)``; ``own`` where states are large.

    Args:
        images: ``(W B, D)``, the steps' values.
        x: ``(W B, D)``, their states.
        own: ``(W, B, D)``, see `_ChainAdjoint._window`.
        following: ``(B, D)``, the same.
    """
    size = x.shape[-1]
    if size > LARGEST_DENSE or not images.requires_grad:
        return own
    units = torch.eye(size).to(x)[:, None].expand(-1, *images.shape)
    try:
        (rows,) = pulled(images, [x], units, batched=True)
    except RuntimeError:  # a function that vmap cannot go back through
        parts = [pulled(images, [x], unit)[0] for unit in units]
        rows = None if parts[0] is None else torch.stack([part for part in parts if part is not None])
    if rows is None or not bool(rows.isfinite().all()):
        return own
    transposed = rows.permute(1, 2, 0).reshape(*own.shape, size).flip(0)
    added = own.flip(0)
    added[0] += (transposed[0] @ following[..., None])[..., 0]
    return matrix_recurrence(transposed, added).flip(0)
