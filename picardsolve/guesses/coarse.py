"""A coarse solution as a guess."""

from dataclasses import dataclass, field, replace

from torch import Tensor

from picardsolve.checks import check_positive_integer
from picardsolve.guesses.base import Entering, Guess
from picardsolve.guesses.frozen import held, usual_hold
from picardsolve.integrators.base import Chain, Hold, Problem


@dataclass(frozen=True)
class Coarse(Guess):
    """A coarse solution of the same chain in the first window: only every k-th step is evaluated before going on.

    Each evaluation is held fixed for ``every`` steps, and the state it leads to is evaluated in the next round. That
    round also holds the states behind it, so it refines what the coarse steps have passed over while they go on (SRDS
    in its pipelined form, Selvam et al. 2024), and the window is full after ``window / every`` rounds. It saves
    evaluations where the window is wide and its far end would be far off; rounds only if ``every`` is large.

    Args:
        every: steps that one evaluation is held fixed for.
    """

    every: int = 10
    hold: Hold | None = field(default=None, repr=False, kw_only=True)  # what is best for the problem, once it is known

    def __post_init__(self):
        check_positive_integer("every", self.every)

    def ahead(self, entering: Entering) -> Tensor:
        """Steps with the last evaluation held fixed."""
        return held(entering, self.hold or "output")

    def prepared(self, problem: Problem, chain: Chain) -> Guess:
        """The same, holding what is best for the problem."""
        return replace(self, hold=usual_hold(problem.term, chain))

    def most(self, rounds: int, width: int) -> int:
        """``every`` until the first window can be full."""
        return self.every if rounds * self.every < width else width
