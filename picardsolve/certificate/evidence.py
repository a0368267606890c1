"""What a certificate is made from: the rounds of a solve, and the solve itself, which can be repeated."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from picardsolve.certificate.growth import Growth
from picardsolve.integrators.base import DriftChain
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.carried import Carried, Packed
from picardsolve.results.history import History
from picardsolve.results.solution import Solution


class Repeatable(Protocol):
    """A solve that can be repeated."""

    def chain(self) -> DriftChain:
        """A new chain of its steps."""
        ...

    def rows(self, solution: Solution) -> Tensor:
        """``(T, B, D)``, the states of a solution."""
        ...

    def finer(self, solution: Solution, factor: float) -> Solution:
        """Solve again, from a solution and to a fraction of the tolerance."""
        ...

    def sequential(self) -> Solution:
        """Solve step by step."""
        ...


@dataclass(frozen=True)
class Evidence:
    """What a certificate is made from.

    Attributes:
        history: the rounds of the solve.
        path: ``(T, B, D)`` states at all times, or at the last time alone. Empty after it was pickled.
        steps: N, of the grid.
        tolerance: the tolerance of the errors.
        again: the solve, `Repeatable`; None for the steps of a pipeline's scheduler.
        taken: ``(N,)`` slopes of the steps, where a pipeline's scheduler takes them with the outputs of a round held
            fixed; 1 where they are not known. None where the steps are those of the sweep.
        batched: whether the states of the user are samples.
        denoises: whether the term is a denoiser.
        implicit: whether the steps are equations.
        growth: the measured growth of errors along the solution; None: not known.
        exact: whether the sequential solver took every step.
    """

    history: History
    path: Tensor
    steps: int
    tolerance: Tolerance
    again: Carried | Packed | None = None
    taken: Tensor | None = None
    batched: bool = True
    denoises: bool = True
    implicit: bool = False
    growth: Growth | None = None
    exact: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "path": self.path[:0].clone()}  # the solution holds the states

    @property
    def full(self) -> bool:
        """Whether the state at every time is known."""
        return len(self.path) == self.steps + 1
