"""SDEs: rounds of every iteration on five problems, and wall clock beside torchsde's Euler on the same path.

``python tests/benchmarks/sdes.py`` prints the tables of ``docs/sde_iterations.md``. Errors are the largest root mean
square distance, over the times, to the sequential solver's states on the same path.
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torchsde
from torch import Tensor

import picardsolve as ps

STEPS, END, SIZE, SEEDS = 1000, 10.0, 16, range(4)
ITERATIONS = {
    "Picard()": ps.Picard(),
    "Secant() (default)": ps.Secant(),
    "MultiSecant()": ps.MultiSecant(),
    "Anderson()": ps.Anderson(),
    'Newton("hutchinson")': ps.Newton("hutchinson"),
    'Newton("diagonal")': ps.Newton("diagonal"),
    "Newton()": ps.Newton(),
}
PROBLEMS = ("additive", "weak", "strong", "gbm", "double well")
TS = ps.grids.uniform(0.0, END, STEPS)


def problem(name: str, seed: int, wait: float = 0.0) -> tuple[ps.SDE, Tensor]:
    """Of ``shared/prototypes/sde_chains.py``; ``wait`` seconds are added to a drift call, as a device's latency."""
    gen = np.random.default_rng(seed)
    mixing = gen.standard_normal((SIZE, SIZE)) / SIZE**0.5
    coupling, y0 = torch.from_numpy(0.5 * mixing @ mixing.T), torch.from_numpy(gen.standard_normal(SIZE))
    if name == "double well":
        f, g = (lambda y: -2 * y * (y * y - 1) - 0.3 * (y @ coupling)), (lambda y: torch.full_like(y, 0.7))
    elif name == "additive":
        f, g = (lambda y: -y + torch.tanh(y @ coupling)), (lambda y: torch.full_like(y, 0.7))
    elif name == "gbm":
        f, g, y0 = (lambda y: 0.05 * y), (lambda y: 0.4 * y), torch.ones(SIZE, dtype=torch.float64)
    else:
        s = {"weak": 0.3, "strong": 1.0}[name]
        f, g = (lambda y: -y + torch.tanh(y @ coupling) + 0.5), (lambda y: s * y)

    def drift(t: Tensor, y: Tensor) -> Tensor:
        if wait:
            time.sleep(wait)
        return f(y)

    return ps.SDE(drift, lambda t, y: g(y), "additive" if name in ("additive", "double well") else "diagonal"), y0


class Drawn(ps.BrownianPath):
    """The increments of the grid, drawn once: the noise of both sides, so that neither is timed for it."""

    def increments(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int) -> Tensor:
        return increments(self.seed, size)[(t0 * (STEPS / END)).round().long()]


@cache
def increments(seed: int, size: int) -> Tensor:
    return ps.BrownianPath(seed).increments(TS[:-1], TS[1:], torch.zeros(STEPS, dtype=torch.int64), size)


def solve(term: ps.SDE, y0: Tensor, seed: int, **how) -> ps.Solution:
    common = {"integrator": ps.EulerMaruyama(), "brownian": Drawn(seed), "atol": 1e-3, "rtol": 0.0, "throw": False}
    return ps.solve(term, y0, TS, **common | how)


def distance(ys: Tensor, other: Tensor) -> float:
    return float((ys - other).square().mean(1).sqrt().max())


def rounds(widths: tuple[int, ...]) -> None:
    """Rounds of every iteration; median and worst of the seeds."""
    print(f"N = {STEPS}, T = {END:g}, d = {SIZE}, tolerance 1e-3; rounds, median / worst of {len(SEEDS)} seeds")
    print("| problem | window | stop | guess | iteration | rounds | evaluations / N | error, median / worst |")
    print("|---|---|---|---|---|---|---|---|")
    for name in PROBLEMS:
        cases = [(*problem(name, seed), seed) for seed in SEEDS]
        exact = [
            ps.sequential(term, y0, TS, integrator=ps.EulerMaruyama(), brownian=Drawn(seed)).ys
            for term, y0, seed in cases
        ]
        for width in widths:
            for guess in (ps.FrozenOutput(), ps.Copy()):
                for stop in ("increment", "error"):
                    for said, iteration in ITERATIONS.items():
                        if width == STEPS and name == "double well" and "Multi" in said:
                            continue  # minutes
                        how = {"window": width, "stop": stop, "iteration": iteration, "guess": guess}
                        sols = [solve(*case, **how) for case in cases]
                        counts, work = (
                            [sol.stats.rounds for sol in sols],
                            [sol.stats.evaluations / STEPS for sol in sols],
                        )
                        errors = [distance(sol.ys, ys) for sol, ys in zip(sols, exact, strict=True)]
                        print(
                            f"| {name} | {width} | {stop} | {type(guess).__name__} | {said} | "
                            f"{statistics.median(counts):g} / {max(counts)} | {statistics.median(work):.1f} | "
                            f"{statistics.median(errors):.0e} / {max(errors):.0e} |",
                            flush=True,
                        )


class Theirs(torch.nn.Module):
    """The same equation as torchsde calls it."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, term: ps.SDE, seed: int):
        super().__init__()
        self.term, self.rows, self.calls = term, increments(seed, SIZE), 0

    def f(self, t, y):
        self.calls += 1
        return self.term.drift(t.reshape(1, 1), y)

    def g(self, t, y):
        return self.term.diffusion(t.reshape(1, 1), y)


class Motion(torchsde.BaseBrownian):
    """A table of increments as torchsde's Brownian motion."""

    def __init__(self, rows: Tensor):
        self.rows = rows

    def __call__(self, ta, tb=None, return_U=False, return_A=False):
        step = round(float(ta) * STEPS / END)
        return (self.rows[step] if step < STEPS else torch.zeros(SIZE))[None]  # its times add up to a little less

    def __repr__(self):
        return "Motion()"

    shape = property(lambda self: (1, SIZE))
    dtype = property(lambda self: torch.float64)
    device = property(lambda self: torch.device("cpu"))
    levy_area_approximation = "none"


def best(run: Callable, repeats: int = 3) -> tuple[float, object]:
    """Seconds of the fastest run, and what the last one returned."""
    seconds, out = [], None
    for _ in range(repeats):
        began = time.perf_counter()
        out = run()
        seconds.append(time.perf_counter() - began)
    return min(seconds), out


def wall_clock() -> None:
    """Against torchsde's Euler, same path, same grid; all times kept by both; noise drawn beforehand for both."""
    print("\n| problem | drift call | torchsde, calls | picardsolve, rounds | seconds | times | distance |")
    print("|---|---|---|---|---|---|---|")
    for name, how in (
        ("additive", {}),
        ("strong", {}),
        ("strong", {"iteration": ps.Newton(), "guess": ps.Copy()}),
        ("double well", {"iteration": ps.Newton("hutchinson"), "guess": ps.Copy(), "window": 200}),
        ("gbm", {}),
    ):
        for wait in (0.0, 1e-3, 5e-3):
            term, y0 = problem(name, 0, wait)
            theirs = Theirs(term, 0)
            slow, ys = best(
                lambda y0=y0, theirs=theirs: torchsde.sdeint(
                    theirs, y0[None], TS, bm=Motion(theirs.rows), method="euler", dt=END / STEPS
                ),
                1 if wait else 3,
            )
            fast, sol = best(lambda term=term, y0=y0, how=how: solve(term, y0, 0, **{"window": STEPS} | how))
            assert isinstance(sol, ps.Solution)
            assert isinstance(ys, Tensor)
            print(
                f"| {name}, {how.get('iteration', 'Secant()')} | {wait * 1e3:g} ms more | {slow:.2f} s, "
                f"{theirs.calls if wait else theirs.calls // 3} | {fast:.3f} s, {sol.stats.rounds} | "
                f"{slow:.2f} / {fast:.3f} | {slow / fast:.1f} | {distance(sol.ys, ys[:, 0]):.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if "wall" not in sys.argv:
        rounds((STEPS, 200, 32))
    wall_clock()
