"""One solve, validated."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from picardsolve.brownian.path import Path
from picardsolve.problem.clock import Clock
from picardsolve.problem.crew import Crew
from picardsolve.problem.lifting import Lifted
from picardsolve.problem.row_function import RowFunction
from picardsolve.problem.state import Layout
from picardsolve.problem.terms import Term
from picardsolve.problem.user_function import UserFunction


@dataclass(frozen=True)
class Problem:
    """Everything that a chain of steps is made from.

    Attributes:
        term: what is solved.
        layout: of one sample's state.
        ts: ``(N + 1,)`` times, float64 on the CPU; for collocation also ``(N + 1, B)``.
        args: what the functions of the term get beside the state: positional arguments, a `Denoiser` by name.
        brownian: the noise.
        max_batch: rows that one call of a function may hold; None: any number.
        parameters: a list for the tensors that the functions close over and that require gradients. None: gradients
            are not recorded.
        crew: who evaluates the rows of a round; None: this process, on the states' device.
        lifted: its functions of many times, by identity: machines that solve one problem share what they learn.
    """

    term: Term
    layout: Layout
    ts: Tensor
    args: Any
    brownian: Path
    max_batch: int | None = None
    parameters: list[Tensor] | None = None
    crew: Crew | None = None
    lifted: dict[int, Lifted] = field(default_factory=dict)

    def row_function(
        self, name: str, function: Callable[..., Any], trailing: int | None = 0, clock: Clock | None = None
    ) -> RowFunction:
        """A function of the term, to be called at rows.

        Args:
            name: the argument's name in messages.
            function: called as the term says.
            trailing: dimensions of the output beyond the state's. None: none or one, as the first output shows.
            clock: of the times; None: one of the grid.
        """
        clock = clock or Clock.of(self.ts, self.layout, self.term.resolved)
        user = UserFunction(name, function, self.layout, clock, self.args, self.term.takes, trailing)
        if not user.own:
            user.lifted = self.lifted.setdefault(id(function), user.lifted)
        return RowFunction(user, self.max_batch, self.parameters, self.crew)
