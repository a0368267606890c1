"""The pipeline's scheduler kept in step, while a table takes its steps.

A table gives the states, and leaves the scheduler where it was. Its numbers (how many steps were taken) are put forward
with every step; what it remembers of states and outputs is made up for when it is needed, by its own last steps. What
it remembers of all steps is computed from the latest ones.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state import immutable, version
from picardsolve.integrations.diffusers.scheduler.copied_steps import PATCHED, copy_of
from picardsolve.integrations.diffusers.scheduler.endless_memory import with_states
from picardsolve.integrations.diffusers.scheduler.noise_tape import NoiseTape
from picardsolve.integrations.diffusers.scheduler.probe import LAGS, Probe


@dataclass(frozen=True)
class Taken:
    """The arguments of a step."""

    output: Tensor
    timestep: Any
    sample: Tensor
    extra: dict[str, Any]


@dataclass
class Bookkeeping:
    """Puts a scheduler forward over steps that a table has taken.

    Attributes:
        scheduler: the pipeline's own.
        step: its ``step``.
        probe: a copy of it before every step; None where its steps change nothing in it.
        behind: steps that it does not know of yet.
    """

    scheduler: Any
    step: Callable[..., Any]
    probe: Probe | None
    behind: int = field(init=False, default=0)
    _latest: deque[Taken] = field(init=False)
    _seen: list[tuple[Any, int | None]] = field(init=False, default_factory=list)

    def __post_init__(self):
        self._latest = deque(maxlen=self._reach)
        self._look()

    @property
    def _reach(self) -> int:
        """Number of steps that tell all that the scheduler remembers of states and outputs."""
        if self.probe is None:
            return 1
        if self.probe.table.on_path:
            return self.probe.remembered + 1
        kept = [value for value in vars(self.probe.stage(len(self.probe.scales))).values() if isinstance(value, list)]
        return max([self.probe.table.lags + 1, *(len(value) for value in kept if _has_states(value, self.probe.unit))])

    @property
    def untouched(self) -> bool:
        """Whether nobody but its own steps has changed the scheduler."""
        now = vars(self.scheduler).values()
        return len(now) == len(self._seen) and all(
            value is then and (not isinstance(value, Tensor) or version(value) == written)
            for value, (then, written) in zip(now, self._seen, strict=True)
        )

    def took(self, taken: Taken) -> None:
        """The scheduler has taken a step itself."""
        self._latest.append(taken)
        self._look()

    def skip(self, n: int, taken: Taken) -> None:
        """A table has taken step ``n``: put the scheduler's numbers forward."""
        self._latest.append(taken)
        if self.probe is None:
            return
        self.behind += 1
        for name, value in vars(self.probe.stage(n + 1)).items():
            if name not in PATCHED and immutable(value):
                self.scheduler.__dict__[name] = value
        self._look()

    def catch_up(self, n: int) -> None:
        """Let the scheduler be what it would be before step ``n``, had it taken all steps itself."""
        if self.probe is not None and self.behind:
            self._take_latest(self.scheduler, n)
            self.behind = 0
            self._look()

    def again(self, n: int, own: Tensor) -> Any:
        """The result of step ``n - 1``, the latest, by a copy of the scheduler."""
        return self._take_latest(copy_of(self.scheduler, own), n)

    def _take_latest(self, scheduler: Any, n: int) -> Any:
        latest, stepped, step = list(self._latest), None, type(scheduler).step
        before = 0 if self.probe is None or not self.probe.table.on_path else len(latest) - 1
        before, latest = latest[:before], latest[before:]
        self._stand(scheduler, n - len(latest), latest[0].sample, before)
        tape = NoiseTape.of(latest[0].extra.get("generator"), latest[0].sample.device)
        with tape.ahead():  # the noise of these steps was drawn when the table took them
            for taken in latest:
                stepped = step(scheduler, taken.output, taken.timestep, taken.sample, **taken.extra)
        return stepped

    def _stand(self, scheduler: Any, n: int, like: Tensor, before: list[Taken]) -> None:
        """Put a scheduler to step ``n``; what it remembers is told by the steps before, and zero without any."""
        if self.probe is None:
            return
        unit, then = self.probe.unit, vars(self.probe.stage(n))
        for name in vars(self.probe.stage(len(self.probe.scales))):
            if name not in then:  # it will get this attribute in a later step
                scheduler.__dict__.pop(name, None)
            elif name not in PATCHED and name != "timesteps" and _moves(then[name], unit):
                scheduler.__dict__[name] = with_states(then[name], unit, lambda part: _told(part, like, before))

    def _look(self) -> None:
        self._seen = [
            (value, version(value) if isinstance(value, Tensor) else None) for value in vars(self.scheduler).values()
        ]


def bookkeeping(scheduler: Any, step: Callable[..., Any], probe: Probe | None) -> Bookkeeping | None:
    """The bookkeeping of a scheduler; None where its attributes are not of kinds that can be put forward."""
    if getattr(step, "__func__", None) is not type(scheduler).step:
        return None
    if probe is None:
        return Bookkeeping(scheduler, step, probe)
    if not probe.complete:
        return None
    start, end = (vars(probe.stage(n)) for n in (0, len(probe.scales)))
    known = start.keys() <= end.keys() and all(
        _known(start.get(name), value, probe.unit) for name, value in end.items()
    )
    return Bookkeeping(scheduler, step, probe) if known else None


def _known(first: Any, last: Any, unit: torch.Size) -> bool:
    """Whether an attribute is of a kind that can be put forward, from what it is at first and at last."""
    if isinstance(first, Tensor) and isinstance(last, Tensor) and not _moves(first, unit):  # a table of the scheduler
        return torch.equal(first, last)
    if isinstance(first, np.ndarray) and isinstance(last, np.ndarray):
        return np.array_equal(first, last)
    return first is last or (_moves(first, unit) and _moves(last, unit))


def _moves(value: Any, unit: torch.Size) -> bool:
    """Whether an attribute is a number, a state or an output, or a list of these."""
    if isinstance(value, list):
        return all(_moves(part, unit) for part in value)
    return value.shape in (unit, ()) if isinstance(value, Tensor) else immutable(value)


def _has_states(value: list[Any], unit: torch.Size) -> bool:
    return any(isinstance(part, Tensor) and part.shape == unit for part in value)


def _told(weights: Tensor, like: Tensor, before: list[Taken]) -> Tensor:
    """The sum over the steps before, by the weights of a probe's stage."""
    total = torch.zeros_like(like)
    if before:
        x, o = weights.flatten()[: 2 * LAGS].reshape(2, LAGS).tolist()
        for taken, own, given in zip(reversed(before), x[1:], o[1:], strict=False):
            total.add_(taken.sample, alpha=own).add_(taken.output, alpha=given)
    return total
