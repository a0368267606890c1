"""How time is cut: into the steps of a grid, or into segments whose lengths adapt."""

from abc import ABC
from typing import ClassVar

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
