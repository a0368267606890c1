"""How time is cut: into the steps of a grid, or into segments whose lengths adapt."""

from abc import ABC
from typing import Any, ClassVar

from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import Term


class Discretization(ABC):
    """What `picardsolve.solve` takes as its ``integrator``: an `Integrator`, or adaptive `Collocation`.

    Attributes:
        adaptive: whether lengths adapt to the solution. If they do not, the times ``ts`` are the grid of the steps.
    """

    adaptive: ClassVar[bool]

    def check_term(self, term: Term) -> None:  # noqa: B027
        """Refuse a term before any work; by default, an `Integrator` refuses it when it makes its chain.

        Raises:
            TypeError: the term is of another kind.
        """

    def chain(self, problem: Problem) -> Any:
        """The chain of its steps on a grid.

        Raises:
            TypeError: it has none.
        """
        raise TypeError(
            f"integrator: {type(self).__name__} has no steps of a grid, which are needed here; pass "
            "picardsolve.RK4() or another fixed-step integrator."
        )
