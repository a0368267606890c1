"""How well certificates tell the true error: hundreds of solves of many kinds, each beside its sequential solution.

``python tests/benchmarks/calibration.py`` prints the table of ``docs/certificates.md`` and draws its picture; names of
kinds may follow. Seeds are not among those that anything was chosen on.
"""

import math
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chains
import mixture
import policy
import torch
from torch import Tensor

import picardsolve as ps
from picardsolve.problem.recurrence import rms

SEEDS, FIRST = 16, 3000  # what was chosen was chosen on seeds from 1000 on
TOLERANCES = (1e-2, 1e-3, 1e-4)
_ROUNDING = 1e-13  # errors below are of this kind
PICTURE = Path(__file__).parents[2] / "docs" / "images" / "calibration.png"


@dataclass(frozen=True)
class Problem:
    """One solve: arguments of `picardsolve.solve`, and constants of the drift where they are known."""

    term: Any
    y0: Any
    ts: Tensor
    given: dict[str, Any]
    lipschitz: float | None = None
    one_sided: float | None = None


@dataclass
class Found:
    """What a kind of problem showed, an entry for each sample at the end of each solve.

    Attributes:
        true: distances to the sequential solution.
        estimated: those claimed for no further evaluation.
        bounds: what they are claimed to be at most.
        rechecked: those that a `recheck` claims.
        holds: whether a certified bound held, at all times.
        foreseen: predicted less true rounds, and the true ones, after each round from the fourth on.
        cost: rounds of a recheck, to those of the solve.
    """

    true: list[float] = field(default_factory=list)
    estimated: list[float] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)
    rechecked: list[float] = field(default_factory=list)
    holds: list[bool] = field(default_factory=list)
    foreseen: list[tuple[float, int]] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    solves: int = 0


# ---- problems


def denoisers(model: str, sampler: str, steps: int, window: int, guided: bool = False) -> Iterator[Problem]:
    """Samples of the mixture or of the digits network."""
    seeds = tuple(range(FIRST, FIRST + SEEDS))
    of = chains.samples(model, sampler, seeds, steps)
    term = guided_mixture() if guided else of.term
    for tol in TOLERANCES:
        yield Problem(term, of.y0, of.ts, {**of.given, "window": window, "tol": tol})


def guided_mixture(scale: float = 3.0) -> ps.Denoiser:
    """The mixture guided towards three of its components (classifier-free, Ho & Salimans 2022)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    schedule, every, some = ps.schedules.from_betas(betas), mixture.Mixture(), mixture.Mixture()
    some.means, some.axes, some.variances = every.means[:3], every.axes[:3], every.variances[:3]

    def noise(x: Tensor, t: Tensor) -> Tensor:
        levels = schedule.alpha(t), schedule.sigma(t)
        free = every.epsilon(x, *levels)
        return free + scale * (some.epsilon(x, *levels) - free)

    return ps.Denoiser(noise, schedule)


def plans(sampler: ps.Integrator, steps: int, window: int) -> Iterator[Problem]:
    """Plans of a small trained policy."""
    term, _ = policy.trained()
    for seed in (FIRST, FIRST + 1):
        of = policy.plans(term, sampler, steps, seed)
        for tol in TOLERANCES:
            yield Problem(term, of.y0, of.ts, {**of.given, "window": window, "tol": tol})


def odes(drift: Callable, y0: Sequence[float], end: float, steps: int, **constants: float) -> Iterator[Problem]:
    """An ODE from slightly different starts, by several integrators and iterations, in windows of several widths."""
    generator = torch.Generator().manual_seed(FIRST)
    start = torch.tensor(y0, dtype=torch.float64)
    for integrator in (ps.Euler(), ps.RK4()):
        for iteration in (ps.Picard(), ps.Secant()):
            for window in (16, 64):
                for tol in (1e-3, 1e-6, 1e-9):
                    y = start * (1 + 0.05 * torch.randn(start.shape, generator=generator, dtype=torch.float64))
                    how = {"integrator": integrator, "iteration": iteration, "window": window, "tol": tol}
                    yield Problem(ps.ODE(drift), y, ps.grids.uniform(0, end, steps), how, **constants)


def sdes(drift: Callable, diffusion: Callable, noise: Any, end: float, steps: int) -> Iterator[Problem]:
    """An SDE along several paths."""
    for seed in range(FIRST, FIRST + SEEDS // 2):
        y0 = 1 + 0.1 * torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for tol in (1e-2, 1e-4):
            how = {"integrator": ps.Euler(), "window": 64, "tol": tol, "brownian": ps.BrownianPath(seed)}
            yield Problem(ps.SDE(drift, diffusion, noise), y0, ps.grids.uniform(0, end, steps), how)


def stack(*parts: Tensor) -> Tensor:
    return torch.stack(parts, -1)


def lotka_volterra(t: Tensor, y: Tensor) -> Tensor:
    a, b = y.unbind(-1)
    return stack(1.5 * a - a * b, a * b - 3 * b)


def lorenz(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    return stack(10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c)


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    return stack(y[..., 1], -torch.sin(y[..., 0]))


def two_body(t: Tensor, y: Tensor) -> Tensor:
    """DETEST D1 (Hull et al. 1972)."""
    q, v = y[..., :2], y[..., 2:]
    return torch.cat([v, -q / q.square().sum(-1, keepdim=True) ** 1.5], -1)


def rigid_body(t: Tensor, y: Tensor) -> Tensor:
    """DETEST B5."""
    a, b, c = y.unbind(-1)
    return stack(b * c, -a * c, -0.51 * a * b)


def chain_of_decays(t: Tensor, y: Tensor) -> Tensor:
    """DETEST C1, its first ten equations: radioactive decay, in which nothing grows."""
    return torch.cat([-y[..., :1], y[..., :-2] - y[..., 1:-1], y[..., -2:-1]], -1)


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    """DETEST E2."""
    a, b = y.unbind(-1)
    return stack(b, (1 - a**2) * b - a)


KINDS: dict[str, Callable[[], Iterator[Problem]]] = {
    "mixture DDIM-50, width 8": lambda: denoisers("mixture", "DDIM", 50, 8),
    "mixture DDIM-100, full window": lambda: denoisers("mixture", "DDIM", 100, 100),
    "mixture DDPM-100, width 25": lambda: denoisers("mixture", "DDPM", 100, 25),
    "mixture, guided, DDIM-100, width 25": lambda: denoisers("mixture", "DDIM", 100, 25, guided=True),
    "digits DDIM-100, width 16, guided": lambda: denoisers("digits", "DDIM", 100, 16),
    "digits DDPM-100, full, guided": lambda: denoisers("digits", "DDPM", 100, 100),
    "policy DDPM-100, width 25": lambda: plans(ps.DDPM(), 100, 25),
    "policy DDIM-20, full window": lambda: plans(ps.DDIM(), 20, 20),
    "pendulum": lambda: odes(pendulum, [1.0, 0.5], 10, 500, lipschitz=1.0),
    "Lotka-Volterra": lambda: odes(lotka_volterra, [2.0, 1.0], 4, 400),
    "DETEST B5, rigid body": lambda: odes(rigid_body, [0.1, 1.0, 1.0], 10, 400),
    "DETEST C1, decays": lambda: odes(chain_of_decays, [1.0] + [0.01] * 9, 5, 400, lipschitz=2.0),
    "DETEST D1, two bodies": lambda: odes(two_body, [0.9, 0.0, 0.0, (1.1 / 0.9) ** 0.5], 6, 600),
    "DETEST E2, Van der Pol": lambda: odes(van_der_pol, [2.0, 0.1], 8, 600),
    "Lorenz to t = 3": lambda: odes(lorenz, [1.0, 1.0, 20.0], 3, 600),
    "Ornstein-Uhlenbeck": lambda: sdes(lambda t, y: -y, lambda t, y: 0.5 + 0 * y, "additive", 4, 256),
    "geometric Brownian motion": lambda: sdes(lambda t, y: 0.5 * y, lambda t, y: 0.5 * y, "diagonal", 2, 256),
    "double well": lambda: sdes(lambda t, y: y - y**3, lambda t, y: 0.5 + 0 * y, "additive", 4, 256),
}


# ---- the study


def study(problems: Iterator[Problem]) -> Found:
    """Solve, and hold every claim against the sequential solution."""
    found = Found()
    for problem in problems:
        solution = ps.solve(problem.term, problem.y0, problem.ts, **problem.given)
        certificate = solution.certificate
        truth, finer = certificate.verify(), certificate.recheck()
        scale = float(rms(solution.ys[-1].double()).max())
        claims = truth.error, certificate.error, certificate.bound, finer.error
        for true, estimated, bound, rechecked in zip(*(x[-1].reshape(-1).tolist() for x in claims), strict=True):
            found.solves += 1
            if true > _ROUNDING * max(scale, 1):
                found.true.append(true / scale)
                found.estimated.append(estimated / scale)
                found.bounds.append(bound / scale)
                found.rechecked.append(rechecked / scale)
        if problem.lipschitz is not None:
            found.holds.append(certificate.certified(problem.lipschitz, problem.one_sided).verify().holds)
        foreseen = [(p - certificate.rounds, certificate.rounds) for p in certificate.rounds_predicted[3:-1]]
        found.foreseen += foreseen
        assert finer.better is not None
        found.cost.append(finer.better.stats.rounds / solution.stats.rounds)
    return found


def share(values: Sequence[float], low: float, high: float) -> float:
    """Per cent of the values within limits."""
    return 100 * sum(low <= value <= high for value in values) / max(len(values), 1)


def row(name: str, found: Found) -> str:
    """A row of the table."""
    claims = found.estimated, found.bounds, found.rechecked
    free, bound, again = ([e / t for e, t in zip(claim, found.true, strict=True)] for claim in claims)
    spread = torch.tensor(free or [math.nan], dtype=torch.float64).quantile(torch.tensor([0.05, 0.5, 0.95]).double())
    near = [apart for apart, _ in found.foreseen]
    relative = [apart / rounds for apart, rounds in found.foreseen]
    return (
        f"{name:37s} {found.solves:5d} {len(free):6d}  {spread[0]:5.2f} {spread[1]:6.2f} {spread[2]:6.2f}  "
        f"{share(free, 0.5, 2):4.0f} %  {share(bound, 1, math.inf):4.0f} %  {share(again, 0.5, 2):6.0f} %  "
        f"{statistics.median(found.cost):5.2f}  {share(near, -2, 2):4.0f} %  {share(relative, -0.15, 0.15):4.0f} %  "
        f"{sum(found.holds):3d}/{len(found.holds)}"
    )


def main(names: Sequence[str]) -> None:
    """Print the table, and draw the picture."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ps.ConvergenceWarning)
    print(
        "Errors above rounding; estimated over true error at the end: quantiles, share within a factor of two; bounds\n"
        "that held; of a recheck the share within a factor of two and the rounds, to those of the solve; rounds\n"
        "foreseen after round 4: within 2, within 15 %; certified bounds that held, at all times\n"
        f"{'kind':37s} solves errors    5 % median   95 %  in 1/2..2  bound  recheck  cost  +-2   15 %  certified"
    )
    total, every = Found(), {}
    for name, problems in KINDS.items():
        if names and not any(part in name for part in names):
            continue
        found = every[name] = study(problems())
        print(row(name, found), flush=True)
        for key in ("true", "estimated", "bounds", "rechecked", "holds", "foreseen", "cost"):
            getattr(total, key).extend(getattr(found, key))
        total.solves += found.solves
    print(row("all", total))
    if not names:
        draw(every)


def draw(every: dict[str, Found]) -> None:
    """Estimated against true errors, of both kinds."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), sharex=True, sharey=True, layout="constrained")
    for index, (name, found) in enumerate(every.items()):
        for axis, claims in zip(axes, (found.estimated, found.rechecked), strict=True):
            axis.loglog(found.true, claims, ".", markersize=3, color=plt.cm.tab20(index % 20), label=name)
    for axis, title in zip(axes, ("from the rounds alone", "after recheck()"), strict=True):
        line = [1e-14, 3]
        axis.loglog(line, line, color="black", linewidth=0.8)
        axis.fill_between(line, [x / 2 for x in line], [2 * x for x in line], color="black", alpha=0.1, linewidth=0)
        axis.set(xlabel="true distance to the sequential solution", title=title)
    axes[0].set_ylabel("estimated distance, relative")
    axes[1].legend(fontsize=5.5, loc="lower right", markerscale=2)
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    main(sys.argv[1:])
