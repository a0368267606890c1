"""Why the solve of a sample ends before its time, in a sentence for the user."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from picardsolve.results.solution import Result


class Failure(ABC):
    """Why a sample's solve ended.

    Attributes:
        result: how; its value is a sentence that follows `explain`'s.
        may_pass: whether sharper steps may not end that way.
    """

    result: Result
    may_pass: ClassVar[bool] = False

    @abstractmethod
    def explain(self, time: float) -> str:
        """What happened, in a sentence; the solution is known up to ``time``."""


@dataclass(frozen=True)
class OutOfRounds(Failure):
    """The limit of rounds was reached."""

    result: ClassVar[Result] = Result.max_rounds

    def explain(self, time: float) -> str:
        """How far the solve came."""
        return f"t = {time:g} was reached."


@dataclass(frozen=True)
class OutOfSteps(Failure):
    """The limit of steps was reached."""

    result: ClassVar[Result] = Result.max_rounds

    def explain(self, time: float) -> str:
        """How far the solve came."""
        return f"max_num_steps: all of them are taken, and t = {time:g} was reached."


@dataclass(frozen=True)
class Stiff(Failure):
    """Stability holds steps down, and too many would follow."""

    steps: float
    result: ClassVar[Result] = Result.stiff_for_steps

    def explain(self, time: float) -> str:
        """How many steps it would take."""
        return f"{self.steps:.0f} steps are predicted; t = {time:g} was reached."


@dataclass(frozen=True)
class Stuck(Failure):
    """No step is short enough.

    Attributes:
        t: where.
        finite: whether the last attempt was finite.
        growth: factor by which the state grew in the second half of the way.
    """

    t: float
    finite: bool
    growth: float = 1.0
    may_pass: ClassVar[bool] = True
    explodes: ClassVar[float] = 1e4

    @property
    def result(self) -> Result:  # pyright: ignore[reportIncompatibleVariableOverride]
        """By what the drift and the state do there."""
        if self.growth > self.explodes:
            return Result.diverged
        return Result.unresolved if self.finite else Result.nonfinite_drift

    def explain(self, time: float) -> str:
        """What the drift or the state does there."""
        if self.growth > self.explodes:
            return f"the state grows {self.growth:.1e} times up to t = {time:.6g}."
        return (
            f"no step is short enough at t = {time:.6g}."
            if self.finite
            else f"the drift is not finite at t = {time:.6g}."
        )


@dataclass(frozen=True)
class Unreachable(Failure):
    """The tolerance cannot be reached.

    Attributes:
        rtol, atol: what can; None where not one digit can.
    """

    rtol: float | None
    atol: float
    result: ClassVar[Result] = Result.unreachable

    def explain(self, time: float) -> str:
        """What can be reached."""
        what = "not one digit" if self.rtol is None else f"rtol={self.rtol:.1e}, atol={self.atol:.1e} is what"
        return f"errors grow so much that {what} can be reached."
