"""What decides how many rounds a window takes."""

from dataclasses import dataclass

from picardsolve.fixed_point.error_estimate import ErrorEstimate
from picardsolve.fixed_point.guesses import Guess
from picardsolve.fixed_point.stopping import Stopping
from picardsolve.fixed_point.sweep import Sweep


@dataclass(frozen=True)
class Settings:
    """What decides how many rounds a solve takes.

    Attributes:
        width: steps in the window at first.
        iteration: how the states of a window follow from a round.
        guess: what states that enter the window start from.
        stopping: which states may be accepted; it belongs to one solve, because it remembers the rounds.
        lockstep: whether all samples share one position, that of the slowest.
        meter: estimates errors where the stopping rule does not; it belongs to one solve, too.
    """

    width: int
    iteration: Sweep
    guess: Guess
    stopping: Stopping
    lockstep: bool = False
    meter: ErrorEstimate | None = None

    @property
    def rules(self) -> tuple[Stopping, ...]:
        """The stopping rule, and the meter if there is one."""
        return (self.stopping,) if self.meter is None else (self.stopping, self.meter)
