"""What comes back from a solve."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from picardsolve.history import Round
from picardsolve.plot import plot_rounds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from picardsolve.certificate import Certificate


class Result(Enum):
    """How a solve ended; the value is the sentence to read."""

    converged = "Every state is the sequential solution's, to the tolerance that was asked for."
    nonfinite = (
        "A step of the sequential solver itself is not finite: take smaller steps near that time, start from another "
        "y0, or use more precision; a parallel solver cannot mend it."
    )
    stopped = "The iterations that were asked for are done; how close they came to the tolerance was not asked."
    max_rounds = "The limit of rounds was reached first: raise max_rounds, loosen the tolerance or narrow the window."


@dataclass(frozen=True)
class Stats:
    """What a solve cost.

    Attributes:
        steps: steps N of the grid.
        rounds: batched drift calls that follow each other; a Runge-Kutta stage is one, so is the guess's own.
        evaluations: drifts at one state of one sample, all counted.
        calls: calls of the user's function; more than rounds where ``max_batch`` cut them.
        max_width: most steps of one sample in a round.
    """

    steps: int
    rounds: int
    evaluations: int
    calls: int
    max_width: int


@dataclass(frozen=True)
class Solution:
    """The states at the times ``ts``, and how they came about.

    Attributes:
        ts: ``(T,)`` float64: the grid, or its last time with ``save="last"``.
        ys: ``(T, *y0.shape)``, or the same structure of tensors as y0; NaN where a solve stopped before.
        result: how it ended.
        stats: what it cost.
        history: one record per round; empty for a sequential solve.
    """

    ts: Tensor
    ys: Any
    result: Result
    stats: Stats
    history: list[Round] = field(default_factory=list, repr=False)
    _certified: "Callable[[Solution], Certificate] | None" = field(default=None, repr=False, compare=False)

    @cached_property
    def certificate(self) -> "Certificate":
        """How far this is from the sequential solution, as far as the rounds tell; and how to be sure.

        Raises:
            ValueError: it is a sequential solution.
        """
        if self._certified is None:
            raise ValueError("certificate: this solution was computed step by step, it is the reference itself.")
        return self._certified(self)

    def plot(self, sample: int = 0) -> "Figure":
        """Draw the residual of every step in every round, with the window sliding through it.

        Args:
            sample: which sample of the batch.

        Raises:
            ImportError: matplotlib is missing (``pip install picardsolve[plot]``).
            ValueError: a sequential solution has no rounds to draw.
        """
        if not self.history:
            raise ValueError("plot: this solution was computed step by step, it has no rounds to draw; use solve().")
        return plot_rounds(self.history, self.stats.steps, self.stats.rounds, sample)


class SolveError(RuntimeError):
    """A solve that could not be finished; nothing computed is lost.

    Attributes:
        solution: the states so far, NaN after them.
        step: the step that failed, where one did.
        time: its time.
    """

    def __init__(self, message: str, solution: Solution, step: int | None = None, time: float | None = None):
        super().__init__(message)
        self.solution, self.step, self.time = solution, step, time
