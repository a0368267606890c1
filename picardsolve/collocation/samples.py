"""The samples of a batch: each marches by itself, all are evaluated in the same rounds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, TypeAlias

import numpy as np

from picardsolve.collocation.check import Check
from picardsolve.collocation.differences import Differences
from picardsolve.collocation.economy import newton_pays
from picardsolve.collocation.events import Reading, Watch
from picardsolve.collocation.march import March, Stuck
from picardsolve.collocation.method import Collocation
from picardsolve.collocation.nodes import nodes
from picardsolve.collocation.refinement import Refinement, Unreachable
from picardsolve.collocation.segments import Bounds
from picardsolve.collocation.sweeps import Newton, Picard, Sweep
from picardsolve.problem.state import LARGEST_DENSE

Choice: TypeAlias = Literal["picard", "secant", "panels", "newton"]

_DENSE = 240  # unknowns of a segment's Newton system that pay on a CPU whatever the drift costs
_ROWS = 20_000  # of a round of a march that is guided
_IN_FLIGHT = 12  # segments, usually
_NUMBERS = 2**20  # at the nodes of all segments in flight, but that one always is
_AHEAD = 1e-3  # of the tolerance: what Picard, whose rounds hardly depend on it, aims at
_TOO_MANY = 3000  # rounds foreseen, beyond which a solve without Jacobians is called stiff
_SEEN = 6  # drift calls whose cost is seen before iterations are compared


class Stiff(Exception):
    """Too many rounds are foreseen for an iteration without Jacobians, and the state is too large for those."""


@dataclass(frozen=True)
class Posed:
    """What a sample asks for.

    Attributes:
        start: ``(d,)``.
        ts: ``(T,)`` times of the solution; ``ts[0]`` is that of the start.
        rtol, atol: the tolerance, ``(d,)`` each.
        unit: unit roundoff of the drift.
        second_order: whether states are (positions, velocities), and accelerations depend on positions.
    """

    start: np.ndarray
    ts: np.ndarray
    rtol: np.ndarray
    atol: np.ndarray
    unit: float
    second_order: bool

    @property
    def sign(self) -> float:
        """Direction of time."""
        return 1.0 if self.ts[-1] > self.ts[0] else -1.0

    @property
    def clock(self) -> np.ndarray:
        """The times as they are counted inside: from 0, increasing."""
        return self.sign * (self.ts - self.ts[0])

    def user_clock(self, t: np.ndarray) -> np.ndarray:
        """The user's times of times as they are counted inside."""
        return self.ts[0] + self.sign * t

    @property
    def unknowns(self) -> int:
        """Numbers whose derivatives Newton takes."""
        return len(self.start) // 2 if self.second_order else len(self.start)


@dataclass
class Sample:
    """One sample's solve, from the choice of the iteration to its end or its failure.

    Attributes:
        posed: what is asked.
        method: the user's.
        choice: the iteration; None: by the size of the state, and Newton where others find the equation stiff.
        readings: of the events that are to be found.
        failure: why it ended before its time; None where it did not.
        notes: what was decided on the way.
    """

    posed: Posed
    method: Collocation
    choice: Choice | None = None
    readings: Sequence[Reading] = ()
    failure: Exception | None = None
    notes: list[str] = field(default_factory=list)
    rounds: int = 0

    def __post_init__(self):
        size = self.posed.unknowns
        small, moderate = size * (self.method.order or 24) <= _DENSE, size <= LARGEST_DENSE
        self.used: Choice = self.choice or ("newton" if small else "panels" if moderate else "secant")
        self.refinement = self._begun()

    def _begun(self) -> Refinement:
        posed, quadratic = self.posed, self.used in ("newton", "panels")
        size, method = posed.unknowns, self.method
        usual = _order(size) if self.used == "newton" else 20
        at = nodes(method.nodes, (method.order or usual) + (method.nodes != "radau"))
        differences = Differences.of(posed.second_order, posed.unit, posed.rtol, posed.atol)
        sweep: Sweep = (
            Newton(at, differences, self.used == "panels")
            if quadratic
            else Picard(at, posed.second_order, self.used == "secant")
        )
        ahead = 1.0 if quadratic else self._ahead()
        in_flight = method.in_flight or min(_IN_FLIGHT, max(_NUMBERS // (at.n * len(posed.start)), 1))
        bounds = Bounds(
            ahead * posed.rtol, ahead * posed.atol, posed.unit, in_flight, method.max_step or np.inf, method.first_step
        )
        check = Check(at, differences)
        clock = posed.clock
        watch = Watch(self.readings, at, posed.user_clock) if self.readings else None
        march = March(posed.start, float(clock[-1]), at, sweep, bounds, check, float(posed.ts[0]), watch=watch)
        widest = max(_ROWS // (at.n * (1 + size)), in_flight) if quadratic else in_flight
        return Refinement(march, widest, clock[1:], watch, scaled=ahead)

    def _ahead(self) -> float:
        """What Picard aims at, in tolerances: sharper than asked for, but not at rounding."""
        largest = np.abs(self.posed.start)
        allowed = self.posed.atol + self.posed.rtol * largest
        rounding = np.divide(largest, allowed, out=np.zeros_like(largest), where=largest > 0).max()
        return min(1.0, max(_AHEAD, 64 * self.posed.unit * float(rounding)))

    @property
    def over(self) -> bool:
        """Whether nothing is left to be done."""
        return self.failure is not None or self.refinement.done

    @property
    def terminated(self) -> bool:
        """Whether an event ended it."""
        watch = self.refinement.watch
        return self.refinement.done and watch is not None and watch.end is not None

    @property
    def reached(self) -> float:
        """Up to when the solution is known: to the last segment's end, or a terminal event's time."""
        watch, reached = self.refinement.watch, self.refinement.march.reached
        return reached if watch is None or watch.end is None else min(watch.end, reached)

    def ask(self) -> tuple[np.ndarray, np.ndarray]:
        """Times ``(R,)`` and states ``(R, d)`` of the next round, on the user's clock."""
        t, y = self.refinement.ask()
        return self.posed.user_clock(t), y

    def tell(self, drift: np.ndarray) -> None:
        """Take the drifts there; a failure is kept."""
        self.rounds += 1
        try:
            self.refinement.tell(self.posed.sign * drift)
        except (Stuck, Unreachable) as failure:
            self.failure = failure
        if self.used != "newton" and not self.over:
            self._reconsider()

    def _reconsider(self) -> None:
        """Foresee the rounds of a Picard iteration; take Newton instead where they are too many."""
        foreseen = foreseen_if_stiff(self.refinement.march, self.rounds)
        if foreseen is None or self.refinement.marches > 1 or self.choice is not None:
            return
        if self.posed.unknowns > LARGEST_DENSE:
            self.failure = Stiff(f"{foreseen:.0f}")
            return
        self.notes.append(
            f"stiff: after {self.rounds} rounds {foreseen:.0f} were foreseen, so Newton's method took over"
        )
        self._take("newton")

    def compare(self, calls: Sequence[tuple[int, float]]) -> None:
        """Take Picard in place of panels if the first drift calls, of so many rows and seconds, say that it pays."""
        free = self.choice is None and self.used == "panels"
        if free and not newton_pays(calls, self.posed.unknowns, self.method.order or 20):
            self.notes.append("rows are dear, by the time that the first drift calls took: without Jacobians")
            self._take("secant")

    def _take(self, choice: Choice) -> None:
        self.used = choice
        self.refinement = self._begun()


def foreseen_if_stiff(march: March, rounds: int) -> float | None:
    """Rounds that are foreseen, where they are too many; asked after every round, judged after every fiftieth."""
    looking = not march.reached and rounds < 200  # for the length of the first segment
    if rounds % 50 or looking:
        return None
    foreseen = rounds * march.span / max(march.reached, 1e-9 * march.span)
    return foreseen if foreseen >= _TOO_MANY else None


def _order(unknowns: int) -> int:
    """Degree of Newton's polynomials: less for larger states, whose algebra grows with its cube."""
    return 24 if unknowns <= 10 else 16 if unknowns <= 20 else 12


def run(
    samples: list[Sample],
    drift: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    max_rounds: int,
    seen: Callable[[int], None],
) -> tuple[int, int]:
    """Solve samples together: each round is one call of the drift for all that are not over.

    Args:
        samples: to be solved.
        drift: of times ``(R,)``, states ``(R, d)`` and sample numbers ``(R,)``.
        max_rounds: stop then.
        seen: told of the number of rounds after each.

    Returns:
        Rounds, and the most rows that a sample had in one.
    """
    rounds, width, calls = 0, 0, []
    while rounds < max_rounds:
        active = [i for i, sample in enumerate(samples) if not sample.over]
        if not active:
            break
        if rounds == _SEEN:
            for i in active:
                samples[i].compare(calls)
        asked = [samples[i].ask() for i in active]
        counts = [len(t) for t, _ in asked]
        began = perf_counter()
        if len(asked) == 1:
            values = drift(*asked[0], np.full(counts[0], active[0]))
        else:
            t, y = (np.concatenate(part) for part in zip(*asked, strict=True))
            values = drift(t, y, np.repeat(active, counts))
        if rounds < _SEEN:
            calls.append((len(values), perf_counter() - began))
        rounds, width = rounds + 1, max(width, *counts)
        for i, own in zip(active, np.split(values, np.cumsum(counts)[:-1]), strict=True):
            samples[i].tell(own)
        seen(rounds)
    return rounds, width
