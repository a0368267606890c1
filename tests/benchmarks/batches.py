"""Batches of samples: ours and torchdiffeq, torchode and scipy at the same measured error.

``python tests/benchmarks/batches.py`` takes hours on one core; ``--quick`` a part of it, under two minutes; others:
``--batch 128,512 --dim 2,32 --drift network --tolerances 1e-3 --modes forward``. ``--save part.json`` keeps what was
found; ``--show part.json other.json`` prints tables of what was kept, and runs nothing; ``--write`` puts the tables
into ``docs/odes_benchmarks.md`` and draws its picture. ``--help`` says the rest.
"""

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).parents[1]))

import batch_solvers
import torch
from batch_cases import BATCHES, DRIFTS, POWERS, SIZES, Case, cases
from batch_ladders import Ladder
from batch_solvers import Run, Solver, ours, peers
from batch_tables import print_all, write

LONG = 3.0  # seconds: of solves that take longer, or longer than the budget of repeats, the first time counts
MOST_REPEATS = 15
ACCURACY = 3.0  # errors are not compared below so many times that of the reference
MEMORY = 0.75  # of the machine's: what solves may take
DEAR = 1e-3  # seconds
Key: TypeAlias = tuple[str, float]  # a solver's name and a tolerance


@dataclass(frozen=True)
class Mode:
    """What is asked of the solvers.

    Attributes:
        gradients: of the loss, with respect to y0 and parameters.
        wait: seconds more a call.
        tolerances: rtol and atol.
    """

    gradients: bool
    wait: float
    tolerances: tuple[float, ...]


MODES = {
    "forward": Mode(False, 0.0, (1e-3, 1e-5, 1e-8)),
    "gradients": Mode(True, 0.0, (1e-3, 1e-5, 1e-8)),
    "1 ms more a call": Mode(False, DEAR, (1e-3, 1e-6)),
    "gradients and 1 ms more a call": Mode(True, DEAR, (1e-3, 1e-6)),
}
USUAL = tuple(MODES)[:3]
QUICK = {
    "batch": (1, 128),
    "dim": (2, 32),
    "modes": tuple(MODES)[:3:2],
    "tolerances": (1e-3, 1e-6),
    "solvers": ("ours", "ours as one system", "ours dopri5"),
    "peers": ("torchdiffeq dopri5", "torchdiffeq dopri8"),
    "limit": 2.0,
    "budget": 0.5,
}


@dataclass
class Bench:
    """All comparisons.

    Attributes:
        solvers: names of ours; none: all.
        peers: names of peers; none: all.
        limit: seconds, beyond which a solve is given up.
        budget: seconds that are spent on repeats of the solves of a batch.
        records: what was found, a dictionary for each of our solvers, batch and tolerance.
    """

    solvers: Sequence[str]
    peers: Sequence[str]
    limit: float
    budget: float
    records: list[dict[str, Any]] = field(default_factory=list)
    _given_up: dict[tuple, str] = field(default_factory=dict)
    _ladders: dict[tuple, Ladder] = field(default_factory=dict)

    def compare(self, case: Case, title: str, tolerances: Sequence[float]) -> None:
        """Ours at these tolerances, and peers at the errors that ours then have."""
        mode, mine = MODES[title], [each for each in ours()[0] if not self.solvers or each.name in self.solvers]
        chosen = tuple(tolerances) or mode.tolerances
        floor = ACCURACY * case.truth.accuracy
        found = {(solver.name, tol): self._first(solver, case, title, tol) for solver in mine for tol in chosen}
        good = [max(run.off, floor) for run in found.values() if not run.failure]
        ladders = [
            ladder for ladder in self._all_ladders(case, mode) if self._climbed(ladder, min(good, default=1), chosen)
        ]
        wanted = [(solver, tol) for solver in mine for tol in chosen if not found[solver.name, tol].failure]
        for ladder in ladders:
            rungs = {run.tolerance for error in good for run in ladder.around(error)} | {*chosen} & {*ladder.runs}
            wanted += [(ladder.solver, rung) for rung in sorted(rungs) if not ladder.runs[rung].failure]
        known = found if mode.wait else found | {(x.solver.name, tol): x.runs[tol] for x in ladders for tol in x.runs}
        timed = found | self._repeated(wanted, known, case, mode)
        for solver in mine:
            for tol in chosen:
                run = timed[solver.name, tol]
                self.records.append(
                    {"mode": title, "drift": case.drift, "size": case.size, "hidden": case.hidden, "batch": case.batch}
                    | {"dtype": str(case.dtype)[6:], "solver": solver.name}
                    | run.as_dict()
                    | {"peers": {ladder.solver.name: beside(ladder, run, floor, timed) for ladder in ladders}}
                )

    def _first(self, solver: Solver, case: Case, title: str, tol: float) -> Run:
        """A run of ours; none where one with fewer samples was given up."""
        key = title, case.drift, case.size, solver.name, tol
        if key in self._given_up:
            return Run(tol, failure=self._given_up[key])
        mode = MODES[title]
        run = solver.run(case, tol, mode.gradients, mode.wait, self.limit)
        if run.given_up:
            self._given_up[key] = f"{run.failure} with {case.batch} samples"
        return run

    def _all_ladders(self, case: Case, mode: Mode) -> list[Ladder]:
        there = []
        for solver in peers(mode.gradients)[0]:
            if case.batch <= solver.largest and (not self.peers or solver.name in self.peers):
                new = Ladder(solver, case, mode.gradients, self.limit)
                there.append(self._ladders.setdefault((case, mode.gradients, solver.name), new))
        return there

    def _climbed(self, ladder: Ladder, error: float, tolerances: tuple[float, ...]) -> bool:
        """Whether there are any runs, once it was climbed."""
        ladder.climb(error, tolerances)
        return bool(ladder.good)

    def _repeated(
        self, wanted: Sequence[tuple[Solver, float]], known: dict[Key, Run], case: Case, mode: Mode
    ) -> dict[Key, Run]:
        """Best times of solvers at tolerances, the solvers taking turns, from what is known."""

        def run(solver: Solver, tol: float) -> Run:
            return solver.run(case, tol, mode.gradients, mode.wait, self.limit)

        timed = {(solver.name, tol): known.get((solver.name, tol)) or run(solver, tol) for solver, tol in wanted}
        found = {pair: timed[pair[0].name, pair[1]] for pair in wanted}
        most = min(LONG, self.budget)
        short = {pair: first.seconds for pair, first in found.items() if not first.failure and first.seconds < most}
        for turn in range(min(max(int(self.budget / max(sum(short.values()), 1e-3)), 1), MOST_REPEATS)):
            for solver, tol in list(short)[:: -1 if turn % 2 else 1]:
                timed[solver.name, tol] = timed[solver.name, tol].again(run(solver, tol))
        return timed


def beside(ladder: Ladder, run: Run, floor: float, timed: dict[Key, Run]) -> dict[str, Any]:
    """Of a peer: seconds for the error of our run, whether it gets there, and its own run at our tolerance."""
    name = ladder.solver.name
    by_tolerance = {tol: each for (solver, tol), each in timed.items() if solver == name}
    at_error = ladder.seconds(max(run.off, floor), by_tolerance) if not run.failure else (float("nan"), False)
    same = by_tolerance.get(run.tolerance, ladder.runs.get(run.tolerance))
    return {"seconds": at_error[0], "reached": at_error[1], "same": same.as_dict() if same else None}


# ---- the command line


def names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def whole(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=whole, default=BATCHES, help=f"powers of two to {POWERS[-1]}")
    parser.add_argument("--dim", type=whole, default=SIZES, help=f"of {SIZES}")
    parser.add_argument("--drift", type=names, default=tuple(DRIFTS), help=f"of {', '.join(DRIFTS)}")
    parser.add_argument("--tolerances", type=numbers, default=(), help="by default those of each mode")
    parser.add_argument("--modes", type=names, default=USUAL, help=f"of {', '.join(MODES)}")
    parser.add_argument("--solvers", type=names, default=(), help="of ours; by default all")
    parser.add_argument("--peers", type=names, default=(), help="by default all")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds, beyond which a solve is given up")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of repeats, of a batch in a mode")
    parser.add_argument("--float32", action="store_true", help="states and parameters; references stay float64")
    parser.add_argument("--cpu", action="store_true", help="time of the process, for a machine that is busy")
    parser.add_argument("--quick", action="store_true", help="under two minutes")
    parser.add_argument("--save", type=Path, help="a file for what is found, kept up to date")
    parser.add_argument("--show", type=Path, nargs="+", help="files that were saved, instead of a run")
    parser.add_argument("--write", action="store_true", help="put the tables and the picture into docs")
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK)
    given = parser.parse_args()
    for value, known in (
        *((batch, POWERS) for batch in given.batch),
        *((size, SIZES) for size in given.dim),
        *((mode, MODES) for mode in given.modes),
        *((drift, DRIFTS) for drift in given.drift),
    ):
        if value not in known:
            raise SystemExit(f"{value}: expected one of {', '.join(map(str, known))}")
    return given


def bound_memory() -> None:
    """Solves that want more end with an error, and are listed."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(MEMORY * pages * size), hard))


def main() -> None:
    given = arguments()
    if given.show:
        parts = [json.loads(path.read_text()) for path in given.show]
        kept = {"about": parts[0]["about"], "records": [record for part in parts for record in part["records"]]}
        print_all(kept)
        if given.write:
            write(kept)
        return
    torch.set_num_threads(1)
    if given.cpu:
        batch_solvers.clock = time.process_time
    bound_memory()
    missing = sorted({*ours()[1], *peers(False)[1]})
    machine = f"{platform.machine()}, one thread, torch {torch.__version__}, load at the start {os.getloadavg()[0]:.1f}"
    measured = "time of the process" if given.cpu else "wall clock"
    about = f"{machine}, {measured}; missing: {', '.join(missing) or 'none'}; given up after {given.limit:g} s"
    print(about, flush=True)
    bench = Bench(given.solvers, given.peers, given.limit, given.budget)
    kept = {"about": about, "records": bench.records}
    for case in cases(given.drift, given.dim, given.batch, torch.float32 if given.float32 else torch.float64):
        for mode in given.modes:
            before = len(bench.records)
            bench.compare(case, mode, given.tolerances)
            print_all({"about": "", "records": bench.records[before:]}, summary_too=False)
            if given.save:
                given.save.write_text(json.dumps(kept))
    print_all(kept, details_too=False)
    if given.write:
        write(kept)


if __name__ == "__main__":
    main()
