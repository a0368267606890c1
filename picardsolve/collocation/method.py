"""The adaptive method that a user picks, and the march that it makes for a sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import numpy as np
from torch import Tensor

from picardsolve.collocation.adaptive_solve import AdaptiveSolve
from picardsolve.collocation.check import Check
from picardsolve.collocation.events import Event, EventFunction, EventWatch
from picardsolve.collocation.finite_differences import Differences
from picardsolve.collocation.initial_value import InitialValueProblem, Limits
from picardsolve.collocation.iteration_choice import usual_iteration, usual_order
from picardsolve.collocation.march import March
from picardsolve.collocation.nodes import Kind, nodes
from picardsolve.collocation.sweeps import Choice, NewtonSweep, PicardSweep
from picardsolve.integrators.adaptive import AdaptiveMethod, Given
from picardsolve.problem.checks import check_choice
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import ODE, SecondOrderODE, SemilinearODE, Term
from picardsolve.problem.tolerances import Tolerance

_IN_FLIGHT = 12  # segments, usually
_NUMBERS = 2**20  # at the nodes of all segments in flight, unless one segment has more
_AHEAD = 1e-3  # tolerances that Picard iteration aims at: its rounds hardly depend on the tolerance


@dataclass(frozen=True)
class Collocation(AdaptiveMethod):
    """Adaptive collocation for an `ODE` or `SecondOrderODE`: long segments of high order, several in flight at once.

    A segment is a polynomial that satisfies the equation at its nodes. Its length adapts to the solution. A round is
    one drift call at all nodes of all segments in flight (Picard-Chebyshev methods: Bai & Junkins 2011; Newton's method
    with Jacobians at all nodes; a wavefront of segments). Every segment is checked at points that its iteration did not
    use. The errors of all segments are propagated to the end: where they exceed the tolerance there, the whole is
    solved again to a sharper tolerance, guided by its own path. The tolerance is about the distance to the solution of
    the equation.

    Args:
        nodes: "radau" (Radau IIA, also for stiff equations), "lobatto" (Lobatto IIIA) or "chebyshev"
            (Gauss-Lobatto-Chebyshev).
        order: degree of the polynomials, from 4 to 40; None: 24 for states of at most ten numbers, 20 for larger ones
            (16 or 12 where Newton's method takes Jacobians at all nodes).
        in_flight: most segments at once; None: 12.
        first_step: length of the first segment; None: chosen.
        max_step: most time in a segment, for what could be overlooked between nodes, such as a pulse.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a wrong value.
    """

    instead_of_window: ClassVar[str] = "pass Collocation(in_flight=...), the largest number of segments at once"
    nodes: Kind = "radau"
    order: int | None = None
    in_flight: int | None = None
    first_step: float | None = None
    max_step: float | None = None

    def __post_init__(self):
        check_choice("nodes", self.nodes, get_args(Kind))
        for name, value, least, most in (("order", self.order, 4, 40), ("in_flight", self.in_flight, 1, 1024)):
            if value is not None and type(value) is not int:
                raise TypeError(f"{name}: expected an integer from {least} to {most}, got {value!r}.")
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name}: expected an integer from {least} to {most}, got {value!r}.")
        for name, step in (("first_step", self.first_step), ("max_step", self.max_step)):
            if step is not None and (not isinstance(step, int | float) or isinstance(step, bool)):
                raise TypeError(f"{name}: expected a number > 0, got {step!r}.")
            if step is not None and not step > 0:
                raise ValueError(f"{name}: expected a number > 0, got {step!r}.")

    def check_term(self, term: Term) -> None:
        """Refuse what is not an ordinary differential equation."""
        if not isinstance(term, ODE | SecondOrderODE | SemilinearODE):
            raise TypeError(
                f"integrator: Collocation takes an ODE, got {type(term).__name__}; pass a fixed-step integrator."
            )

    def begin(
        self,
        problem: Problem,
        y: Tensor,
        iteration: Any,
        tolerance: Tolerance,
        events: Any,
        only_last: bool,
        given: Given | None,
    ) -> AdaptiveSolve:
        """Begin a solve; its gradients are computed afterwards, by an adjoint."""
        name = getattr(iteration, "on_segments", None)
        if iteration is not None and name is None:
            raise TypeError(
                f"iteration: Collocation takes Picard(), Secant() or Newton(), got {iteration!r}; or leave it out."
            )
        return AdaptiveSolve.of(problem, y, self, name, tolerance, Event.of(events), only_last)

    def march(self, problem: InitialValueProblem, choice: Choice | None, events: Sequence[EventFunction] = ()) -> March:
        """The march of one sample, before its first round.

        Args:
            problem: of the sample.
            choice: the iteration; None: by the size of the state.
            events: functions whose changes of sign are to be found.
        """
        choice = choice or usual_iteration(problem, self.order)
        newton = choice in ("newton", "panels")
        at = nodes(self.nodes, (self.order or usual_order(problem.unknowns, choice)) + (self.nodes != "radau"))
        differences = Differences.of(problem.second_order, problem.unit, problem.rtol, problem.atol)
        sweep = PicardSweep(at, problem.second_order, choice)
        if newton:
            sweep = NewtonSweep(at, differences, choice)
        in_flight = self.in_flight or min(_IN_FLIGHT, max(_NUMBERS // (at.n * len(problem.start)), 1))
        lengths = self.max_step or np.inf, self.first_step
        limits = Limits(problem.rtol, problem.atol, problem.unit, in_flight, *lengths)
        if not newton:
            limits = limits.sharpened(_ahead(problem), in_flight)
        watch = EventWatch(events, problem, at) if events else None
        return March(problem, sweep, Check(at, differences), limits, watch)


def _ahead(problem: InitialValueProblem) -> float:
    """Tolerances that Picard iteration aims at: fewer than one, but not at rounding."""
    largest = np.abs(problem.start)
    allowed = problem.atol + problem.rtol * largest
    rounding = np.divide(largest, allowed, out=np.zeros_like(largest), where=largest > 0).max()
    return min(1.0, max(_AHEAD, 64 * problem.unit * float(rounding)))
