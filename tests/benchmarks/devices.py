"""Two processes on two cores, and two copies in one process, against one process on one core.

    python tests/benchmarks/devices.py

A drift whose time is its rows': 32 of them take 50 ms or more on one core. Each line is the shortest of several solves,
with what `theory.wall_clock` says from the drift's own times. The last lines are what sharing itself costs, of a drift
that sleeps 50 ms whatever its rows: a round, by the difference of two solves of which one has more rounds; and the rest
of a solve, in which ranks compare what they run with and get the solution.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

import picardsolve as ps

sys.path.insert(0, str(Path(__file__).parents[1]))
import ranks

WIDTH, STEPS, SIZE, REPEATS = 32, 256, 512, 5
AIM, ROUND = 0.050, 0.050  # seconds of the drift for all rows, and of the drift that sleeps


class Network(torch.nn.Module):
    """Residual layers, repeated until the rows of a window take long enough."""

    def __init__(self, depth):
        super().__init__()
        gen = torch.Generator().manual_seed(0)
        self.depth = depth
        self.weight = torch.nn.Parameter(torch.randn(SIZE, SIZE, generator=gen) / SIZE**0.5, requires_grad=False)

    def forward(self, t, y):
        x = y.repeat_interleave(16, 0)  # as the tokens of one state
        for _ in range(self.depth):
            x = x + 0.1 * torch.tanh(x @ self.weight)
        return -x.unflatten(0, (-1, 16)).mean(1)


class Sleeps(torch.nn.Module):
    """A drift of 50 ms for any number of rows."""

    def forward(self, t, y):
        time.sleep(ROUND)
        return -y


def solved(drift, steps=STEPS, **given):
    y, ts = torch.linspace(0, 1, SIZE), ps.grids.uniform(0, 1, steps)
    with torch.no_grad():
        return ps.solve(ps.ODE(drift), y, ts, integrator=ps.Euler(), window=WIDTH, tol=1e-4, **given)


def shortest(drift, repeats=REPEATS, **given):
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        sol = solved(drift, **given)
        times.append(time.perf_counter() - began)
    return min(times), sol.stats.rounds, sol.ys


def seconds_of(drift, rows, repeats=7):
    y, t, times = torch.linspace(0, 1, SIZE).expand(rows, -1), torch.zeros(rows, 1), []
    for _ in range(repeats):
        began = time.perf_counter()
        drift(t, y)
        times.append(time.perf_counter() - began)
    return min(times)


def over_ranks(mesh, depth):
    """On every rank: seconds and rounds with the mesh; then what sharing costs, see `costs`."""
    seconds, rounds, ys = shortest(Network(depth), mesh=mesh)
    dist.barrier()
    return seconds, rounds, ys, *costs(mesh=mesh)


def costs(**given):
    """Seconds that sharing adds to a round of the drift that sleeps, and to a solve beside its rounds."""

    def line(**given):
        (short, few, _), (long, many, _) = (shortest(Sleeps(), 3, steps=steps, **given) for steps in (64, 512))
        a_round = (long - short) / (many - few)
        return a_round, short - few * a_round

    (alone, beside), (shared, more) = line(), line(**given)
    return shared - alone, more - beside


def main():
    torch.set_num_threads(1)
    depth = 1
    while seconds_of(Network(depth), WIDTH, 3) < AIM:
        depth += 1
    latency = {rows: seconds_of(Network(depth), rows) for rows in (1, WIDTH // 4, WIDTH // 2, WIDTH)}
    print(f"drift: {1e3 * latency[WIDTH]:.1f} ms for {WIDTH} rows, {1e3 * latency[1]:.1f} ms for one")
    one, rounds, ys = shortest(Network(depth))
    threads, _, by_threads = shortest(Network(depth), devices=["cpu", "cpu"])
    with tempfile.TemporaryDirectory() as folder:
        outcomes = ranks.run(over_ranks, folder, depth, limit=600, patience=300)
    (two, _, by_ranks, *of_ranks), error, _ = outcomes[0]
    assert error is None, error
    for name, seconds, found, devices in (
        ("one process", one, ys, 1),
        ("two threads", threads, by_threads, 2),
        ("two processes", two, by_ranks, 2),
    ):
        said = ps.theory.wall_clock(
            STEPS, rounds, WIDTH, latency, devices, bytes_per_row=4 * SIZE, overhead=1e-3, message=5e-5
        )
        off = float((found - ys).abs().max())
        print(
            f"{name:14s} {seconds:7.3f} s   {one / seconds:5.2f} times   model {said.seconds:7.3f} s   "
            f"largest difference {off:.1e}"
        )
    for name, (a_round, once) in (("threads", costs(devices=["cpu", "cpu"])), ("processes", of_ranks)):
        print(
            f"sharing by {name} costs {100 * a_round / ROUND:.1f} % of a round of {1e3 * ROUND:.0f} ms, and "
            f"{1e3 * once:.1f} ms once a solve"
        )


if __name__ == "__main__":
    main()
