"""The adaptive method that a user picks, and the march that it makes."""

from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import numpy as np
from torch import Tensor

from picardsolve.collocation.adaptive_solve import AdaptiveSolve
from picardsolve.collocation.check import Check
from picardsolve.collocation.events import Event
from picardsolve.collocation.finite_differences import Differences
from picardsolve.collocation.initial_value import InitialValueProblem, Limits
from picardsolve.collocation.iteration_choice import usual_iteration, usual_orders
from picardsolve.collocation.march import EndsIn, March
from picardsolve.collocation.newton_sweep import NewtonSweep
from picardsolve.collocation.nodes import Kind, nodes
from picardsolve.collocation.picard_sweep import PicardSweep
from picardsolve.collocation.sweeps import Choice
from picardsolve.integrators.adaptive import AdaptiveMethod, Given
from picardsolve.problem.checks import check_choice
from picardsolve.problem.problem import Problem
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
        order: degree of the polynomials, from 4 to 40; None: by the tolerance of each sample, 12 where it is loose, up
            to 24 for states of at most ten numbers, and to 20 for larger ones.
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

    def plan(self, problem: InitialValueProblem, choice: Choice | None) -> tuple[Choice, np.ndarray]:
        """The iteration, and the degrees of the polynomials of samples, ``(B,)``; ``choice`` is the user's."""
        choice = choice or usual_iteration(problem, self.order)
        return choice, usual_orders(problem, choice) if self.order is None else np.full(problem.samples, self.order)

    def march(self, problem: InitialValueProblem, choice: Choice, order: int, ends_in: EndsIn | None = None) -> March:
        """A march of samples, before the first round; none has begun.

        Args:
            problem: the samples.
            choice: the iteration.
            order: degree of the polynomials.
            ends_in: looks for events.
        """
        newton = choice in ("newton", "panels")
        at = nodes(self.nodes, order + (self.nodes != "radau"))
        differences = Differences(problem)
        in_flight = self.in_flight or min(_IN_FLIGHT, max(_NUMBERS // (at.n * problem.numbers), 1))
        scale = np.ones(problem.samples) if newton else _ahead(problem)
        most = np.full(problem.samples, in_flight)
        limits = Limits(problem, scale, most, self.max_step or np.inf, self.first_step)
        sweep = NewtonSweep(at, differences, choice) if newton else PicardSweep(at, problem, limits, choice)
        return March(problem, sweep, Check(at, differences, newton), limits, ends_in)


def _ahead(problem: InitialValueProblem) -> np.ndarray:
    """Tolerances that Picard iteration aims at, ``(B,)``: fewer than one, but not at rounding."""
    arrays = problem.arrays
    largest = arrays.size(problem.start)
    allowed = problem.atol + problem.rtol * largest
    ratios = arrays.where(largest > 0, largest / arrays.where(allowed > 0, allowed, 1.0), 0.0)
    (rounding,) = arrays.fetch(arrays.largest(ratios))
    return np.minimum(1.0, np.maximum(_AHEAD, 64 * problem.unit * rounding))
