"""Adaptive collocation and its peers at matched measured error, on the problems of ``tests/problems.py``.

``python tests/benchmarks/odes.py`` prints the tables of ``docs/odes_benchmarks.md`` and draws its pictures; with
``--quick`` of a few problems; with names, such as ``lv pleiades``, of these; with ``--cpu`` it measures the time of
the process instead of the wall clock's, for a machine that is busy. Peers that are not installed are left out.
"""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import ode_solvers
import torch
from ode_ladders import Ladder, guess, retime
from ode_pictures import draw
from ode_solvers import Run, Solver, installed, ours, scipy_solver
from problems import PROBLEMS, REFERENCES, Problem

import picardsolve as ps

TARGETS = (1e-5, 1e-9, 1e-12)
CALIBRATED = range(6, 25)  # rungs: tolerances 1e-3 to 1e-12
QUICK = ("lv", "lorenz_5", "kepler_0.3_ten", "kuramoto", "robertson_40")
PICTURED = ("lv", "kepler_0.7_ten", "lorenz_5", "pleiades", "kuramoto", "fitzhugh_nagumo")
EVERYWHERE = ("scipy", "torchdiffeq")  # other peers solve what is pictured only
GIVEN_UP = 30_000  # calls


@dataclass
class Compared:
    """What was found for a problem and a target: of each solver by name the run, or why there is none."""

    problem: Problem
    target: float
    runs: dict[str, Run | None] = field(default_factory=dict)

    @property
    def ours(self) -> Run | None:
        return self.runs["picardsolve"]

    def calls(self, name: str = "picardsolve") -> float:
        """Times fewer calls than DOP853, of us; NaN where either did not get there."""
        mine, peer = self.runs.get(name), self.runs.get("scipy DOP853")
        return peer.calls / mine.calls if mine and peer else np.nan

    def wall(self, name: str = "picardsolve") -> float:
        """Times faster than the best of torchdiffeq."""
        peers = [run.seconds for peer, run in self.runs.items() if run and peer.startswith("torchdiffeq")]
        mine = self.runs.get(name)
        return min(peers) / mine.seconds if mine and peers else np.nan


def possible(problem: Problem) -> tuple[float, ...]:
    """The targets that the stored reference can tell apart."""
    return tuple(target for target in TARGETS if 3 * problem.accuracy <= target)


def compare(problem: Problem, solvers: Sequence[Solver], mine: Sequence[Solver]) -> tuple[list[Compared], list[Ladder]]:
    """Climb the ladders, choose, and time what was chosen."""
    ladders = {solver.name: Ladder(solver, problem, GIVEN_UP) for solver in (*mine, *solvers)}
    whole = [ladders[solver.name] for solver in mine]
    for ladder in whole:
        ladder.climb(CALIBRATED[-1], 2 if ladder.solver.name == SECOND else 1)
    found = []
    for target in possible(problem):
        chosen: dict[str, int | None] = {}
        for ladder in whole:
            if ladder.best(target) is None:
                ladder.climb()
            chosen[ladder.solver.name] = ladder.best(target)
        for name, ladder in ladders.items():
            if name not in chosen:
                chosen[name] = search(ladder, target, chosen, ladders)
            if "DOP853" in name and not any(rung is not None for rung in chosen.values()):
                break  # rounding forbids it
        retime([(ladders[name], rung) for name, rung in chosen.items() if rung is not None])
        runs = {name: None if rung is None else ladders[name].runs[rung] for name, rung in chosen.items()}
        found.append(Compared(problem, target, runs))
    return found, list(ladders.values())


def search(ladder: Ladder, target: float, chosen: dict[str, int | None], ladders: dict[str, Ladder]) -> int | None:
    """Of a peer whose runs take too long for all rungs to be tried."""
    if ladder.solver.order < 8:  # given up once dopri8 is better
        best = chosen.get("torchdiffeq dopri8")
        if target < 1e-9 or best is None:
            return None
        ladder.most = ladders["torchdiffeq dopri8"].runs[best].calls
    begin = chosen.get("scipy DOP853")
    of_target = round(-2 * float(np.log10(target))) if begin is None else begin
    return ladder.search(target, guess(ladder, target, of_target))


# ---- tables


def said(run: Run | None) -> str:
    if run is None:
        return f"{'-':>29s}"
    return f"{run.tolerance:6.0e} {run.calls:6d} {run.error:7.0e}{run.seconds * 1e3:8.1f}"


def said_of_ours(run: Run | None) -> str:
    if run is None:
        return f"{'-':58s}"
    return (
        f"{run.iteration[:6]:6s} {run.tolerance:6.0e} {run.calls:6d} {run.evaluations:7d} {run.width:5d} "
        f"{run.error:7.0e} {run.seconds * 1e3:7.1f} {run.beyond * 1e6:6.0f}"
    )


def rows(found: Sequence[Compared], peers: Sequence[Solver]) -> None:
    """Those of a problem."""
    for case in found:
        for name in [name for name in case.runs if name.startswith("picardsolve")]:
            where = f"{case.problem.name + (' (2nd order)' if 'second' in name else ''):28s} {len(case.problem.y0):3d}"
            ratios = f"{case.calls(name):5.0f}x {case.wall(name):6.1f}x"
            others = " | ".join(said(case.runs.get(peer.name)) for peer in peers)
            print(f"{where} {case.target:5.0e} | {said_of_ours(case.runs[name])} | {ratios} | {others}", flush=True)


def figures(cases: Iterable[Compared], name: str = "picardsolve") -> str:
    """Median and worst of both ratios; of how many; and how often we do not get there where a peer does."""
    cases = [case for case in cases if name in case.runs]
    calls, wall = ([value for value in values if np.isfinite(value)] for values in
                   ([case.calls(name) for case in cases], [case.wall(name) for case in cases]))  # fmt: skip
    missed = [case.problem.name for case in cases if not case.runs[name] and any(case.runs.values())]
    if not calls and not wall:
        return f"| | | | | {len(missed)} of {len(cases)} |"
    shown = [f"{times(median(values))}, {times(min(values))}" if values else "" for values in (calls, wall)]
    fast = [value for value in wall if value < 1]
    return f"| {shown[0]} | {shown[1]} | {max(len(calls), len(wall))} | {len(fast)} | {', '.join(missed)} |"


def times(value: float) -> str:
    return f"{value:.0f}x" if value >= 10 else f"{value:.1f}x"


def summary(found: Sequence[Compared]) -> None:
    """The figures that the issue asks for."""
    print(
        "\n| class | target | calls DOP853 / our rounds: median, worst | wall clock best torchdiffeq / ours: "
        "median, worst | problems | slower than torchdiffeq | not reached by us |\n|---|---|---|---|---|---|---|"
    )
    classes: tuple[tuple[str, Callable[[Problem], bool]], ...] = (
        ("d <= 10", lambda problem: len(problem.y0) <= 10),
        ("10 < d <= 300", lambda problem: len(problem.y0) > 10),
    )
    for unseen in (False, True):
        for title, holds in classes:
            for target in TARGETS:
                cases = [c for c in found if c.target == target and holds(c.problem) and c.problem.unseen == unseen]
                if cases:
                    print(f"| {title}{', unseen' if unseen else ''} | {target:.0e} {figures(cases)}")
    for target in TARGETS:
        cases = [case for case in found if case.target == target and case.problem.acceleration]
        if cases:
            print(f"| as SecondOrderODE | {target:.0e} {figures(cases, SECOND)}")


SECOND = "picardsolve second order"


def calibration(ladders: Iterable[Ladder]) -> None:
    """Of us, over problems and tolerances: how often, and how far, the error is within the tolerance."""
    mine = [ladder for ladder in ladders if ladder.solver.name == "picardsolve"]
    tried = [(ladder.problem.name, ladder.runs[rung]) for ladder in mine for rung in CALIBRATED if rung in ladder.runs]
    solved = [(name, run) for name, run in tried if not run.failure]
    if not solved:
        return
    good = sum(run.within <= 10 for _, run in solved)
    over = median(1 / max(run.within, 1e-300) for _, run in solved)
    print(
        f"| calibration: error <= 10 (atol + rtol abs(y)) | 1e-3 to 1e-12 | {good / len(solved):.1%} of {len(solved)} "
        f"solves; {len(tried) - len(solved)} refused; median over-solving {over:.0f}x |"
    )
    for name, run in sorted(solved, key=lambda pair: -pair[1].within)[: len(solved) - good][:20]:
        print(f"|   beyond: {name} | {run.tolerance:.0e} | {run.within:.0f} tolerances, {run.iteration} |")
    refused: dict[tuple[str, str], list[str]] = {}
    for name, run in tried:
        if run.failure:
            refused.setdefault((name, run.failure.split(";")[0][:100]), []).append(f"{run.tolerance:.0e}")
    for (name, why), tolerances in refused.items():
        print(f"|   refused: {name} | {', '.join(tolerances)} | {why} |")


def particular(found: Sequence[Compared]) -> None:
    """Ten Kepler orbits."""
    for case in found:
        if case.problem.name in ("kepler_0.3_ten", "kepler_0.7_ten") and case.target == 1e-9:
            counts = [str(run.calls) if run else "-" for name, run in case.runs.items() if name.startswith("picard")]
            print(f"| {case.problem.name} | {case.target:.0e} | {', as SecondOrderODE '.join(counts)} rounds |")


def compiling(peers: Sequence[Solver]) -> None:
    """What a first solve by diffrax costs."""
    for peer in peers:
        if "diffrax" in peer.name and peer.preparing:
            times = peer.preparing.values()
            print(f"| {peer.name}: compiling a problem, median, worst | | {median(times):.1f} s, {max(times):.1f} s |")


def cost_of_a_round() -> None:
    """What a round takes beside the drift."""
    for name, iteration in (("lorenz_5", ps.Picard()), ("lorenz_5", ps.Newton()), ("kuramoto", ps.Picard())):
        if name in REFERENCES:
            solver = ours(iteration=iteration)
            runs = [solver.run(PROBLEMS[name], 1e-9) for _ in range(10)]
            best = min(run.beyond for run in runs)
            title = f"{type(iteration).__name__}, d = {len(PROBLEMS[name].y0)} ({name}, {runs[0].calls} rounds)"
            print(f"| cost of a round beyond the drift: {title} | 1e-9 | {best * 1e6:.0f} us |")


def stiff(names: Iterable[str]) -> None:
    """Against scipy's Radau."""
    heads = "problem", "d", "target", "rounds", "tol", "error", "ms", "iteration", "Radau nfev", "tol", "error", "ms"
    print(
        "\nStiff problems. Of us all half decades from 1e-3 to 1e-12 were tried: solved, raised, and wrong, that is"
        "\nreturned with an error of more than 100 tolerances\n\n"
        f"| {' | '.join(heads)} | nfev / rounds | solved, raised, wrong |\n{'|---' * 14}|"
    )
    for problem in (PROBLEMS[name] for name in names):
        mine, peer = Ladder(ours(), problem), Ladder(scipy_solver("Radau"), problem, GIVEN_UP)
        for rung in CALIBRATED:
            mine.run(rung)
        raised = sum(bool(run.failure) for run in mine.runs.values())
        wrong = [run for run in mine.runs.values() if not run.failure and run.within > 100]
        counts = f"{len(mine.runs) - raised}, {raised}, {len(wrong)}"
        for target in possible(problem)[:2]:
            own, rung = mine.best(target), peer.search(target, round(-2 * np.log10(target)) - 2)
            retime([(ladder, at) for ladder, at in ((mine, own), (peer, rung)) if at is not None])
            a, b = None if own is None else mine.runs[own], None if rung is None else peer.runs[rung]
            left = (
                f"{a.calls} | {a.tolerance:.0e} | {a.error:.0e} | {a.seconds * 1e3:.0f} | {a.iteration}"
                if a
                else "| | | | "
            )
            right = f"{b.calls} | {b.tolerance:.0e} | {b.error:.0e} | {b.seconds * 1e3:.0f}" if b else "| | | "
            ratio = f"{b.calls / a.calls:.0f}x" if a and b else ""
            print(
                f"| {problem.name} | {len(problem.y0)} | {target:.0e} | {left} | {right} | {ratio} | {counts} |",
                flush=True,
            )
        for run in wrong:
            print(f"|   wrong: tolerance {run.tolerance:.0e}, error {run.error:.0e}, {run.within:.0f} tolerances |")
        for failure in sorted({run.failure for run in mine.runs.values() if run.failure})[:2]:
            print(f"|   raised: {failure} |")


# ---- all


def main(arguments: Sequence[str]) -> None:
    """Print the tables and draw the pictures."""
    torch.set_num_threads(1)
    if "--cpu" in arguments:
        ode_solvers.clock = time.process_time
    names = [name for name in arguments if not name.startswith("-")] or (QUICK if "--quick" in arguments else PROBLEMS)
    names = [name for name in names if name in REFERENCES]
    peers, missing = installed()
    if missing:
        print(f"not installed, and left out: {', '.join(missing)}")
    print_header(peers)
    found: list[Compared] = []
    ladders: list[Ladder] = []
    for problem in (PROBLEMS[name] for name in names):
        if not problem.stiff:
            mine = [ours(), *([ours(SECOND, cascade=True)] if problem.acceleration else [])]
            here = [peer for peer in peers if problem.name in PICTURED or peer.name.startswith(EVERYWHERE)]
            cases, climbed = compare(problem, here, mine)
            rows(cases, peers)
            found, ladders = found + cases, ladders + climbed
    summary(found)
    particular(found)
    compiling(peers)
    cost_of_a_round()
    calibration(ladders)
    stiff(name for name in names if PROBLEMS[name].stiff)
    if "--no-pictures" not in arguments:
        draw([ladder for ladder in ladders if ladder.problem.name in PICTURED])


def print_header(peers: Sequence[Solver]) -> None:
    """Of the table of problems."""
    ours_head = "iter   tol    rounds   evals width   error      ms us/rnd"
    peer_head = "   tol  calls   error      ms"
    print(f"{'':38s} | {'picardsolve':58s} | {'ratios':14s} | " + " | ".join(f"{p.name:29s}" for p in peers))
    print(f"{'problem':28s}   d target | {ours_head:58s} |  calls    wall | " + " | ".join(peer_head for _ in peers))


if __name__ == "__main__":
    main(sys.argv[1:])
