"""The scheduler as it is, kept from what steps ahead of it by its copies might change."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state import MemoryLost, Snapshot, random_generators
from picardsolve.integrations.diffusers.scheduler.copied_steps import copy_of

# Errors of schedulers whose steps cannot be taken ahead.
_UNFIT = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


class Guard:
    """Runs what steps copies of a scheduler, and puts back what these copies changed of the scheduler all the same."""

    def __init__(self, scheduler: Any, own: Tensor):
        self._scheduler, self._own, self._name = scheduler, own, type(scheduler).__name__
        self._settled: Snapshot | None = None  # the scheduler's state before the latest steps ahead of it

    def copy(self) -> tuple[Any, str | None]:
        """A copy of the scheduler; None, and the reason, where it cannot be copied."""
        try:
            return copy_of(self._scheduler, self._own), None
        except TypeError as error:
            return None, f"{self._name} keeps what its steps ahead would share with the real ones ({error})"

    def run(self, work: Callable[[], Any]) -> tuple[Any, str | None]:
        """The result of ``work``; None, and the reason, where steps cannot be taken ahead."""
        if self._settled is None:
            self._settled = Snapshot({self._name: self._scheduler, **random_generators()})
        self._settled = settled = self._settled.current()
        made, why = None, None
        try:
            made = work()
        except _UNFIT as error:
            why = f"the scheduler's steps cannot be taken ahead ({error})"
        changes = [] if settled.unchanged else settled.changes(settled.retaken())
        if changes:
            why = why or f"a step that a copy of the scheduler takes ahead changes {settled.reach.path(changes[0])}"
            if not settled.restore():
                raise MemoryLost(f"{why}, which cannot be put back; call the pipeline itself.")
        return made, why
