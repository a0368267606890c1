"""Who evaluates the rows of a round, where more than one device does."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

Outcome = TypeVar("Outcome")
Copied = Callable[..., Any]  # of a function: the same function with its tensors on another device


class Job(ABC):
    """Something that each worker of a crew can do with its part of a round."""

    @abstractmethod
    def work(self, part: Any) -> Any:
        """The result for one part."""

    @abstractmethod
    def on(self, device: torch.device, copied: Copied) -> "Job":
        """The same job with its tensors on another device."""


class Crew(ABC):
    """Workers, each with a device of its own, that share the rows of every round. Worker 0 is the one that decides.

    Attributes:
        workers: how many there are.
        notes: sentences for the user about how rows were shared.
    """

    workers: int
    notes: list[str]

    @abstractmethod
    def enlist(self, job: Job) -> int:
        """Make a job known to all workers; its number. All workers enlist the same jobs in the same order."""

    @abstractmethod
    def shares(self, rows: int, unit: int = 1) -> list[int]:
        """How many of so many rows each worker gets, in their order: whole units, fewer for a slower worker."""

    @abstractmethod
    def run(self, number: int, parts: Sequence[Any], rows: Sequence[int]) -> list[Any]:
        """The results of a job for the parts of a round, one for each worker; None where a worker has no rows.

        Where worker 0 has all the rows, it asks nobody, unless a model is spread over several processes.
        """

    @abstractmethod
    def together(self, lead: Callable[[], Outcome], settings: Mapping[str, Any], *reach: Any) -> Outcome:
        """What ``lead`` returns, which worker 0 alone runs, on every worker.

        Args:
            lead: the work, in which `run` is called.
            settings: what all workers must have alike, by name.
            reach: functions and objects whose code and tensors all workers must have alike.
        """


def spread(
    crew: Crew,
    number: int,
    rows: int,
    part: Callable[[slice], Any],
    unit: int = 1,
    shares: Sequence[int] | None = None,
) -> list[Any]:
    """The results of a job for so many rows, in pieces, in their order.

    Args:
        crew: who does it.
        number: of the job.
        rows: how many there are.
        part: what a worker needs for some of them.
        unit: rows that stay together.
        shares: how many each worker gets; None: as the crew has it.
    """
    shares = crew.shares(rows, unit) if shares is None else shares
    ends = [sum(shares[: k + 1]) for k in range(len(shares))]
    parts = [part(slice(end - n, end)) if n else None for end, n in zip(ends, shares, strict=True)]
    return [result for result in crew.run(number, parts, shares) if result is not None]
