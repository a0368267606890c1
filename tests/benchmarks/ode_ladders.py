"""The cheapest tolerance of a half-decade ladder that reaches an error, of a solver on a problem."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from ode_solvers import Run, Solver
from problems import Problem

LOOSEST, TIGHTEST = 4, 27  # rungs: tolerances 10 ** -(rung / 2), 1e-2 to 3e-14
REPEATS = 3
LONG = 0.5  # seconds: of a peer's solve as long as this the first time counts


@dataclass
class Ladder:
    """A solver's runs on a problem.

    Attributes:
        solver: which.
        problem: which.
        most: calls beyond which a solve is given up.
        runs: by rung.
    """

    solver: Solver
    problem: Problem
    most: float = np.inf
    runs: dict[int, Run] = field(default_factory=dict)

    def run(self, rung: int) -> Run:
        """At a rung, once."""
        known = self.runs.get(rung)
        if known is None or (known.failure.startswith("TooMany") and known.calls < self.most):
            self.runs[rung] = self.solver.run(self.problem, 10 ** (-rung / 2), self.most)
        return self.runs[rung]

    def climb(self, last: int = TIGHTEST, stride: int = 1) -> None:
        """All rungs, or every so many."""
        for rung in range(LOOSEST, last + 1, stride):
            self.run(rung)

    def best(self, target: float) -> int | None:
        """Of the rungs that were tried, the one with the fewest calls."""
        reach = [rung for rung, run in self.runs.items() if run.error <= target]
        return min(reach, key=lambda rung: (self.runs[rung].calls, self.runs[rung].evaluations, rung), default=None)

    def search(self, target: float, start: int) -> int | None:
        """The loosest rung from which on the target is reached; None where calls would exceed ``most``."""
        rung = min(max(start, LOOSEST), TIGHTEST)
        if self.run(rung).error <= target:
            while rung > LOOSEST and self.run(rung - 1).error <= target:
                rung -= 1
            return rung
        while rung < TIGHTEST and self.run(rung).calls <= self.most and not self._hopeless(rung, target):
            rung += 1
            if self.run(rung).error <= target:
                return rung
        return None

    def _hopeless(self, rung: int, target: float) -> bool:
        """Whether the calls that the method's order foresees are far too many."""
        run = self.runs[rung]
        foreseen = run.calls * (run.error / target) ** (1 / (self.solver.order + 1))
        return bool(np.isfinite(foreseen)) and foreseen > 1.5 * self.most

    def again(self, rung: int) -> None:
        """Time a rung once more."""
        run = self.runs[rung]
        self.runs[rung] = run.better(self.solver.run(self.problem, run.tolerance))


def guess(ladder: Ladder, target: float, of_target: int) -> int:
    """Where to begin: by the run whose error is nearest to the target."""
    known = [(rung, run.error) for rung, run in ladder.runs.items() if 0 < run.error < np.inf]
    if not known:
        return of_target
    rung, error = min(known, key=lambda pair: abs(np.log(pair[1] / target)))
    return rung + round(2 * float(np.log10(error / target)))


def retime(chosen: Sequence[tuple[Ladder, int]]) -> None:
    """Best times, the solvers taking turns."""
    again = [(ladder, rung) for ladder, rung in chosen if ladder.runs[rung].seconds < LONG or not ladder.solver.order]
    for _ in range(REPEATS - 1):
        for ladder, rung in again:
            ladder.again(rung)
