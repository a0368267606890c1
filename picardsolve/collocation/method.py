"""What a user picks: adaptive collocation."""

from dataclasses import dataclass
from typing import get_args

from picardsolve.collocation.nodes import Kind
from picardsolve.problem.checks import check_choice


@dataclass(frozen=True)
class Collocation:
    """Adaptive collocation on an `ODE` or `SecondOrderODE`: long segments of high order, several in flight at once.

    A segment is a polynomial that satisfies the equation at its nodes. Its length adapts to the solution; a round is
    one drift call at all nodes of all segments in flight (Picard-Chebyshev methods: Bai & Junkins 2011; Newton with
    Jacobians at all nodes; wavefront of segments). Every segment is checked at points that its iteration did not use,
    and the errors of all segments are carried to the end: where they exceed the tolerance there, the whole is solved
    again to a sharper one, from its own path. The tolerance is about the distance to the solution of the equation.

    Args:
        nodes: "radau" (Radau IIA, also for stiff equations), "lobatto" (Lobatto IIIA) or "chebyshev"
            (Gauss-Lobatto-Chebyshev).
        order: degree of the polynomials, from 4 to 40; None: 24 for states of at most ten numbers, 20 for larger ones
            (16 or 12 where Newton takes Jacobians at all nodes).
        in_flight: most segments at once; None: 12.
        first_step: length of the first segment; None: chosen.
        max_step: most time in a segment, for what could be overlooked between nodes, such as a pulse.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a wrong value.
    """

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
