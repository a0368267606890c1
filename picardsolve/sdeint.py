"""`sdeint` with the arguments of torchsde's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from picardsolve.brownian.brownian_path import BrownianPath
from picardsolve.brownian.path import Path
from picardsolve.integrators import SRID2, EulerMaruyama, Integrator, Milstein, StochasticHeun, StochasticMidpoint
from picardsolve.problem import grids
from picardsolve.problem.checks import check_callable, check_choice
from picardsolve.problem.terms import SDE, BatchSDE, Interpretation
from picardsolve.solve import solve

# torchsde's names, and the interpretations that each method solves
_METHODS: dict[str, tuple[Integrator, tuple[str, ...]]] = {
    "euler": (EulerMaruyama(), ("ito",)),
    "milstein": (Milstein(), ("ito", "stratonovich")),
    "srk": (SRID2(), ("ito",)),
    "heun": (StochasticHeun(), ("stratonovich",)),
    "midpoint": (StochasticMidpoint(), ("stratonovich",)),
}
_NOISES = ("additive", "diagonal", "scalar", "general")
_NEAR = 4.0  # spans: a list of times no further from zero may be rounded to the dtype of y0
_SOLVES = {"window", "iteration", "guess", "stop", "max_batch", "max_rounds", "progress"}


def sdeint(
    sde: Any,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Path | None = None,
    method: str | None = None,
    dt: float = 1e-3,
    *,
    adaptive: bool = False,
    rtol: float | Tensor | None = None,
    atol: float | Tensor | None = None,
    options: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
) -> Any:
    """Solve an SDE, with the arguments of torchsde's ``sdeint``.

    It takes the same method on the same steps as torchsde: steps of length ``dt`` from ``ts[0]``, the last one shorter,
    and linear interpolation at times of ``ts`` between them. Gradients with respect to y0 and the parameters of the
    SDE are recorded, for the given path, as in `solve`; this call therefore also replaces ``sdeint_adjoint``.

        ys = ps.sdeint(sde, torch.zeros(16, 2), torch.linspace(0, 1, 11), dt=0.01)   # (11, 16, 2)

    Args:
        sde: an object with methods ``f(t, y)`` and ``g(t, y)`` of a batch ``(batch, d)`` and a 0-d time, and with
            attributes ``noise_type`` ("additive", "diagonal", "scalar" or "general") and ``sde_type`` ("ito" or
            "stratonovich"). The methods are called with the whole batch at one time. `torch.func.vmap` lifts them to
            many times; where that is not possible, they are called for one time after the other. They may hold a value
            for each sample, and samples may depend on each other; all samples therefore share their steps. With
            ``options={"vectorized": True}`` the methods are called once for many samples and times, ``(rows, d)`` and
            ``(rows, 1)``. Each sample then has its own window, and the methods cannot know the sample of a row.
        y0: ``(batch, d)`` initial states.
        ts: ``(T,)`` increasing times; ``ts[0]`` is the time of ``y0``. Steps are added up in the dtype of ``ts``. For
            a list that is the dtype of y0, as in torchsde, or float64 where the times are far from zero. ``f`` and
            ``g`` get times as the drift of an `ODE` does.
        bm: the Brownian path, by default ``BrownianPath(seed=0)``. For torchsde's own paths see
            `picardsolve.integrations.torchsde.sdeint`.
        method: for Ito SDEs "euler", "milstein" or "srk" (`SRA1` for additive, `SRID2` for diagonal and scalar noise);
            for Stratonovich SDEs "heun", "midpoint" or "milstein". The default is torchsde's: "srk", "euler" for
            general noise, "midpoint" for Stratonovich SDEs.
        dt: step length.
        adaptive: only False.
        rtol: relative tolerance of the distance to the sequential solver, as in `solve`. (In torchsde it concerns
            adaptive steps.)
        atol: absolute tolerance of the same distance.
        options: ``vectorized``; ``window``, ``iteration``, ``guess``, ``stop``, ``max_batch``, ``max_rounds`` and
            ``progress`` of `solve`; ``full_output=True`` returns ``(states, solution)``.
        names: other names of the methods, ``{"drift": ..., "diffusion": ...}``.

    Returns:
        The states at ``ts``, ``(T, batch, d)``.

    Raises:
        TypeError: an argument has the wrong type, or the method does not take the noise.
        ValueError: an unknown method or option, or an error of `solve`.
        SolveError: an error of `solve`.
    """
    if adaptive is not False:
        raise ValueError(f"adaptive: expected False, got {adaptive!r}; steps in parallel are fixed, pass a smaller dt.")
    if not isinstance(y0, Tensor) or y0.dim() != 2:
        got = tuple(y0.shape) if isinstance(y0, Tensor) else type(y0).__name__
        raise TypeError(f"y0: expected a tensor (batch, d), got {got}; for other states use solve().")
    if not isinstance(options, Mapping | None) or not isinstance(names, Mapping | None):
        raise TypeError("options, names: expected dicts; pass options={'window': 64}, names={'drift': 'h'}.")
    if not isinstance(dt, int | float) or not dt > 0:
        raise ValueError(f"dt: expected a positive number, got {dt!r}; pass the length of a step.")
    given = dict(options or {})
    full_output = given.pop("full_output", False)
    term = term_of(sde, names or {}, given.pop("vectorized", False))
    unknown = sorted(set(given) - _SOLVES)
    if unknown:
        raise ValueError(f"options: got unknown {', '.join(map(repr, unknown))}; see sdeint's docstring.")
    integrator = _integrator(method, term)
    exact = grids.given(ts)
    if not bool((exact.diff() > 0).all()):
        raise ValueError("ts: expected increasing times for an SDE; write the reverse-time equation forward.")
    times = ts.detach() if isinstance(ts, Tensor) else _as_torchsde(exact, y0)
    grid = _grid(times, dt, keep_all=not isinstance(bm, BrownianPath | None))
    solution = solve(term, y0, grid, integrator=integrator, brownian=bm, batch_dims=1, rtol=rtol, atol=atol, **given)
    ys = _between(solution.ys, grid, times.to("cpu", torch.float64))
    return (ys, solution) if full_output else ys


def term_of(sde: Any, names: Mapping[str, str], vectorized: bool) -> SDE:
    """The `SDE` of an object with the methods and attributes of torchsde's.

    Raises:
        TypeError: a method or attribute is missing.
        ValueError: its noise type or interpretation is unknown.
    """
    for attribute in ("noise_type", "sde_type"):
        if not hasattr(sde, attribute):
            raise TypeError(
                f"sde: expected an object with f, g, noise_type and sde_type, got {type(sde).__name__} without "
                f"{attribute}; use solve() for a picardsolve.SDE."
            )
    check_choice("sde.noise_type", sde.noise_type, _NOISES)
    check_choice("sde.sde_type", sde.sde_type, get_args(Interpretation))
    strange = sorted(set(names) - {"drift", "diffusion"})
    if strange:
        raise ValueError(f"names: expected 'drift' and 'diffusion', got {', '.join(map(repr, strange))}; leave it out.")
    methods: list[Any] = [
        getattr(sde, names.get(role, name), None) for role, name in (("drift", "f"), ("diffusion", "g"))
    ]
    drift, diffusion = methods
    check_callable("sde.f", drift)
    check_callable("sde.g", diffusion)
    made = SDE if vectorized else BatchSDE
    squeezed = _Squeezed(diffusion) if sde.noise_type == "scalar" else diffusion
    return made(drift, squeezed, sde.noise_type, sde.sde_type, vectorized)


@dataclass(frozen=True)
class _Squeezed:
    """A diffusion of scalar noise, without its last dimension."""

    method: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.method(t, y)[..., 0]

    @property
    def __wrapped__(self) -> Callable[[Tensor, Tensor], Tensor]:
        return self.method


def _integrator(method: str | None, term: SDE) -> Integrator:
    if method is None:
        usual = "euler" if term.noise == "general" else "srk"
        method = usual if term.interpretation == "ito" else "midpoint"
    check_choice("method", method, tuple(_METHODS))
    integrator, solves = _METHODS[method]
    if term.interpretation not in solves:
        others = ", ".join(repr(name) for name, (_, kinds) in _METHODS.items() if term.interpretation in kinds)
        raise ValueError(f"method: {method!r} does not solve {term.interpretation} SDEs; pass one of {others}.")
    return integrator


def _as_torchsde(ts: Tensor, y0: Tensor) -> Tensor:
    """A list of times in the dtype of y0, as torchsde reads it, where that is as precise as float64."""
    dtype = torch.promote_types(y0.dtype, torch.float32)
    return ts.to(dtype) if float(ts.abs().max()) <= _NEAR * float(ts[-1] - ts[0]) else ts


def _grid(ts: Tensor, dt: float, keep_all: bool) -> Tensor:
    """Times ``dt`` apart, added up one by one in the precision of ``ts``: the same times as torchsde's.

    Rounding may leave a tiny last step. It is kept only where a path of torchsde's is integrated, which needs it.
    """
    times = ts.to("cpu").numpy() if ts.is_floating_point() else ts.to("cpu", torch.float64).numpy()
    count = int(np.ceil((times[-1] - times[0]) / dt)) + 2
    if times[-1] - times.dtype.type(dt) == times[-1] and count > 2:
        raise ValueError(f"dt: a step of {dt:g} is nothing beside t = {times[-1]:g} in {ts.dtype}; pass ts.double().")
    steps = np.full(count + 1 + count // 1000, dt, dtype=times.dtype)
    steps[0] = times[0]
    grid = np.add.accumulate(steps, dtype=times.dtype)
    grid = np.append(grid[grid < times[-1]], times[-1]).astype(np.float64)
    rounding = 0.0 if keep_all else len(grid) * np.finfo(times.dtype).eps * np.abs(grid).max()
    if len(grid) > 2 and grid[-1] - grid[-2] <= rounding:
        grid = np.delete(grid, -2)
    return torch.from_numpy(grid)


def _between(ys: Tensor, grid: Tensor, ts: Tensor) -> Tensor:
    """States at times, interpolated linearly between those of the grid."""
    after = torch.searchsorted(grid, ts).clamp(1, len(grid) - 1)
    t0, t1 = grid[after - 1], grid[after]
    share = ((ts - t0) / (t1 - t0)).to(ys)[:, None, None]
    after = after.to(ys.device)
    return (1 - share) * ys[after - 1] + share * ys[after]
