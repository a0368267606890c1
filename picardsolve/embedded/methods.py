"""The embedded pairs that a user picks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from picardsolve.embedded.control import Control
from picardsolve.embedded.dop853 import DOP853
from picardsolve.embedded.dormand_prince import DOPRI5
from picardsolve.embedded.embedded_solve import EmbeddedSolve
from picardsolve.embedded.lanes import Limits
from picardsolve.embedded.pair import Pair
from picardsolve.embedded.tsitouras import TSIT5
from picardsolve.integrators.adaptive import AdaptiveMethod, Given
from picardsolve.problem.events import Event
from picardsolve.problem.problem import Problem
from picardsolve.problem.tolerances import Tolerance


@dataclass(frozen=True)
class EmbeddedMethod(AdaptiveMethod):
    """What the embedded pairs share."""

    instead_of_window: ClassVar[str] = "pass picardsolve.RK4() or another fixed-step integrator"
    pair: ClassVar[Pair]
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float | None = None
    max_num_steps: int | None = None
    step_t: Sequence[float] | Tensor | None = None
    jump_t: Sequence[float] | Tensor | None = None
    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2

    def __post_init__(self):
        for name in ("first_step", "max_step", "safety", "ifactor", "dfactor"):
            _check_positive(name, getattr(self, name), getattr(self, name) is None)
        _check_positive("min_step", self.min_step, self.min_step == 0)
        _check_positive("max_num_steps", self.max_num_steps, self.max_num_steps is None)
        for name in ("safety", "dfactor"):
            if not getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number below 1, got {getattr(self, name)!r}.")
        if not self.ifactor > 1:
            raise ValueError(f"ifactor: expected a number above 1, got {self.ifactor!r}.")
        _ = self._limits

    def begin(
        self,
        problem: Problem,
        y: Tensor,
        iteration: Any,
        tolerance: Tolerance,
        events: Any,
        only_last: bool,
        given: Given | None,
    ) -> EmbeddedSolve:
        """Begin a solve."""
        if iteration is not None:
            raise TypeError(f"iteration: {type(self).__name__} steps without iterating; leave it out.")
        control = Control(self.pair.order, self.safety, self.dfactor, self.ifactor)
        watched = Event.of(events)
        return EmbeddedSolve.of(self.pair, control, self._limits, problem, y, tolerance, watched, only_last, given)

    @cached_property
    def _limits(self) -> Limits:
        stops, jumps = (_times(name, getattr(self, name)) for name in ("step_t", "jump_t"))
        together = np.concatenate([stops, jumps])
        order = np.argsort(together, kind="stable")
        if (np.diff(together[order]) == 0).any():
            raise ValueError("step_t, jump_t: expected times that differ; drop repeats.")
        is_jump = (np.arange(len(together)) >= len(stops))[order]
        most = np.inf if self.max_step is None else self.max_step
        steps = np.inf if self.max_num_steps is None else self.max_num_steps
        return Limits(self.first_step, self.min_step, most, steps, together[order], is_jump)


@dataclass(frozen=True)
class Dopri5(EmbeddedMethod):
    """Adaptive steps of order 5 for an `ODE` (Dormand & Prince 1980), as torchdiffeq's dopri5.

    Every sample has steps of its own. The errors of all steps are estimated from the states and slopes around them, and
    propagated to the times that are asked for. Where they seem to exceed the tolerance there, all steps of the sample
    are halved, at once, to see their errors; where they do exceed it, the sample is solved again to a sharper
    tolerance. The tolerance is about the distance to the solution of the equation. States between steps are read from
    polynomials through the states and slopes of several steps. Gradients are those of the steps that were taken, with
    their lengths held fixed (discretise, then optimise); they can be differentiated again.

    Args:
        first_step: length of the first step; None: chosen.
        min_step: a step this short is accepted whatever its error.
        max_step: longest step; None: any.
        max_num_steps: most steps of a sample; None: any number.
        step_t: times that steps end at.
        jump_t: times at which the drift jumps: steps end there, and the drift is taken on either side.
        safety: part of the length that the error of a step would allow.
        ifactor: largest factor from one length to the next.
        dfactor: least factor.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a wrong value.
    """

    pair: ClassVar[Pair] = DOPRI5


@dataclass(frozen=True)
class Tsit5(EmbeddedMethod):
    """Adaptive steps of order 5 for an `ODE` (Tsitouras 2011); the arguments are those of `Dopri5`.

    sol = ps.solve(ps.ODE(f), y0, ts, integrator=ps.Tsit5(), rtol=1e-5, atol=1e-7)
    """

    pair: ClassVar[Pair] = TSIT5


@dataclass(frozen=True)
class Dopri8(EmbeddedMethod):
    """Adaptive steps of order 8 for an `ODE`, for sharp tolerances; the arguments are those of `Dopri5`.

        sol = ps.solve(ps.ODE(f), y0, ts, integrator=ps.Dopri8(), rtol=1e-10, atol=1e-12)

    The method is Hairer's DOP853 (Hairer, Norsett & Wanner 1993). torchdiffeq's dopri8 is an older one of that order.
    """

    pair: ClassVar[Pair] = DOP853


def _check_positive(name: str, value: Any, fine: bool) -> None:
    if fine:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number > 0, got {value!r}.")
    if not value > 0:
        raise ValueError(f"{name}: expected a number > 0, got {value!r}.")


def _times(name: str, given: Any) -> np.ndarray:
    if given is None:
        return np.zeros(0)
    try:
        times = np.array(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=float)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected times, a tensor or a list of numbers, got {given!r}.") from None
    if times.ndim != 1 or not np.isfinite(times).all():
        raise ValueError(f"{name}: expected finite times (P,), got {given!r}.")
    return times
