"""A method that a solve may go on with, and what its calls took so far."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import nan
from statistics import median
from typing import Generic, NamedTuple, TypeVar

from picardsolve.integrators.adaptive import AdaptiveMachine

M = TypeVar("M", bound=AdaptiveMachine)

_RECENT = 8  # calls


class Call(NamedTuple):
    """A call: its rows, the seconds of the drift with all that is beside it, and those of what is beside it."""

    rows: int
    seconds: float
    beside: float


@dataclass
class Contender(Generic[M]):
    """A method, its machine once it is needed, and its calls.

    Attributes:
        name: of the method.
        begin: makes its machine.
        calls: so far.
    """

    name: str
    begin: Callable[[], M]
    calls: list[Call] = field(default_factory=list)

    @cached_property
    def machine(self) -> M:
        """That solves with the method."""
        return self.begin()

    @property
    def started(self) -> bool:
        """Whether it has a machine."""
        return "machine" in vars(self)

    @property
    def whole(self) -> float:
        """Seconds of a usual call with all that is beside the drift; NaN before the third, for the first warms up."""
        return _usual([call.seconds for call in self.calls])

    @property
    def beside(self) -> float:
        """Those of all that is beside the drift."""
        return _usual([call.beside for call in self.calls])


def _usual(times: list[float]) -> float:
    recent = times[max(2, len(times) - _RECENT) :]
    return median(recent) if recent else nan


@dataclass
class Stepping(Contender[M]):
    """A pair.

    Attributes:
        stages: calls of a step.
        order: of the method.
    """

    stages: int = 0
    order: int = 0
