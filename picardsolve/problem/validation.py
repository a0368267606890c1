"""The arguments of a solve, checked before any work and made into a `Problem` and a `Tolerance`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.brownian import BrownianPath, Path, resolution_for
from picardsolve.problem import grids
from picardsolve.problem.checks import check_optional_positive_integer, check_type
from picardsolve.problem.parameters import recordable
from picardsolve.problem.problem import Problem
from picardsolve.problem.state import Layout
from picardsolve.problem.terms import Term
from picardsolve.problem.tolerances import Stop, Tolerance, read_tolerance
from picardsolve.problem.transforms import check_untransformed


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
    """The problem, and its initial states as rows ``(B, D)``.

    Arguments are those of `picardsolve.solve`. ``of_each`` says whether ``ts`` may have a column for each sample.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a wrong value or shape.
        RuntimeError: a transform of `torch.func` is active, or a tensor has a forward-mode tangent.
    """
    check_untransformed(y0, ts, args, cond)
    if not isinstance(term, Term):
        raise TypeError(f"term: expected an ODE, SDE or Denoiser, got {type(term).__name__}; pass ps.ODE(f).")
    if isinstance(brownian, type) or not isinstance(brownian, Path | None):
        check_type("brownian", brownian, BrownianPath, "picardsolve.BrownianPath(seed=0)")
    check_optional_positive_integer("max_batch", max_batch)
    given = _arguments(term, args, cond)
    if term.by_name and batch_dims not in (None, 1):
        raise ValueError("batch_dims: the y0 of a Denoiser is always a batch; leave batch_dims out.")
    layout = Layout.of(y0, (1 if term.by_name else 0) if batch_dims is None else batch_dims)
    if layout.dtype.is_complex and not term.takes_complex:
        raise TypeError(f"y0: expected a real floating dtype, got {layout.dtype}; only an ODE takes complex states.")
    term.check_state(y0, layout)
    for value in pytree.tree_leaves(given):
        if layout.batched and isinstance(value, Tensor) and value.dim() and len(value) != layout.batch:
            name = "cond" if term.by_name else "args"
            raise ValueError(f"{name}: expected a leading dimension of {layout.batch} samples, got {len(value)}.")
    if of_each and isinstance(ts, Tensor) and ts.dim() == 2:
        grid = grids.per_sample(ts, layout.batch)
    else:
        grid = grids.given(ts)
    problem = Problem(term, layout, grid, given, brownian or _usual_path(grid), max_batch)
    return problem, layout.pack(y0).detach()


def _arguments(term: Term, args: Sequence[Any], cond: Mapping[str, Any] | None) -> Any:
    """What the functions of the term get beside the state: a tuple, or a mapping for a `Denoiser`."""
    if isinstance(args, Tensor) or not isinstance(args, Sequence):
        raise TypeError(f"args: expected a tuple, got {type(args).__name__}; pass args=(value,).")
    if not isinstance(cond, Mapping | None):
        raise TypeError(f"cond: expected arguments by name, got {type(cond).__name__}; pass cond={{'name': value}}.")
    if term.by_name and args:
        raise ValueError("args: a Denoiser's model takes arguments by name; pass cond={...}.")
    if not term.by_name and cond is not None:
        raise ValueError("cond: only a Denoiser's model takes arguments by name; pass args=(...).")
    return pytree.tree_map(
        lambda value: recordable(value) if isinstance(value, Tensor) else value,
        (cond or {}) if term.by_name else tuple(args),
    )


def _usual_path(ts: Tensor) -> BrownianPath:
    """A path with seed 0, as fine as the shortest step of times ``(N + 1,)`` or ``(N + 1, B)`` needs."""
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
    """The tolerance that ``tol``, or ``rtol`` and ``atol``, ask for.

    Raises:
        TypeError: a value is no number and no real tensor.
        ValueError: a value is negative or has a wrong shape, or ``tol`` is given beside one of the others.
    """
    tol = None if tol is None else read_tolerance("tol", tol, layout, by_component=False)
    rtol, atol = (
        None if value is None else read_tolerance(name, value, layout, term.by_component)
        for name, value in (("rtol", rtol), ("atol", atol))
    )
    if tol is not None and (rtol is not None or atol is not None):
        raise ValueError("tol: stands alone; pass either tol, or rtol and atol.")
    least = 2 * torch.finfo(layout.dtype).eps  # half precision resolves less than the defaults ask for
    if tol is None and rtol is None and atol is None:
        usual = term.usual_tol(stop)
        tol = None if usual is None else max(usual, least)
    if tol is None:
        return Tolerance(atol=1e-7 if atol is None else atol, rtol=max(1e-5, least) if rtol is None else rtol)
    return term.tolerance(tol, stop)
