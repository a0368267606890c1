"""A discrete chain of the user's own: what `picardsolve.solve_chain` solves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from picardsolve.problem.lifting import Takes
from picardsolve.problem.terms import Term
from picardsolve.problem.tolerances import Stop


@dataclass(frozen=True)
class Map(Term):
    """The chain ``x[n + 1] = step(n, x[n])``.

    Args:
        step: called as ``step(n, x, *args)``, with ``n`` of shape ``(rows,)``, int64.
        vectorized: False: the step is written for one state and a 0-d ``n``, and is lifted by ``torch.func.vmap``.

    Raises:
        TypeError: an argument has the wrong type.
    """

    step: Callable[..., Any]
    vectorized: bool = True
    takes_complex = True
    integrators = "it to picardsolve.solve_chain"

    def __post_init__(self):
        self._check_functions("step")

    def usual_tol(self, stop: Stop) -> float:
        """Relative to ``1 + |x|``: elements near zero are not told apart from the others' rounding."""
        return 1e-5

    @property
    def takes(self) -> Takes:
        """Many states with the numbers of their steps, or one."""
        return "numbered" if self.vectorized else "state"
