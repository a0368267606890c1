"""The segments that passed their check, of all samples of a march."""

from dataclasses import dataclass, field, fields

import numpy as np

from picardsolve.collocation.arrays import Array, Arrays
from picardsolve.collocation.checked_segment import CheckedSegment
from picardsolve.collocation.nodes import Nodes


@dataclass(frozen=True)
class Segments:
    """Segments that passed their check.

    Attributes:
        sample: ``(S,)``.
        t, h: ``(S,)`` elapsed time at their begins, and their lengths.
        values: at the points that their polynomials go through, ``(S, points, d)``.
        flow: derivative of the end with respect to the start, ``(S, d, d)``; None where not known.
        error: ``(S, d)`` the estimated error of the end, for an exact start.
        noise: ``(S, d)`` the error of the end from rounding.
        scale: ``(S, d)`` the largest values of the components.
    """

    sample: np.ndarray
    t: np.ndarray
    h: np.ndarray
    values: Array
    flow: Array | None
    error: Array
    noise: Array
    scale: Array

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def end(self) -> np.ndarray:
        """Elapsed time at their ends."""
        return self.t + self.h

    def one_by_one(self, arrays: Arrays, nodes: Nodes) -> list[CheckedSegment]:
        """Each by itself, on the host."""
        (values,) = arrays.fetch(self.values)
        parts = zip(self.t.tolist(), self.h.tolist(), values, strict=True)
        return [CheckedSegment(t, h, nodes, own) for t, h, own in parts]

    def take(self, arrays: Arrays, index: np.ndarray) -> "Segments":
        """Some of them."""
        host = (part[index] for part in (self.sample, self.t, self.h))
        others = (self.values, self.flow, self.error, self.noise, self.scale)
        return Segments(*host, *(None if part is None else arrays.take(part, index) for part in others))


@dataclass
class Accepted:
    """The accepted segments of a march, as they come.

    Attributes:
        arrays: of the states.
        reached: ``(B,)`` elapsed time up to which segments are accepted.
        count: ``(B,)`` how many there are.
    """

    arrays: Arrays
    reached: np.ndarray
    count: np.ndarray
    _blocks: list[Segments] = field(default_factory=list)
    _unread: int = 0

    @staticmethod
    def of(arrays: Arrays, samples: int) -> "Accepted":
        """None."""
        return Accepted(arrays, np.zeros(samples), np.zeros(samples, int))

    def add(self, new: Segments) -> None:
        """Segments in the order of time, by sample."""
        self._blocks.append(new)
        np.maximum.at(self.reached, new.sample, new.end)
        np.add.at(self.count, new.sample, 1)

    def unread(self, nodes: Nodes) -> list[CheckedSegment]:
        """Those that were added since this was called last, one by one."""
        new, self._unread = self._blocks[self._unread :], len(self._blocks)
        return [segment for block in new for segment in block.one_by_one(self.arrays, nodes)]

    def forget(self, sample: np.ndarray) -> None:
        """Drop all segments of some samples."""
        self.reached[sample], self.count[sample] = 0.0, 0
        gone = np.zeros(len(self.count), bool)
        gone[sample] = True
        kept = [(block, np.flatnonzero(~gone[block.sample])) for block in self._blocks]
        self._blocks = [
            block if len(index) == len(block) else block.take(self.arrays, index) for block, index in kept if len(index)
        ]

    def all(self) -> Segments | None:
        """All of them, by sample, in the order of time; None where there are none."""
        if not self._blocks:
            return None
        if len(self._blocks) > 1:
            self._blocks = [_joined(self.arrays, self._blocks)]
        return self._blocks[0]

    def of_samples(self, sample: np.ndarray) -> Segments | None:
        """Those of some samples."""
        every = self.all()
        if every is None:
            return None
        wanted = np.zeros(len(self.count), bool)
        wanted[sample] = True
        index = np.flatnonzero(wanted[every.sample])
        return every if len(index) == len(every) else every.take(self.arrays, index)


def _joined(arrays: Arrays, blocks: list[Segments]) -> Segments:
    names = [each.name for each in fields(Segments)]
    host = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in names[:3]}
    others = {}
    for name in names[3:]:
        parts = [getattr(block, name) for block in blocks]
        others[name] = None if parts[0] is None else arrays.concat(parts)
    together = Segments(**host, **others)
    order = np.argsort(together.sample, kind="stable")
    return together if (order[1:] > order[:-1]).all() else together.take(arrays, order)
