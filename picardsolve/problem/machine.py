"""A solve under way, and the loop that drives it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any


class Machine(ABC):
    """A solve in rounds: it says which states it needs the user's function at, and takes the values.

    A round is one batched evaluation. `drive` is the loop.
    """

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether nothing is left to evaluate."""

    @abstractmethod
    def ask(self) -> Any:
        """The rows of the next round."""

    @abstractmethod
    def evaluate(self, rows: Any) -> Any:
        """Call the user's function at the rows: the only place that costs anything."""

    @abstractmethod
    def tell(self, outputs: Any) -> None:
        """Take the outputs at the rows that were asked for."""


def drive(machine: Machine, rounds: int | None = None, after: Callable[[int], None] | None = None) -> int:
    """Run rounds until a machine is done: the loop of every solve.

    Args:
        machine: what is solved.
        rounds: stop after so many; None: never.
        after: called after each round with the number of rounds so far.

    Returns:
        How many rounds there were.
    """
    count = 0
    while not machine.done and (rounds is None or count < rounds):
        machine.tell(machine.evaluate(machine.ask()))
        count += 1
        if after is not None:
            after(count)
    return count
