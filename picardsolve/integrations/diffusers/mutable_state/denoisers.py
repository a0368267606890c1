"""The denoisers of a run, watched for state: what a call changes, and what others change between two calls."""

from torch import nn

from picardsolve.integrations.diffusers.mutable_state.logs import logs_in
from picardsolve.integrations.diffusers.mutable_state.reachable import Holder
from picardsolve.integrations.diffusers.mutable_state.snapshot import Snapshot, random_generators


class MemoryLost(Exception):
    """A denoiser was called for several steps at once, and what it remembers of that cannot be put back."""


class WatchedDenoiser:
    """One denoiser.

    The first call for one step may fill a table that every call would fill in the same way. So the second call is made
    twice: with what the first one left, and without it (`empty`, `refill`). If the outputs and what is left are the
    same both times, the table does not matter.

    Attributes:
        module: the denoiser.
        first: its state before its first call.
        now: its state when it was last looked at.
        why: what its first call changed, while it is open whether that matters; else None.
        called: whether it has been called for one step.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.first = self.now = Snapshot({type(module).__name__: module})
        self.why: str | None = None
        self.called = False
        self._logs: frozenset[Holder] = frozenset()
        self._random = Snapshot(random_generators())
        self._current = False  # whether ``now`` is known to be its state
        self._before: Snapshot | None = None  # its first call, and behind it
        self._after: Snapshot | None = None

    @property
    def hidden(self) -> str | None:
        """What of its state cannot be read, if anything."""
        hidden = self.now.reach.hidden
        return None if hidden is None else f"{self.now.reach.path(hidden)} is an iterator, or too large"

    @property
    def undecided(self) -> bool:
        """Whether it is open if what its first call changed matters."""
        return self.why is not None

    def asked(self) -> None:
        """The pipeline calls the denoiser, and may have changed it since the latest call."""
        self._current = False

    def begin(self) -> None:
        """The denoiser itself is about to be called."""
        if not self._current:
            self.now = self.now.current(self._logs)
        self._random = self._random.current()
        self._current = False

    def end(self, alone: bool = True) -> str | None:
        """The call is over.

        Args:
            alone: whether it was for one step.

        Returns:
            What it changed, if anything that may matter.
        """
        first = alone and not self.called
        self.called |= alone
        if not self._random.unchanged:
            return "it draws random numbers"
        if self.now.unchanged:
            return None
        then, now = self.now, self.now.retaken(self._logs)
        changes = then.changes(now)
        if self._are_logs(then, now, changes):
            self.now = now.retaken(self._logs) if changes else now
            return None
        why = f"a call changes {then.reach.path(changes[0])}"
        if not first:
            return why
        self.why, self._before, self.now = why, then, now
        return None

    def empty(self) -> bool:
        """Take away what its first call left; whether that was possible."""
        self._after = self.now
        return self._before is not None and self._before.restore()

    def refill(self, equal: bool) -> str | None:
        """The call was made without what the first one left: put that back.

        Args:
            equal: whether its output was the same.

        Returns:
            What its first call changed, if that matters; None if any call leaves the same.
        """
        assert self._after is not None
        equal = equal and self._random.unchanged and not self._after.changes(self._after.retaken(self._logs))
        why, self._before, self.now = self.why, None, self._after
        if not self.restore():
            equal = False
        self.why = None if equal else why
        return self.why

    def restore(self) -> bool:
        """Undo what a call changed; whether that was possible."""
        return all([self._random.restore(), self.now.restore()])

    def same_as(self, then: Snapshot) -> bool:
        """Whether its state is what it was then."""
        if then.unchanged:
            self._current = then is self.now
            return True
        now = then.retaken(self._logs)
        return self._are_logs(then, now, then.changes(now))

    def _are_logs(self, then: Snapshot, now: Snapshot, changes: list[Holder]) -> bool:
        """Whether changes are only to logs; those are ignored from now on."""
        logs = logs_in(then.reach, now.reach, changes)
        if logs is None:
            return False
        self._logs |= logs
        return True


class Watch:
    """All denoisers of a run."""

    def __init__(self) -> None:
        self._watched: dict[nn.Module, WatchedDenoiser] = {}

    def of(self, module: nn.Module) -> WatchedDenoiser:
        """The denoiser that the pipeline calls, watched from its first call on."""
        if module not in self._watched:
            self._watched[module] = WatchedDenoiser(module)
        self._watched[module].asked()
        return self._watched[module]

    def restore(self) -> bool:
        """Put all back to before their first call; whether that was possible."""
        return all([watched.first.restore() for watched in self._watched.values()])
