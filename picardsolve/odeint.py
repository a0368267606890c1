"""`odeint` with the arguments of torchdiffeq's."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.adaptive import Adaptive
from picardsolve.adjoint.recording import Refused
from picardsolve.adjoint.transformed import transformed
from picardsolve.collocation import Collocation
from picardsolve.embedded import Dopri5, Dopri8, EmbeddedMethod, Tsit5
from picardsolve.fixed_point.iterations import Newton, Picard, Secant
from picardsolve.integrators import RK4, Euler, Heun, Midpoint
from picardsolve.problem import grids
from picardsolve.problem.checks import check_callable
from picardsolve.problem.clock import Clock
from picardsolve.problem.componentwise import by_component
from picardsolve.problem.state import Layout
from picardsolve.problem.terms import ODE
from picardsolve.problem.transforms import is_transformed, transforming
from picardsolve.results.diagnostics import ConvergenceWarning
from picardsolve.results.solution import Result, Solution, SolveError
from picardsolve.solve import solve

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_FIXED = {"euler": Euler(), "heun2": Heun(), "rk4": RK4("3/8"), "midpoint": Midpoint()}
_ITERATIONS = {None: None, "picard": Picard(), "secant": Secant(), "newton": Newton()}
_EMBEDDED = {"dopri5": Dopri5, "dopri8": Dopri8, "tsit5": Tsit5}
_OTHERS = ("bosh3", "fehlberg2", "adaptive_heun")  # torchdiffeq's further adaptive methods, of all versions
_ADAPTIVE = (*_EMBEDDED, *_OTHERS)
_STEPS = {field.name for field in fields(Dopri5)}
_PARTS = {field.name for field in fields(Collocation)}
_LENGTHS = {field.name for field in fields(Adaptive)}  # options that say nothing about the method
_THEIRS = {"norm", "dtype", "step_size", *_STEPS}  # options of torchdiffeq's own step size control
_ROUNDS = {"max_rounds"}  # of which a stepping method takes many
_SOLVES = {"max_batch", "max_rounds", "progress"}
_LEAST = 64.0  # units of rounding: the smallest default tolerance
_LOOSER = (1.0, 10.0, 100.0)  # times the default tolerance, tried in turn where errors grow
_SPANS = 10.0 ** torch.arange(10, dtype=torch.float64)  # how long to wait for an event, in units of the given span


def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = None,
    atol: Any = None,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    mesh: "DeviceMesh | None" = None,
    devices: Sequence[Any] | None = None,
) -> Any:
    """Solve ``dy/dt = func(t, y)``, with the arguments of torchdiffeq's ``odeint``.

        ys = ps.odeint(lambda t, y: -y, torch.ones(3), torch.linspace(0, 1, 11))   # (11, 3)

    Args:
        func: ``func(t, y)`` of one state and a 0-d time. `torch.func.vmap` lifts it to many times, unless
            ``options={"vectorized": True}``.
        y0: initial state: a tensor, or a tuple of tensors.
        t: ``(T,)`` times, increasing or decreasing; ``t[0]`` is the time of ``y0``. They are kept in float64; ``func``
            and ``event_fn`` get times as the drift of an `ODE` does.
        rtol: relative tolerance. With an adaptive method it concerns the distance to the solution of the equation, on
            a fixed grid the distance to the sequential solver. A number; a tensor that broadcasts over y0, one value
            for each component; for a tuple of states a tuple of these, or a tensor with one value for each state, as
            in torchdiffeq. The default is 1e-7, or what the dtype of y0 can reach. Where errors grow too much for the
            default, up to a hundred times as much is taken, with a `ConvergenceWarning`.
        atol: absolute tolerance, of the same shapes. Default 1e-9.
        method: None takes `Adaptive`: `Collocation` or steps of a Runge-Kutta pair, whichever is faster, as
            ``solution.notes`` says. "picard", "secant" and "newton" take `Collocation` with that iteration; one of the
            options ``nodes``, ``order``, ``in_flight``, ``max_rounds`` takes it with the one that suits the state.
            "dopri5", "dopri8" and "tsit5" step with `Dopri5`, `Dopri8` and `Tsit5`, one step after the other; unlike in
            torchdiffeq, the tolerance is about the error of the solution and not of a step. The names of torchdiffeq's
            other adaptive methods, such as "bosh3", mean None here: the tolerance is kept, and not the steps. "euler",
            "midpoint", "heun2" and "rk4" (the 3/8 rule, as in torchdiffeq) solve on a fixed grid.
        options: for all methods ``vectorized``, ``max_batch``, ``max_rounds`` and ``progress``; ``full_output=True``
            returns ``(states, solution)``, where the `Solution` has the certificate. For "dopri5", "dopri8", "tsit5"
            the arguments of `Dopri5`, which are torchdiffeq's; ``norm`` and ``dtype`` are ignored with a warning. For
            other adaptive methods ``first_step`` and ``max_step``, and ``nodes``, ``order`` and ``in_flight`` of
            `Collocation`; options of torchdiffeq's step size control are ignored with a warning. For a fixed grid
            ``step_size``, the longest step: every interval of ``t`` is cut into equal steps that are no longer
            (default: one step an interval); ``window``, ``iteration`` and ``guess`` of `solve`.
        event_fn: ``event_fn(t, y)`` returns a tensor. The solve ends where one of its elements changes sign, however
            late: the second of two times ``t`` gives only the direction.
        mesh: as for `solve`: ranks that share the rows of every call of ``func``.
        devices: as for `solve`: devices of this process that share them.

    Returns:
        The states at ``t``, ``(T, *y0.shape)``, or a tuple of these. With ``event_fn``: ``(event_t, states)``, a 0-d
        time, and the states ``(2, *y0.shape)`` at the start and at the event.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an unknown method or option, or an error of `solve`.
        RuntimeError: a transform of `torch.func` asks for a derivative that there is not, or varies what the drift
            closes over; or a tensor has a forward-mode tangent.
        SolveError: an error of `solve`, or the event does not happen within 1e9 times the span of ``t``.
        picardsolve.distributed.RankError: see `solve`.
    """
    check_callable("func", func)
    if not isinstance(method, str | None):
        raise TypeError(f"method: expected a string, got {method!r}.")
    if not isinstance(y0, Tensor) and not (isinstance(y0, tuple | list) and all(isinstance(y, Tensor) for y in y0)):
        raise TypeError(f"y0: expected a tensor, or tuple of tensors, got {type(y0).__name__}; for others use solve().")
    if not isinstance(options, Mapping | None):
        raise TypeError(f"options: expected a dict, got {type(options).__name__}.")
    if method not in (*_FIXED, *_ITERATIONS, *_ADAPTIVE):
        known = ", ".join(map(repr, (*_FIXED, *filter(None, _ITERATIONS), *_ADAPTIVE)))
        raise ValueError(f"method: expected None (adaptive) or one of {known}, got {method!r}.")
    y0 = tuple(y0) if isinstance(y0, list) else y0
    given = dict(options or {})
    full_output = given.pop("full_output", False)
    spread = {"mesh": mesh, "devices": devices}
    term = ODE(func, given.pop("vectorized", False))
    tolerances = by_component("rtol", rtol, y0), by_component("atol", atol, y0)
    if transforming():
        if event_fn is not None or full_output or any(part is not None for part in spread.values()):
            raise RuntimeError("event_fn, full_output, mesh, devices: not inside a transform of torch.func; leave out.")
        return _transformed(term, y0, t, tolerances, method, given)
    grid, times = _grid(t)
    if event_fn is not None:
        if method in _FIXED:
            raise ValueError(f"event_fn: found between steps, which {method!r} does not know; leave method out.")
        solution = _until(event_fn, term, y0, times, tolerances, method, given, spread)
        happened = solution.events[0].ts[0]
        end = solution(happened)  # not as events has it, for that has no gradients
        at = happened.to(t.dtype if isinstance(t, Tensor) else grid.dtype)
        answer = at, pytree.tree_map(lambda *ends: torch.stack(ends), y0, end)
    elif method in _FIXED:
        answer, solution = _on_grid(term, y0, grid, tolerances, method, given, **spread)
        if torch.is_grad_enabled() and times.requires_grad:
            said = f"gradient: not recorded with respect to t on the grid of {method!r}; detach t, or leave method out."
            answer = pytree.tree_map(lambda leaf: Refused.apply(said, leaf, times), answer)
    else:
        solution = _adaptive(term, y0, times, tolerances, method, given, **spread)
        answer = solution.ys
    return (answer, solution) if full_output else answer


def _grid(t: Any) -> tuple[Tensor, Tensor]:
    """The times, and the same with their gradients."""
    try:
        grid = grids.given(t)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("ts:", "t:", 1)) from None
    return grid, t.to("cpu", torch.float64) if isinstance(t, Tensor) else grid


def _transformed(
    term: ODE, y0: Any, t: Any, tolerances: tuple[Any, Any], method: str | None, options: dict[str, Any]
) -> Any:
    """The states inside transforms of `torch.func`."""
    starts, structure = pytree.tree_flatten(y0)

    def states(starts: Sequence[Tensor], t: Any, batched: bool) -> tuple[Tensor, ...]:
        grid, times = _grid(t)
        within = pytree.tree_map(lambda one: one[None] if batched and isinstance(one, Tensor) else one, tolerances)
        given = term, pytree.tree_unflatten(starts, structure), times, within, method, options
        if method in _FIXED:
            ys, _ = _on_grid(term, given[1], grid, within, method, options, batch_dims=int(batched))
        else:
            ys = _adaptive(*given, batch_dims=int(batched)).ys
        return tuple(pytree.tree_leaves(ys))

    t = t if isinstance(t, Tensor) else grids.given(t)
    if method in _FIXED and is_transformed(t):
        raise RuntimeError(f"t: torch.func cannot transform the times of {method!r}, a fixed grid; leave method out.")
    return pytree.tree_unflatten(transformed(states, starts, t, term), structure)


def _adaptive(
    term: ODE,
    y0: Any,
    grid: Tensor,
    tolerances: tuple[Any, Any],
    method: str | None,
    options: dict[str, Any],
    **more: Any,
) -> Solution:
    """Solve by an adaptive method; default tolerances are what can be reached."""
    make = _made(method, options)
    parts = {field.name for field in fields(make)} | (_PARTS if make is Adaptive else set())
    _refuse(set(options) - _THEIRS - _SOLVES - parts)
    ignored = sorted((_THEIRS & set(options)) - parts)
    if ignored:
        said = f"options: {', '.join(map(repr, ignored))} steer torchdiffeq's own steps and have no effect here."
        warnings.warn(said, UserWarning, stacklevel=3)
    given = {name: value for name, value in options.items() if name in _SOLVES} | more
    given["integrator"] = make(**{name: value for name, value in options.items() if name in parts})
    given["iteration"] = _ITERATIONS.get(method)
    usual = _usual(y0)
    for looser in _LOOSER:
        given["rtol"], given["atol"] = (
            looser * default if value is None else value for value, default in zip(tolerances, usual, strict=True)
        )
        try:
            solution = solve(term, y0, grid, **given)
        except SolveError as error:
            if error.solution.result is not Result.unreachable or tolerances[0] is not None or looser == _LOOSER[-1]:
                raise
        else:
            break
    if looser > 1:
        said = f"rtol: errors grow too much for the default; the solution is within rtol={given['rtol']:.1e}."
        warnings.warn(said, ConvergenceWarning, stacklevel=3)
    return solution


def _made(method: str | None, options: Mapping[str, Any]) -> type[Adaptive | Collocation | EmbeddedMethod]:
    """The integrator of an adaptive method."""
    if method in _EMBEDDED:
        return _EMBEDDED[method]
    return Collocation if _ITERATIONS.get(method) or (_PARTS - _LENGTHS | _ROUNDS) & set(options) else Adaptive


def _usual(y0: Any) -> tuple[float, float]:
    """Default rtol and atol: what the dtype can reach."""
    return max(1e-7, _LEAST * torch.finfo(Layout.of(y0, 0).dtype).eps), 1e-9


def _until(
    event_fn: Callable[..., Tensor],
    term: ODE,
    y0: Any,
    grid: Tensor,
    tolerances: tuple[Any, Any],
    method: str | None,
    options: dict[str, Any],
    spread: dict[str, Any],
) -> Solution:
    """Solve over longer and longer spans until the event lies in one; a solve ends at the event."""
    check_callable("event_fn", event_fn)
    if len(grid) != 2:
        raise ValueError(f"event_fn: expected two times t, start and direction, got {len(grid)}.")
    layout = Layout.of(y0, 0)
    begin, clock = grid[0].detach(), Clock.of(grid.detach(), layout)
    signs = clock.called("event_fn", lambda dtype: event_fn(begin.to(layout.device, dtype), y0)).detach().sign()

    def event(t: Tensor, y: Any) -> Tensor:
        return torch.min(event_fn(t, y) * signs)  # > 0 until the first of its elements changes sign

    event.terminal = True  # pyright: ignore[reportFunctionMemberAccess]
    for span in _SPANS:
        ends = torch.stack([grid[0], grid[0] + span * (grid[1] - grid[0])])
        solution = _adaptive(term, y0, ends, tolerances, method, options, events=event, **spread)
        if solution.result is Result.terminated:
            return solution
    raise SolveError(f"event_fn: no element changed its sign up to t = {float(ends[1]):g}.", solution)


def _on_grid(
    term: ODE,
    y0: Any,
    grid: Tensor,
    tolerances: tuple[Any, Any],
    method: str,
    options: dict[str, Any],
    **more: Any,
) -> tuple[Any, Solution]:
    given = dict(options)
    step_size = given.pop("step_size", None)
    _refuse(set(given) - _SOLVES - {"window", "iteration", "guess"})
    fine, index = _refined(grid, step_size)
    rtol, atol = (usual if value is None else value for value, usual in zip(tolerances, _usual(y0), strict=True))
    solution = solve(term, y0, fine, integrator=_FIXED[method], rtol=rtol, atol=atol, **given, **more)
    return pytree.tree_map(lambda leaf: leaf[index], solution.ys), solution


def _refuse(unknown: set[str]) -> None:
    if unknown:
        raise ValueError(f"options: got unknown {', '.join(map(repr, sorted(unknown)))}; see odeint's docstring.")


def _refined(grid: Tensor, step_size: float | None) -> tuple[Tensor, Tensor]:
    """A grid with every interval cut into equal steps of at most ``step_size``, and where the old times are."""
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
