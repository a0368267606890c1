"""Why the solve of a sample ends before its time, in a sentence for the user."""

from abc import ABC, abstractmethod

import numpy as np

from picardsolve.collocation.accepted import Segments
from picardsolve.collocation.initial_value import InitialValueProblem, Limits
from picardsolve.results.solution import Result

_EXPLODES = 1e4  # growth of a component that points to a solution without a limit


class Failure(Exception, ABC):
    """Why a sample's solve ended.

    Attributes:
        result: how it ended; its value is a sentence that follows `explain`'s.
    """

    result: Result

    @abstractmethod
    def explain(self, problem: InitialValueProblem, sample: int, time: float) -> str:
        """What happened, in a sentence; the solution is known up to ``time``."""


class OutOfRounds(Failure):
    """The limit of rounds was reached."""

    result = Result.max_rounds

    def explain(self, problem: InitialValueProblem, sample: int, time: float) -> str:
        """How far the solve came."""
        return f"t = {time:g} was reached."


class Stiff(Failure):
    """An iteration without Jacobians would take too many rounds, and the state is too large for Jacobians."""

    result = Result.stiff

    def __init__(self, rounds: float):
        super().__init__(rounds)
        self.rounds = rounds

    def explain(self, problem: InitialValueProblem, sample: int, time: float) -> str:
        """How many rounds it would take."""
        return f"{self.rounds:.0f} rounds are predicted; t = {time:g} was reached."


class Stuck(Failure):
    """From a time on no segment is short enough.

    Attributes:
        t: the elapsed time.
        not_finite: elapsed time at which the drift is not finite; None where it is.
        largest: the largest value of the component that grew the most since half of the time.
        growth: factor by which it grew.
    """

    def __init__(self, t: float, not_finite: float | None, largest: float, growth: float):
        super().__init__(t, not_finite, largest, growth)
        self.t, self.not_finite, self.largest, self.growth = t, not_finite, largest, growth
        self.result = Result.diverged if growth > _EXPLODES else Result.unresolved
        if not_finite is not None:
            self.result = Result.nonfinite_drift

    def explain(self, problem: InitialValueProblem, sample: int, time: float) -> str:
        """What the drift or the state does there."""
        if self.not_finite is not None:
            return f"the drift is not finite at t = {float(problem.time(np.array(self.not_finite), sample)):.6g}."
        if self.growth > _EXPLODES:
            return f"the state grows to {self.largest:.1e} at t = {time:.6g}."
        return f"no step is short enough at t = {time:.6g}."


def stuck(accepted: Segments | None, limits: Limits, sample: int, t: float, not_finite: float) -> Stuck:
    """Of a sample that finds no segment short enough at elapsed time t.

    Args:
        accepted: its segments.
        limits: of its march.
        sample: its number.
        t: elapsed time.
        not_finite: where the drift of the segment was not; NaN: it was.
    """
    bad = None if np.isnan(not_finite) else not_finite
    if accepted is None or not len(accepted):
        return Stuck(t, bad, 0.0, 0.0)
    arrays, start = limits.problem.arrays, limits.problem.start[sample : sample + 1]
    (scales,) = arrays.fetch(arrays.concat([arrays.size(start), accepted.scale]))
    early = scales[1:][accepted.end <= accepted.end[-1] / 2]
    before, now = np.concatenate([scales[:1], early]).max(0), scales[-1]
    (allowed,) = arrays.fetch(limits.allowed(arrays.array(before[None]), np.array([sample])))
    growth = now / (before + allowed[0])
    most = int(growth.argmax())
    return Stuck(t, bad, float(now[most]), float(growth[most]))


class Unreachable(Failure):
    """The tolerance cannot be reached; one that is larger by ``factor`` can."""

    result = Result.unreachable

    def __init__(self, factor: float):
        super().__init__(factor)
        self.factor = factor

    def explain(self, problem: InitialValueProblem, sample: int, time: float) -> str:
        """What can be reached."""
        own = (part[sample if len(part) > 1 else 0] for part in problem.arrays.fetch(problem.rtol, problem.atol))
        rtol, atol = (part * self.factor for part in own)
        rtol = rtol.max()
        reachable = "not one digit"
        if rtol < 1 and np.isfinite(self.factor):
            of_several = f"{atol.min():.1e} to " if atol.min() < atol.max() else ""
            reachable = f"rtol={rtol:.1e}, atol={of_several}{atol.max():.1e} is what"
        return f"errors grow so much that {reachable} can be reached."
