"""How long a peer takes for an error: its runs at one tolerance after the other, and what lies between them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from batch_cases import Case
from batch_solvers import Run, Solver

RUNGS = tuple(float(f"1e-{digits}") for digits in range(1, 14))


@dataclass
class Ladder:
    """A peer's runs on a batch. A peer's steps do not depend on the clock, so errors are found once.

    Attributes:
        solver: which.
        case: which.
        gradients: whether they are wanted.
        limit: seconds, beyond which a solve is given up.
        runs: by tolerance.
    """

    solver: Solver
    case: Case
    gradients: bool
    limit: float
    runs: dict[float, Run] = field(default_factory=dict)

    @property
    def good(self) -> list[Run]:
        """Those with a result, the loosest first."""
        return [
            self.runs[tolerance] for tolerance in sorted(self.runs, reverse=True) if not self.runs[tolerance].failure
        ]

    def climb(self, error: float, tolerances: tuple[float, ...]) -> None:
        """Run from the loosest tolerance to one that reaches the error, and to these tolerances."""
        finest = torch.finfo(self.case.dtype).eps / 2
        for rung in sorted((rung for rung in {*RUNGS, *tolerances} if rung > finest), reverse=True):
            if any(run.given_up for run in self.runs.values()):
                return
            if rung < min(tolerances) and any(run.off <= error for run in self.good):
                return
            if rung not in self.runs:
                self.runs[rung] = self.solver.run(self.case, rung, self.gradients, 0.0, self.limit)

    def around(self, error: float) -> tuple[Run, ...]:
        """The loosest run that reaches the error, and the one before it; the last alone where none does."""
        good = self.good
        first = next((i for i, run in enumerate(good) if run.off <= error), None)
        return tuple(good[-1:] if first is None else good[max(first - 1, 0) : first + 1])

    def seconds(self, error: float, timed: Mapping[float, Run]) -> tuple[float, bool]:
        """How long it takes for the error, from times by tolerance; and whether it gets there: less is known if not."""
        runs = self.around(error)
        measured = [timed[run.tolerance] for run in runs]
        if not runs or any(run.failure and not run.too_long for run in measured):
            return math.nan, False
        times, gets_there = [run.seconds for run in measured], not any(run.failure for run in measured)
        if len(runs) == 1:
            return times[0], gets_there and runs[0].off <= error
        before, after = (math.log(max(run.off, 1e-17)) for run in runs)
        part = min(max((before - math.log(max(error, 1e-17))) / (before - after), 0.0), 1.0)
        return times[0] ** (1 - part) * times[1] ** part, gets_there
