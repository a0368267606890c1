"""Brownian paths beside torchsde's `BrownianInterval`: seconds a query in a sweep over a grid, and memory.

First the draws of whole windows of large states: nanoseconds a number that is returned, and a normal that is made.
Processor time of one thread, best of the repeats, both in one run. torchsde once as it is by default, once told the
step (``dt``), as its `sdeint` does; the ratios are to the second.
Memory is the peak of the process beyond what it had, each in a process of its own; ``python brownian.py 100000`` takes
that of all steps of the grid alone.
"""

import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torchsde

import picardsolve as ps
from picardsolve.brownian.dyadic import Levels
from picardsolve.brownian.intervals import combination

GRIDS = {
    "k / 1024": torch.arange(1025, dtype=torch.float64) / 1024,
    "linspace(0, 1, 1001)": torch.linspace(0, 1, 1001, dtype=torch.float64),
    "0.1 k": 0.1 * torch.arange(1001, dtype=torch.float64),
    "cosine": (1 - torch.cos(torch.linspace(0.1, np.pi - 0.1, 1001, dtype=torch.float64))) / 2,
}
SIZES, WINDOWS = (1, 16, 1000, 10_000), (1, 32, 1000)
QUERIES = {1: 1000, 16: 1000, 1000: 100, 10_000: 32}  # of a sweep that is timed
LARGE = (64, 16_384), (32, 16_384), (1000, 1000), (1000, 16)  # rows and numbers of a row
STEPS, STATE, WINDOW = 100_000, 10_000, 100  # of the memory


def seconds(sweep: Callable[[], None], repeats: int = 2) -> float:
    """Processor time of one of its runs, the best."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        sweep()
        times.append(time.process_time() - start)
    return min(times)


def large(repeats: int = 5) -> None:
    """Draws of many numbers, on times that are dyadic and others."""
    print("rows x numbers    times      normals a number    ns a number (a normal): float32, float64, areas in float32")
    for rows, size in LARGE:
        sample = torch.zeros(rows, dtype=torch.int64)
        for name, steps in (("dyadic", 1 << (rows - 1).bit_length()), ("uneven", rows + 0.37)):
            ts = torch.arange(rows + 1, dtype=torch.float64) / steps
            cells = combination(
                Levels.down_to(2.0**-16), sample.numpy(), sample.numpy(), ts[:-1].numpy(), ts[1:].numpy(), False
            )
            normals, cost = 2 * len(cells.streams) / rows, []
            for dtype, areas in ((torch.float32, False), (torch.float64, False), (torch.float32, True)):
                path = ps.BrownianPath(1, dtype=dtype)
                ask = path.areas if areas else path.increments
                draw = seconds(lambda ask=ask, a=(ts[:-1], ts[1:], sample, size): [ask(*a)].clear(), repeats)
                cost.append(draw / rows / size * 1e9)
            print(
                f"{rows:5d} x {size:<8d}  {name:10s} {normals:8.1f}          "
                + "  ".join(f"{each:7.1f} ({each / normals:4.1f})" for each in cost),
                flush=True,
            )


def torchsde_sweep(ts: torch.Tensor, size: int, queries: int, told: bool = True) -> None:
    """The first queries of a grid, one after the other; the mean step is told or not."""
    times = ts.tolist()
    dt = (times[-1] - times[0]) / (len(times) - 1) if told else None
    bm = torchsde.BrownianInterval(times[0], times[-1], size=(1, size), dtype=torch.float64, entropy=1, dt=dt)
    for k in range(queries):
        bm(times[k], times[k + 1])


def our_sweep(ts: torch.Tensor, size: int, queries: int, window: int, areas: bool = False) -> None:
    """The same, by windows."""
    path, sample = ps.BrownianPath(1), torch.zeros(window, dtype=torch.int64)
    ask = path.areas if areas else path.increments
    for k in range(0, queries, window):
        stop = min(k + window, queries)
        ask(ts[k:stop], ts[k + 1 : stop + 1], sample[: stop - k], size)


def sweeps() -> None:
    """Microseconds a query, and how many times less than torchsde."""
    print(
        "us a query (times less)      size  default torchsde"
        + "".join(f"   window {w:4d}" for w in WINDOWS)
        + "    with areas"
    )
    for name, ts in GRIDS.items():
        for size in SIZES:
            queries = QUERIES[size]
            theirs = seconds(lambda ts=ts, size=size, queries=queries: torchsde_sweep(ts, size, queries))
            default = seconds(lambda ts=ts, size=size, n=queries: torchsde_sweep(ts, size, n, False), 1) / queries
            cells = []
            for window, areas in [(w, False) for w in WINDOWS] + [(WINDOWS[-1], True)]:
                count = min(queries, 20 if window == 1 else queries)
                own = seconds(lambda a=(ts, size, count, window, areas): our_sweep(*a)) / count
                cells.append(f"{own * 1e6:7.1f} ({theirs / queries / own:4.3g})")
            print(
                f"{name:28s}{size:6d}  {default * 1e6:7.0f} {theirs / queries * 1e6:8.0f} " + " ".join(cells),
                flush=True,
            )


def peak_of_ours(steps: int) -> float:
    """Bytes that a sweep by windows takes beyond what the process had."""
    ts = torch.linspace(0, 100, STEPS + 1, dtype=torch.float64)
    return _peak(lambda: our_sweep(ts, STATE, steps, WINDOW), lambda: our_sweep(ts, 1, WINDOW, WINDOW))


def peak_of_torchsde(steps: int) -> float:
    """The same for torchsde; its cache holds 45 intervals unless it is told otherwise."""
    ts = torch.linspace(0, 100, STEPS + 1, dtype=torch.float64)
    return _peak(lambda: torchsde_sweep(ts, STATE, steps), lambda: torchsde_sweep(ts, 1, 3))


def peak_of_our_solve(steps: int) -> float:
    """Of a whole solve of an Ornstein-Uhlenbeck process, the last state kept."""
    ts = torch.linspace(0, 100, STEPS + 1, dtype=torch.float64)
    term = ps.SDE(lambda t, y: -y, lambda t, y: torch.full_like(y, 0.5), "additive")

    def solve(steps: int, size: int) -> None:
        y0 = torch.ones(size, dtype=torch.float64)
        ps.solve(term, y0, ts[: steps + 1], integrator=ps.EulerMaruyama(), window=WINDOW, tol=1e-3, save="last")

    return _peak(lambda: solve(steps, STATE), lambda: solve(WINDOW, 1))


class Theirs(torch.nn.Module):
    """The same equation as torchsde calls it."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, y):
        return -y

    def g(self, t, y):
        return torch.full_like(y, 0.5)


def peak_of_their_solve(steps: int) -> float:
    """The same by torchsde's Euler, which holds one step."""
    dt = 100 / STEPS

    def solve(steps: int, size: int) -> None:
        y0 = torch.ones(1, size, dtype=torch.float64)
        torchsde.sdeint(Theirs(), y0, torch.tensor([0.0, steps * dt]), method="euler", dt=dt)

    return _peak(lambda: solve(steps, STATE), lambda: solve(3, 1))


def _peak(run: Callable[[], None], before: Callable[[], None]) -> float:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    before()
    Path("/proc/self/clear_refs").write_text("5")  # else the peak is that of the process it was forked from
    start = _highest()
    run()
    return _highest() - start


def _highest() -> float:
    """The largest resident set since the last reset, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def memory(counts: Sequence[int]) -> None:
    """Peaks over the storage of a window, by how many steps of the grid are swept, and solved."""
    storage = WINDOW * STATE * 8
    print(
        f"\npeak memory over a window's {storage / 1e6:.0f} MB, grid of {STEPS} steps, state {STATE}, window {WINDOW}"
    )
    kinds = {"noise alone": (peak_of_ours, peak_of_torchsde), "solve": (peak_of_our_solve, peak_of_their_solve)}
    for name, functions in kinds.items():
        for steps in counts:
            print(f"{name}, {steps:6d} steps: picardsolve", _alone(functions[0], steps, storage), end=", torchsde ")
            print(_alone(functions[1], steps, storage), flush=True)


def _alone(peak: Callable[[int], float], steps: int, storage: int) -> str:
    """In a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        try:
            return f"{pool.apply(peak, (steps,)) / storage:.2f}"
        except RecursionError:  # of torchsde's tree, which is as deep as it was asked for
            return "RecursionError"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    steps = [int(argument) for argument in sys.argv[1:]]
    if not steps:
        large()
        sweeps()
    memory(steps or (200, 1000))
