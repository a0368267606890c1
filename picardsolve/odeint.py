"""torchdiffeq's call."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from picardsolve import grids
from picardsolve.checks import check_callable
from picardsolve.integrators import RK4, Euler, Heun
from picardsolve.solve import solve
from picardsolve.terms import ODE


def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Solve ``dy/dt = func(t, y)`` with torchdiffeq's argument order; returns the states at ``t``, time first.

    Args:
        func: ``func(t, y)`` of one state and a 0-d time; lifted to many times by ``torch.func.vmap`` unless
            ``options={"vectorized": True}``.
        y0: tensor, or tuple of tensors.
        t: ``(T,)`` times, increasing or decreasing; ``t[0]`` is the time of ``y0``.
        rtol: relative tolerance of the iteration against the sequential fixed-grid solver.
        atol: absolute tolerance likewise.
        method: "euler", "heun2" or "rk4" (the 3/8 rule, as in torchdiffeq): fixed grids.
        options: ``vectorized``; ``step_size``: longest step, every interval of ``t`` is cut into equal steps no longer
            (default: the intervals themselves); ``window``, ``iteration``, ``guess``, ``max_batch``, ``progress``;
            ``full_output``: True returns ``(states, solution)``, the `Solution` on the refined grid with its
            `Certificate`.

    Raises:
        ValueError: an unknown method or option, or what `solve` raises.
    """
    check_callable("func", func)
    if not isinstance(method, str | None):
        raise TypeError(f"method: expected a string, got {method!r}.")
    if not isinstance(y0, Tensor) and not (isinstance(y0, tuple | list) and all(isinstance(y, Tensor) for y in y0)):
        raise TypeError(f"y0: expected a tensor, or tuple of tensors, got {type(y0).__name__}; for others use solve().")
    if not isinstance(options, Mapping | None):
        raise TypeError(f"options: expected a dict, got {type(options).__name__}.")
    methods = {"euler": Euler(), "heun2": Heun(), "rk4": RK4("3/8")}
    if method not in methods:
        raise ValueError(f"method: expected one of {', '.join(map(repr, methods))} (fixed grids), got {method!r}.")
    given = dict(options or {})
    full_output = given.pop("full_output", False)
    vectorized, step_size = given.pop("vectorized", False), given.pop("step_size", None)
    unknown = set(given) - {"window", "iteration", "guess", "max_batch", "progress"}
    if unknown:
        raise ValueError(f"options: got unknown {', '.join(map(repr, sorted(unknown)))}; see odeint's docstring.")
    try:
        grid = grids.given(t)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("ts:", "t:", 1)) from None
    fine, index = _refined(grid, step_size)
    y0 = tuple(y0) if isinstance(y0, list) else y0
    solution = solve(ODE(func, vectorized), y0, fine, integrator=methods[method], rtol=rtol, atol=atol, **given)
    states = tuple(y[index] for y in solution.ys) if isinstance(y0, tuple) else solution.ys[index]
    return (states, solution) if full_output else states


def _refined(grid: Tensor, step_size: float | None) -> tuple[Tensor, Tensor]:
    """A grid with every interval cut into equal steps of at most ``step_size``, and where the old times stand in it."""
    if step_size is None:
        return grid, torch.arange(len(grid))
    if not isinstance(step_size, int | float):
        raise TypeError(f"options['step_size']: expected a positive number, got {step_size!r}.")
    if not step_size > 0:
        raise ValueError(f"options['step_size']: expected a positive number, got {step_size!r}.")
    counts = torch.ceil(grid.diff().abs() / step_size - 1e-9).long().clamp(min=1)
    pieces = [
        torch.linspace(a, b, n + 1, dtype=grid.dtype)[1:]
        for a, b, n in zip(grid[:-1].tolist(), grid[1:].tolist(), counts.tolist(), strict=True)
    ]
    return torch.cat([grid[:1], *pieces]), torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
