"""Rounds of published methods and of ours at matched measured error, on chains whose published counts are known.

``python tests/benchmarks/methods.py`` prints the table of ``docs/benchmarks.md``; names of chains, such as
"digits", may follow. What is chosen for a method, its tolerance or how many iterations, is chosen on seeds that are not
among those that figures are printed of. Of our combinations those are left out that are another row by another name:
Picard with FrozenSample and stop="increment" is ParaSolver, and over a full window the guesses are alike.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from chains import Measured, Samples, measured, rounds_until, samples

import picardsolve as ps

SEEDS = 16
TOLERANCES = (1, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002)
ITERATIONS = (ps.Picard(), ps.Secant(), ps.MultiSecant())


@dataclass(frozen=True)
class Case:
    """A chain, the window that it is solved in, and the median error that is allowed.

    Attributes:
        published: what has been published for it.
        aim: what we aim at.
        seeds: how many to choose on, and as many others to print figures of.
        slow: choose on half of them, and leave out what is known not to suit the chain.
    """

    model: str
    sampler: str
    steps: int
    window: int
    published: str = ""
    aim: str = ""
    limit: float = 1e-2
    seeds: int = SEEDS
    slow: bool = False

    @property
    def title(self) -> str:
        window = "full window" if self.full else f"width {self.window}"
        return f"{self.model} {self.sampler}-{self.steps}, {window}, median error <= {self.limit:g}"

    @property
    def choosing(self) -> tuple[int, ...]:
        return tuple(range(0, self.seeds, 2 if self.slow else 1))

    @property
    def held_out(self) -> tuple[int, ...]:
        return tuple(range(self.seeds, 2 * self.seeds))

    @property
    def noisy(self) -> bool:
        return self.sampler == "DDPM"

    @property
    def full(self) -> bool:
        return self.window == self.steps


CASES = (
    Case("mixture", "DDIM", 100, 100, "ParaTAA 7, worst 15", "6, worst 11"),
    Case("mixture", "DDPM", 100, 100, "ParaTAA 14 to 17", "8, worst 10"),
    Case("mixture", "DDPM", 1000, 40, "ParaDiGMS 44 to 65, 2.0 N; ParaSolver 32, 1.07 N", "29, 1.05 N", seeds=8),
    Case("mixture", "DDPM", 1000, 200, "ParaDiGMS 20", "11, 1.5 N", seeds=8, slow=True),
    Case("mixture", "DDIM", 50, 8, "CHORDS 17", "12", limit=3.8e-3),
    Case("mixture", "DDIM", 50, 4, "CHORDS 36", "15"),
    Case("mixture", "DDIM", 25, 5, "SRDS 14", "10", limit=3.8e-3),
    Case("digits", "DDPM", 100, 100, "Picard 26, ParaTAA 13 to 15", "9, worst 11", seeds=8, slow=True),
    Case("digits", "DDIM", 100, 8, "Picard 23", "14, 1.1 N", seeds=8),
    Case("digits", "DDIM", 100, 16, "Picard 16", "9, 1.1 N", seeds=8),
    Case("digits", "DDPM", 1000, 100, "Picard 50, 4.1 N", "22, worst 30, 2 N", seeds=8, slow=True),
)


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        name: for the table.
        settings: from cheap to accurate, and each one's name.
        likely: the one to try first.
    """

    name: str
    settings: tuple[tuple[str, dict[str, Any]], ...]
    likely: int = 0


def by_tolerance(name: str, **parts: Any) -> Method:
    likely = TOLERANCES.index(0.1) if parts["stop"] == "error" else 0
    return Method(name, tuple((f"tol {tol:g}", {**parts, "tol": tol}) for tol in TOLERANCES), likely)


def published(case: Case) -> Iterator[Method]:
    """Methods of others; those in parallel over blocks stop after so many iterations, as published."""
    yield by_tolerance("ParaDiGMS", **ps.presets.paradigms())
    if case.noisy:
        yield by_tolerance("ParaSolver", **ps.presets.parasolver())
    if case.full:
        yield by_tolerance("ParaTAA", **ps.presets.parataa())
        if not case.slow:
            yield by_tolerance("DEQ", **ps.presets.deq())
    if case.noisy:
        return
    counts = range(1, case.steps)
    srds = tuple((f"{k} iter.", {**ps.presets.srds(iterations=k), "tol": 0}) for k in counts[: case.window])
    yield Method("SRDS", srds)
    cores = max(cores for cores in (4, 6, 8) if cores <= case.window)
    chords = tuple((f"{k} iter.", {**ps.presets.chords(case.steps, cores, k), "tol": 0}) for k in counts[:cores])
    yield Method(f"CHORDS, {cores} cores", chords)


def ours(case: Case) -> Iterator[Method]:
    """All combinations of what can be chosen."""
    guesses = (ps.FrozenSample(), ps.FrozenOutput())[: 1 if case.full or case.slow else 2]
    for guess, iteration, stop in product(guesses, ITERATIONS[case.slow :], ("error", "increment")):
        parts = {"iteration": iteration, "guess": guess, "stop": stop}
        if not (case.noisy and ps.presets.parasolver().items() >= parts.items()):
            yield by_tolerance(f"{type(iteration).__name__}, {type(guess).__name__}, {stop}", **parts)


def chosen(method: Method, of: Samples, window: int, limit: float) -> tuple[str, dict[str, Any]] | None:
    """The cheapest setting whose median error is within the limit, those next to each other being tried."""

    def within(index: int) -> bool:
        got = measured(of, window=window, **method.settings[index][1])
        return statistics.median(got.error) <= limit

    at = method.likely
    if within(at):
        while at > 0 and within(at - 1):
            at -= 1
        return method.settings[at]
    return next((method.settings[index] for index in range(at + 1, len(method.settings)) if within(index)), None)


def compare(case: Case) -> None:
    """The rows of one chain."""
    print(f"\n{case.title}; published: {case.published}; aim: {case.aim}")
    given = case.model, case.sampler
    choosing, of = (samples(*given, seeds, case.steps) for seeds in (case.choosing, case.held_out))
    oracle = {}
    for method in (*published(case), *ours(case)):
        choice = chosen(method, choosing, case.window, case.limit)
        if choice is None:
            print(f"{method.name:36s} no setting")
            continue
        name, setting = choice
        got, stopped = measured(of, window=case.window, **setting), ""
        if case.full and not isinstance(setting["iteration"], ps.Parareal):
            parts = setting["iteration"], setting["guess"]
            if parts not in oracle:
                oracle[parts] = rounds_until(of, case.limit, *parts)
            stopped = f"{statistics.median(oracle[parts]):6.1f} / {max(oracle[parts])}"
        print(f"{method.name:36s} {name:10s} {line(got, case.limit)}  {stopped}", flush=True)


def line(got: Measured, limit: float = torch.inf) -> str:
    """Median / worst of all that was measured; a star where the median error is above the limit."""
    rounds, work, error = (statistics.median(values) for values in (got.rounds, got.work, got.error))
    return (
        f"{rounds:5.1f} / {max(got.rounds):3d}  {work:5.2f} / {max(got.work):5.2f}  {got.width:5d}  "
        f"{error:.1e} / {max(got.error):.1e}{'*' if error > limit else ' '}"
    )


def as_published() -> None:
    """What the presets take at their published settings."""
    print("\nmixture, at published settings (published or re-measured elsewhere)")
    cases = [
        ("DDPM", 1000, 40, "ParaDiGMS, tol 0.1 (62)", ps.presets.paradigms()),
        ("DDPM", 1000, 40, "ParaSolver, tol 0.1 (35)", ps.presets.parasolver()),
        ("DDIM", 100, 10, "SRDS, 1 iteration (19)", ps.presets.srds(iterations=1) | {"tol": 0}),
        ("DDIM", 100, 10, "SRDS, 2 iterations (29)", ps.presets.srds(iterations=2) | {"tol": 0}),
        ("DDIM", 50, 8, "CHORDS, 8 cores, first (17)", ps.presets.chords(50, 8, 1) | {"tol": 0}),
        ("DDIM", 50, 8, "CHORDS, 8 cores, second (24)", ps.presets.chords(50, 8, 2) | {"tol": 0}),
    ]
    for sampler, steps, window, name, setting in cases:
        of = samples("mixture", sampler, tuple(range(8)), steps)
        print(f"{f'{sampler}-{steps}':11s}{name:36s} {line(measured(of, window=window, **setting))}", flush=True)
    oracle = (("ParaTAA (7, worst 15)", ps.presets.parataa(), 8), ("DEER (3, worst 7)", ps.presets.deer(), 4))
    for name, preset, seeds in oracle:
        of = samples("mixture", "DDIM", tuple(range(seeds)), 100)
        got = rounds_until(of, 1e-2, preset["iteration"], preset["guess"])
        print(
            f"{'DDIM-100':11s}{name:36s} {statistics.median(got):5.1f} / {max(got):3d}, {seeds} seeds, oracle",
            flush=True,
        )


def main(names: Sequence[str]) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    print(
        "Rounds at matched measured error. A method's tolerance (1, .5, .3, .2, .1 and so on to .002) or number of\n"
        "iterations is the cheapest whose median error on one set of seeds is within the limit; figures are of other\n"
        "seeds: median / worst. A star: their median error is above the limit. Error: RMS per dimension of the last\n"
        "state to the sequential one. Oracle: rounds until the error stays within the limit.\n\n"
        f"{'method':36s} {'setting':10s} {'rounds':11s}  evaluations/N  width  {'error':20s}  oracle"
    )
    for case in CASES:
        if all(name in case.title for name in names):
            compare(case)
    if not names:
        as_published()


if __name__ == "__main__":
    main(sys.argv[1:])
