"""The denoisers of a run, watched for memory: what a call changes, and what others change between calls."""

from torch import nn

from picardsolve.integrations.diffusers.mutable_state.logs import logs
from picardsolve.integrations.diffusers.mutable_state.snapshot import Holder, Snapshot, random_generators


class MemoryLost(Exception):
    """A denoiser was called for several steps, and cannot be put back."""


class WatchedDenoiser:
    """One denoiser.

    Attributes:
        module: itself.
        first: what it remembered before its first call.
        now: what it remembered when somebody last looked.
        undecided: whether its first call changed something, and it is open whether that matters.
        why: what that was.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.first = self.now = Snapshot({type(module).__name__: module})
        self.why: str | None = None
        self._unread: frozenset[Holder] = frozenset()
        self._draws = Snapshot(random_generators())
        self._calls = 0
        self._before: Snapshot | None = None
        self._after: Snapshot | None = None

    def begin(self) -> None:
        """It is about to be called."""
        if not self.now.unchanged:
            self.now = self.now.again(self._unread)
        if not self._draws.unchanged:
            self._draws = self._draws.again()

    def end(self, alone: bool = True) -> str | None:
        """It was called: what that changed, if anything that may matter.

        What the first call for one step changes may be a table that any call would have made; `refill` tells.
        """
        self._calls += alone
        if not self._draws.unchanged:
            return "it draws random numbers"
        if self.now.unchanged:
            return None
        then, now = self.now, self.now.again(self._unread)
        changes = then.changed(now)
        if not changes:
            self.now = now
            return None
        unread = logs(then, now, changes)
        if unread is not None:
            self._unread |= unread
            self.now = now.again(self._unread)
            return None
        why = f"a call changes {then.path(changes[0])}"
        if self._calls > 1 or not alone:
            return why
        self.why, self._before, self.now = why, then, now
        return None

    @property
    def undecided(self) -> bool:
        """Whether its first call left something in it of which nothing more is known."""
        return self.why is not None

    @property
    def called(self) -> bool:
        """Whether it has been called for one step."""
        return self._calls > 0

    @property
    def hidden(self) -> str | None:
        """What of it cannot be seen, if anything."""
        return None if self.now.hidden is None else f"{self.now.path(self.now.hidden)} is an iterator, or too large"

    def unfill(self) -> bool:
        """Make it forget its first call; whether that was possible."""
        self._after = self.now
        return self._before is not None and self._before.put_back()

    def refill(self, equal: bool) -> str | None:
        """It was called again without its first call: whether what that left matters, or any call leaves the same.

        Args:
            equal: whether its output was the same.
        """
        assert self._after is not None
        equal = equal and self._draws.unchanged and not self._after.changed(self._after.again(self._unread))
        why, self._before, self.now = self.why, None, self._after
        if not self.put_back():
            equal = False
        self.why = None if equal else why
        return self.why

    def put_back(self) -> bool:
        """Undo what a call changed; whether that was possible."""
        return all([self._draws.put_back(), self.now.put_back()])

    def same_as(self, memory: Snapshot) -> bool:
        """Whether it remembers what it did then."""
        if memory.unchanged:
            return True
        now = memory.again(self._unread)
        changes = memory.changed(now)
        unread = logs(memory, now, changes) if changes else frozenset()
        if unread is None:
            return False
        self._unread |= unread
        return True


class Watch:
    """All denoisers of a run."""

    def __init__(self) -> None:
        self._watched: dict[nn.Module, WatchedDenoiser] = {}

    def of(self, module: nn.Module) -> WatchedDenoiser:
        """The one, from its first call on."""
        if module not in self._watched:
            self._watched[module] = WatchedDenoiser(module)
        return self._watched[module]

    def put_back(self) -> bool:
        """Put all back to before their first call; whether that was possible."""
        return all([watched.first.put_back() for watched in self._watched.values()])
