"""The adaptive method that decides by itself how it solves."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from picardsolve.adaptive.choice_solve import ChoiceSolve
from picardsolve.adaptive.contender import Contender, Stepping
from picardsolve.adaptive.costs import Costs
from picardsolve.collocation import Collocation
from picardsolve.embedded import Dopri8
from picardsolve.integrators.adaptive import AdaptiveMethod, Given
from picardsolve.problem.problem import Problem
from picardsolve.problem.tolerances import Tolerance

_LEAST, _MOST = 1e-12, 1e-1  # tolerances that costs are predicted for


@dataclass(frozen=True)
class Adaptive(AdaptiveMethod):
    """The adaptive method that is fastest here: `Collocation` or `Dopri8`.

    Collocation takes few rounds with many rows each; steps take many calls with one row for each sample. Which one is
    faster depends on what a call and a row cost. The solve begins with what is cheaper to try, measures its first calls
    by the clock, predicts what is left, and goes over to the other where that is faster, or where the first one fails;
    ``solution.notes`` says what was decided and why. The tolerance is held by all of them, and is about the distance to
    the solution of the equation. Two runs may decide differently: their solutions agree within the tolerance, and not
    in every bit. After ``torch.use_deterministic_algorithms(True)`` no time decides anything. Pass `Collocation` or a
    pair to decide by yourself.

    Args:
        first_step: length of the first step or segment; None: chosen.
        max_step: longest step or segment; None: any.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a wrong value.

    Example:
        >>> import torch, picardsolve as ps
        >>> term = ps.ODE(lambda t, y: -y)
        >>> sol = ps.solve(term, torch.ones(3), torch.linspace(0, 1, 5), integrator=ps.Adaptive())
        >>> sol.ys.shape
        torch.Size([5, 3])
    """

    instead_of_window: ClassVar[str] = "pass picardsolve.RK4() or another fixed-step integrator"
    first_step: float | None = None
    max_step: float | None = None

    def __post_init__(self):
        Collocation(first_step=self.first_step, max_step=self.max_step)  # checks them

    def begin(
        self,
        problem: Problem,
        y: Tensor,
        iteration: Any,
        tolerance: Tolerance,
        events: Any,
        only_last: bool,
        given: Given | None,
    ) -> ChoiceSolve:
        """Begin a solve."""
        if iteration is not None:
            raise TypeError(
                f"iteration: Adaptive chooses its own, got {iteration!r}; pass integrator=Collocation() with it, or "
                "leave it out."
            )
        first, longest = self.first_step, self.max_step
        rest = problem, y, None, tolerance, events, only_last, given
        steps = Dopri8(first_step=first, max_step=longest)
        stepping = Stepping("Dopri8", partial(steps.begin, *rest), stages=steps.pair.stages - 1, order=steps.pair.order)
        segments = Collocation(first_step=first, max_step=longest)
        costs = Costs(len(y), y.shape[1], min(max(tolerance.smallest, _LEAST), _MOST))
        return ChoiceSolve(costs, Contender("Collocation", partial(segments.begin, *rest)), stepping)
