"""A solve under way, as the loop that drives it sees it."""

from abc import ABC, abstractmethod
from typing import Any


class Machine(ABC):
    """A solve in rounds: it says which states it needs the user's function at, and takes the values.

    `picardsolve.solve.drive` is the loop: ``machine.tell(machine.evaluate(machine.ask()))`` until it is done. A round
    is one batched evaluation.
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
