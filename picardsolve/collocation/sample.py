"""The solve of one sample, from the choice of its iteration to its end or its failure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from picardsolve.collocation.events import EventFunction
from picardsolve.collocation.failures import Failure, Stiff
from picardsolve.collocation.initial_value import InitialValueProblem
from picardsolve.collocation.iteration_choice import newton_pays, rounds_if_stiff
from picardsolve.collocation.march import March
from picardsolve.collocation.refinement import PropagatedError, refined
from picardsolve.collocation.sweeps import Choice
from picardsolve.collocation.trajectory import PiecewisePolynomial, Trajectory

if TYPE_CHECKING:
    from picardsolve.collocation.method import Collocation

_MARCHES = 4  # at most


@dataclass
class Sample:
    """One sample's solve: a march; more of them, each guided by the one before, until the error is within tolerance.

    Attributes:
        problem: what is solved.
        method: the user's.
        choice: the iteration; None: by the size of the state, and Newton's method where others find the equation stiff.
        events: functions whose changes of sign are to be found.
        failure: why it ended before its time; None where it did not.
        error: of the march, once it is small enough.
        march: the present march.
        marches: how many there were with this iteration.
        decisions: what was decided on the way.
    """

    problem: InitialValueProblem
    method: "Collocation"
    choice: Choice | None = None
    events: Sequence[EventFunction] = ()
    failure: Failure | None = None
    error: PropagatedError | None = None
    march: March = field(init=False)
    marches: int = 1
    decisions: list[str] = field(default_factory=list)

    def __post_init__(self):
        self._take(self.choice)

    def _take(self, choice: Choice | None) -> None:
        """Begin with an iteration."""
        self.march = self.method.march(self.problem, choice, self.events)

    @property
    def over(self) -> bool:
        """Whether nothing is left to be done."""
        return self.failure is not None or self.error is not None

    @property
    def terminated(self) -> bool:
        """Whether an event ended it."""
        return self.error is not None and self.march.watch is not None and self.march.watch.end is not None

    def ask(self) -> tuple[np.ndarray, np.ndarray]:
        """The user's times ``(R,)`` and states ``(R, d)`` of the next round."""
        t, y = self.march.ask()
        return self.problem.time(t), y

    def tell(self, drift: np.ndarray) -> None:
        """Take the drifts there; a failure is kept."""
        try:
            self.march.tell(self.problem.sign * drift)
            if self.march.done:
                self._refine()
        except Failure as failure:
            self.failure = failure
        if self.choice is None and self.marches == 1 and not self.over:
            self._reconsider()

    def _refine(self) -> None:
        """March again where the error is too large."""
        march, last = self.march, float(self.problem.elapsed[-1])
        if march.span < last and march.watch is not None and march.watch.end is None:
            march.extend(last)  # the terminal event that shortened the span has moved beyond it, or does not happen
            return
        found = PropagatedError.of(march.accepted, march.limits)
        again = refined(march, found, self.marches < _MARCHES)
        if again is None:
            self.error = found
        else:
            self.march, self.marches = again, self.marches + 1

    def _reconsider(self) -> None:
        """Take Newton's method where an iteration would take too many rounds."""
        rounds = rounds_if_stiff(self.march)
        if rounds is None:
            return
        if not self.problem.takes_jacobians:
            self.failure = Stiff(rounds)
            return
        self.decisions.append(
            f"stiff: after {self.march.rounds} rounds {rounds:.0f} were predicted, so Newton's method took over"
        )
        self._take("newton")

    def compare(self, calls: Sequence[tuple[int, float]]) -> None:
        """Take a secant in place of panels if that is faster; ``calls`` are rows and seconds of the first calls."""
        free = self.choice is None and self.march.sweep.name == "panels"
        if free and not newton_pays(calls, self.problem.unknowns, self.method.order or 20):
            self.decisions.append("rows are expensive, by the time of the first drift calls: without Jacobians")
            self._take("secant")

    @property
    def reached(self) -> float:
        """Elapsed time up to which states are known: the last segment's end, or a terminal event."""
        end = None if self.march.watch is None else self.march.watch.end
        return self.march.reached if end is None else min(end, self.march.reached)

    @property
    def trajectory(self) -> Trajectory:
        """Its states."""
        path = PiecewisePolynomial(self.march.accepted) if self.march.accepted else None
        return Trajectory(self.problem, self.reached, path)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user may want to know about how it was solved."""
        again, nodes = self.marches - 1, self.march.nodes
        said = f"{self.march.sweep.name} iteration on {nodes.n} {nodes.kind} nodes", *self.decisions
        return said if not again else (*said, f"solved again {again} times to a sharper tolerance, for errors grow")
