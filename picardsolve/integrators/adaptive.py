"""What every adaptive method is: it makes the machine of a solve, whose lengths adapt to the solution."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from picardsolve.integrators.discretization import Discretization
from picardsolve.problem.machine import Machine
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import ODE, SecondOrderODE, SemilinearODE, Term
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.solution import Solution

ENOUGH = 1.0  # tolerances that an estimated error may be


def exceeds(error: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Whether errors, or twice their standard deviations by rounding, are above the tolerance; both in tolerances."""
    return np.maximum(error, 2 * floor) > ENOUGH


@dataclass(frozen=True)
class Given:
    """What gradients may be wanted of, as the user gave it.

    Attributes:
        start: ``(B, D)`` the initial states, with their graph.
        ts: the times.
        args: the arguments, with their graphs.
        reach: leaves that the functions may depend on, whether a call has shown it or not.
    """

    start: Tensor
    ts: Any
    args: Any
    reach: Sequence[Tensor]


class AdaptiveMachine(Machine):
    """An adaptive solve under way.

    Attributes:
        most_rounds: where the user does not say.
        records: whether its solution comes with its gradients, so that no adjoint is needed.
    """

    most_rounds: ClassVar[int]
    records: ClassVar[bool] = False

    @property
    def solver(self) -> "AdaptiveMachine":
        """The machine that has the solution: this one, or the one that it left the solve to."""
        return self

    @property
    @abstractmethod
    def failed(self) -> bool:
        """Whether samples ended before their time."""

    @property
    @abstractmethod
    def beyond(self) -> bool:
        """Whether the estimated error of a sample stays above the tolerance."""

    @property
    @abstractmethod
    def percent(self) -> int:
        """How far the slowest sample has come."""

    @abstractmethod
    def solution(self, rounds: int, throw: bool) -> Solution:
        """What was found, after so many rounds.

        Raises:
            SolveError: a sample failed, and ``throw`` is true; it carries the solution.
        """


class AdaptiveMethod(Discretization):
    """A method whose lengths adapt to the solution, held to the tolerance at the times that are asked for.

    Attributes:
        instead_of_window: what to pass where a window was meant, for messages.
    """

    adaptive: ClassVar[bool] = True
    instead_of_window: ClassVar[str]

    def check_term(self, term: Term) -> None:
        """Refuse what is not an ordinary differential equation."""
        if not isinstance(term, ODE | SecondOrderODE | SemilinearODE):
            name = type(self).__name__
            raise TypeError(
                f"integrator: {name} takes an ODE, got {type(term).__name__}; pass a fixed-step integrator."
            )

    @abstractmethod
    def begin(
        self,
        problem: Problem,
        y: Tensor,
        iteration: Any,
        tolerance: Tolerance,
        events: Any,
        only_last: bool,
        given: Given | None,
    ) -> AdaptiveMachine:
        """Begin a solve.

        Args:
            problem: of an ordinary differential equation, with times ``(T,)``, or ``(T, B)``, by sample.
            y: ``(B, D)`` initial states.
            iteration: as the user gave it; None for the method's own.
            tolerance: its ``rtol`` and ``atol``.
            events: as the user gave them.
            only_last: keep nothing but the states at the last time.
            given: what gradients may be wanted of; None: none are.

        Raises:
            TypeError: the method does not take such an iteration.
            ValueError: the tolerance is below rounding.
        """
