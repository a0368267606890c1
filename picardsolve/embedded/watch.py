"""Terminal events that are seen during a march, so that it need not go on to the end of the span."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from picardsolve.problem.events import Event, EventFunction
from picardsolve.problem.index import on_device
from picardsolve.problem.row_function import RowFunction

_EVERY = 4  # steps: events are looked for at the nodes of so many together


@dataclass
class Watch:
    """The signs of terminal events at the nodes of a march; where exactly they happen is found once it is over.

    Attributes:
        events: terminal ones.
        function: the drift, which knows the samples' arguments.
    """

    events: Sequence[Event]
    function: RowFunction
    _nodes: list[tuple[np.ndarray, np.ndarray, Tensor, np.ndarray]] = field(default_factory=list)
    _last: np.ndarray = field(init=False)
    _counts: np.ndarray = field(init=False)

    def __post_init__(self):
        shape = len(self.events), self.function.layout.batch
        self._last, self._counts = np.full(shape, np.nan), np.zeros(shape, np.int64)

    @staticmethod
    def of(events: Sequence[Event], function: RowFunction) -> "Watch | None":
        """For the terminal ones among events; None where there are none."""
        terminal = [event for event in events if event.count is not None]
        return Watch(terminal, function) if terminal else None

    def add(self, sample: np.ndarray, t: np.ndarray, y: Tensor, keep: np.ndarray) -> np.ndarray | None:
        """Take nodes, ``(R,)`` and ``(R, D)``; now and then says which samples are over, ``(B,)``, otherwise None."""
        self._nodes.append((sample, t, y.detach(), keep))
        if len(self._nodes) < _EVERY:
            return None
        samples, times, rows, kept = zip(*self._nodes, strict=True)
        self._nodes = []
        place = np.flatnonzero(np.concatenate(kept))
        sample = np.concatenate(samples)[place]
        order = np.argsort(sample, kind="stable")
        place, sample = place[order], sample[order]
        states = torch.cat(rows).index_select(0, on_device(place, y.device)).cpu().numpy().astype(float)
        return self._seen(sample, np.concatenate(times)[place], states)

    def _seen(self, sample: np.ndarray, t: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Samples whose event has happened, from nodes ``(k,)`` in the order of samples and times."""
        function, first = self.function, np.diff(sample, prepend=-1) != 0
        last = np.diff(sample, append=-1) != 0
        args, dims = function.args_of_rows(sample)
        for e, event in enumerate(self.events):
            values = EventFunction(event, function.layout, function.clock, args, dims)(t, states)
            before = np.where(first, self._last[e, sample], np.roll(values, 1))
            happens = event.happens(before, values) & (before != 0)
            np.add.at(self._counts[e], sample[happens], 1)
            self._last[e, sample[last]] = values[last]
        counts = np.array([event.count for event in self.events])
        return np.logical_or.reduce(self._counts >= counts[:, None])
