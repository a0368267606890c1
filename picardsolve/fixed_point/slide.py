"""How a window moves on after a round: which rows it takes along, and which states it must guess."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from picardsolve.fixed_point.placement import Pick, alike, behind, remembered, sent
from picardsolve.integrators.base import Index
from picardsolve.problem.index import DeviceIndex


@dataclass(frozen=True)
class Slide:
    """The move of a window of W steps of B samples on a grid. Arrays are ``(B,)``.

    Attributes:
        begin: the first step of each sample's window.
        accepted: steps that the window moves on by.
        kept: the next window begins with the states up to number ``kept`` of this one.
        left: steps before the end of the grid, after the move; 0 for samples that failed.
        rows: W.
        widest: most steps of the next window.
        length: steps of the grid.
        memory: how many outputs before the window are known.
    """

    begin: Index
    accepted: Index
    kept: Index
    left: Index
    rows: int
    widest: Index
    length: int
    memory: int

    @cached_property
    def width(self) -> int:
        """Most steps that a sample has in the next window."""
        return int(np.minimum(self.widest, self.left).max())

    @cached_property
    def known(self) -> Index:
        """How many states of the next window are known, beside its first."""
        return np.where(self.left > 0, self.kept - self.accepted, self.width)

    @cached_property
    def missing(self) -> int:
        """How many states enter at most."""
        return max(self.width - int(self.known.min()), 0)

    @property
    def wanted(self) -> Index:
        """How many states of each sample enter."""
        return np.maximum(np.minimum(self.widest, self.left) - self.known, 0)

    @cached_property
    def before(self) -> int:
        """How many old states stand before the new ones where the next window's states are picked: 1 or 0."""
        return int(self.accepted.min() == 0)

    @property
    def first(self) -> Index:
        """The row of the next window's first state."""
        return self.accepted - 1 + self.before

    # ---- where rows are found

    @cached_property
    def n(self) -> DeviceIndex:
        """The steps that lead to the states that enter, ``(missing, B)``; ``(missing, 1)`` where samples are alike."""
        return steps_from(self.begin + self.accepted + self.known, self.missing, self.length)

    @cached_property
    def evaluated(self) -> DeviceIndex:
        """The step of the last evaluation that is kept, ``(1, B)`` or ``(1, 1)``."""
        return steps_from(self.begin + self._last, 1, self.length)

    @property
    def _last(self) -> Index:
        return np.maximum(self.kept - 1, 0)

    @cached_property
    def state(self) -> Pick:
        """The state of that evaluation."""
        return Pick.from_(self._last, 1, self.rows + 1)

    @cached_property
    def output(self) -> Pick:
        """The output of that evaluation."""
        return Pick.from_(self.memory + self._last, 1, self.memory + self.rows)

    @cached_property
    def past(self) -> Pick:
        """The outputs of the steps before the next window."""
        return Pick.from_(self.accepted, self.memory, self.memory + self.rows)

    @cached_property
    def remembered(self) -> Pick:
        """What the iteration remembers."""
        return remembered(self.accepted, self.kept, int(self.widest.max()), self.rows)

    @cached_property
    def start(self) -> Pick:
        """The last known state."""
        return Pick.from_(self.first + self.known, 1, self.rows + self.before)

    @cached_property
    def noise(self) -> Pick:
        """The increments of the steps that lead to the states that enter."""
        return Pick.from_(self.known, self.missing, int(self.known.max()) + self.missing)

    @cached_property
    def states(self) -> Pick:
        """The states of the next window, among those that are known and, behind them, those that enter."""
        rows = self.rows + self.before
        if not self.missing:
            return Pick.from_(self.first, self.width + 1, rows)
        if alike(self.first) and alike(self.known):
            return Pick.from_(self.first, int(self.known[0]) + 1, rows)
        return behind(self.first, self.known, self.width + 1, rows, self.missing)

    @cached_property
    def written(self) -> tuple[DeviceIndex, DeviceIndex]:
        """Where accepted states are among all new ones, and their places in the path of all steps."""
        row, sample = np.nonzero(np.arange(self.rows)[:, None] < self.accepted)
        samples = len(self.accepted)
        to = (self.begin[sample] + 1 + row) * samples + sample
        return (row * samples + sample).view(DeviceIndex), to.view(DeviceIndex)

    @property
    def together(self) -> bool:
        """Whether samples stand alike, before and after."""
        return alike(self.accepted) and alike(self.begin)

    def sent(self, device: torch.device, path: bool, increments: Pick | None) -> "Slide":
        """This move, with all indices that the device needs sent there in one copy."""
        picks = [self.remembered, self.states]
        picks += [self.start, self.state, self.output] if self.missing else []
        picks += [self.past] if self.memory else []
        picks += [] if increments is None else [increments]
        picks += [self.noise] if increments is not None and self.missing else []
        more = [self.n, self.evaluated] if self.missing else []
        more += self.written if path and not self.together else []
        sent(device, picks, more)
        return self


def steps_from(first: Index, count: int, length: int) -> DeviceIndex:
    """``(count, B)`` the steps from each first one; ``(count, 1)`` where all samples stand alike.

    Beyond the end of the grid the last step repeats.
    """
    first = first[:1] if alike(first) else first
    return np.minimum(first + np.arange(count)[:, None], length - 1).view(DeviceIndex)
