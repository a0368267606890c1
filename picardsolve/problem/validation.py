"""What a solve is asked, checked before any work and made into the parts that it runs with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.brownian.brownian_path import BrownianPath, resolution_for
from picardsolve.brownian.path import Path
from picardsolve.problem import grids
from picardsolve.problem.checks import check_optional_positive_integer, check_type
from picardsolve.problem.parameters import recordable
from picardsolve.problem.problem import Problem
from picardsolve.problem.state import Layout
from picardsolve.problem.terms import ODE, SDE, Denoiser, SecondOrderODE, SemilinearODE, Term
from picardsolve.problem.tolerance_shapes import read
from picardsolve.problem.tolerances import Stop, Tolerance


def validated(
    term: Term,
    y0: Any,
    ts: Tensor | Sequence[float],
    brownian: Path | None,
    args: Sequence[Any],
    cond: Mapping[str, Any] | None,
    batch_dims: int | None,
    max_batch: int | None,
    of_each: bool,
) -> tuple[Problem, Tensor]:
    """The problem that was posed, and its initial states as rows ``(B, D)``."""
    if not isinstance(term, ODE | SecondOrderODE | SemilinearODE | SDE | Denoiser):
        raise TypeError(f"term: expected an ODE, SDE or Denoiser, got {type(term).__name__}; pass ps.ODE(f).")
    if isinstance(brownian, type) or not isinstance(brownian, Path | None):
        check_type("brownian", brownian, BrownianPath, "picardsolve.BrownianPath(seed=0)")
    check_optional_positive_integer("max_batch", max_batch)
    if isinstance(args, Tensor) or not isinstance(args, Sequence):
        raise TypeError(f"args: expected a tuple, got {type(args).__name__}; pass args=(value,).")
    if not isinstance(cond, Mapping | None):
        raise TypeError(f"cond: expected arguments by name, got {type(cond).__name__}; pass cond={{'name': value}}.")
    if isinstance(term, Denoiser):
        if args or batch_dims not in (None, 1):
            raise ValueError("args, batch_dims: a Denoiser takes cond={...} by name and its y0 is always a batch.")
        batch_dims = 1
    elif cond is not None:
        raise ValueError("cond: only a Denoiser's model takes arguments by name; pass args=(...).")
    layout = Layout.of(y0, 0 if batch_dims is None else batch_dims)
    if layout.dtype.is_complex and not isinstance(term, ODE | SecondOrderODE):
        raise TypeError(f"y0: expected a real floating dtype, got {layout.dtype}; only an ODE takes complex states.")
    if isinstance(term, SemilinearODE):
        if not layout.structure.is_leaf():
            raise TypeError("y0: expected a single tensor for a SemilinearODE, got several; join them into one.")
        term.operator.check(tuple(layout.shapes[0]))
    given = pytree.tree_map(
        lambda value: recordable(value) if isinstance(value, Tensor) else value,
        cond if isinstance(term, Denoiser) else tuple(args),
    )
    name = "cond" if isinstance(term, Denoiser) else "args"
    for value in pytree.tree_leaves(given):
        if layout.batched and isinstance(value, Tensor) and value.dim() and len(value) != layout.batch:
            raise ValueError(f"{name}: expected a leading dimension of {layout.batch} samples, got {len(value)}.")
    if isinstance(term, SecondOrderODE):
        halves = pytree.tree_leaves(y0)
        if not isinstance(y0, tuple | list) or len(halves) != 2 or halves[0].shape != halves[1].shape:
            raise ValueError("y0: a SecondOrderODE starts from (positions, velocities), two tensors of one shape.")
    if of_each and isinstance(ts, Tensor) and ts.dim() == 2:
        grid = grids.per_sample(ts, layout.batch)
    else:
        grid = grids.given(ts)
    problem = Problem(term, layout, grid, given, brownian or _usual_path(grid), max_batch)
    return problem, layout.pack(y0).detach()


def _usual_path(ts: Tensor) -> BrownianPath:
    """As fine as the shortest step of ``(N + 1,)`` or ``(N + 1, B)`` times needs, if it can be."""
    usual, shortest = BrownianPath(seed=0), float(ts.diff(dim=0).abs().min())
    return usual if shortest >= usual.resolution else BrownianPath(0, resolution_for(shortest))


def tolerance_of(
    term: Term,
    layout: Layout,
    tol: float | Tensor | None,
    rtol: Any,
    atol: Any,
    stop: Stop,
) -> Tolerance:
    """The tolerance that ``tol``, or ``rtol`` and ``atol``, ask for."""
    tol = None if tol is None else read("tol", tol, layout, by_component=False)
    rtol, atol = (
        None if value is None else read(name, value, layout, by_component=not isinstance(term, Denoiser))
        for name, value in (("rtol", rtol), ("atol", atol))
    )
    if tol is not None and (rtol is not None or atol is not None):
        raise ValueError("tol: stands alone; pass either tol, or rtol and atol.")
    shown = 2 * torch.finfo(layout.dtype).eps  # half precision shows less than defaults ask for
    if tol is None and rtol is None and atol is None and isinstance(term, Denoiser):
        tol = max(1e-3, shown) if stop != "increment" else 0.05
    if tol is None:
        return Tolerance(atol=1e-7 if atol is None else atol, rtol=max(1e-5, shown) if rtol is None else rtol)
    if isinstance(term, Denoiser) and stop != "increment":
        return Tolerance(state=tol)
    if isinstance(term, ODE | SecondOrderODE | SemilinearODE) or stop != "increment":
        return Tolerance(atol=tol, rtol=tol)
    return Tolerance(noise=tol)
