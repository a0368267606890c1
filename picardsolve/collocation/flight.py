"""All segments in flight of all samples side by side: their states, and what a sweep adds to them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from picardsolve.collocation.arrays import Array, Arrays
from picardsolve.collocation.chains import Chains
from picardsolve.collocation.linearization import Linearization
from picardsolve.collocation.nodes import Nodes


class Memory(ABC):
    """What an iteration keeps of segments from round to round."""

    @property
    def equations(self) -> Linearization | None:
        """The linearised equations of the segments; None for an iteration without Jacobians."""
        return None

    @abstractmethod
    def take(self, index: np.ndarray) -> "Memory":
        """That of some of the segments."""

    def without(self, stale: np.ndarray) -> "Memory":
        """Without the linearised equations of segments that will be linearised again, ``(K,)``."""
        return self

    @abstractmethod
    def joined(self, others: "Sequence[Memory]") -> "Memory":
        """This, and that of other segments behind it."""


class Nothing(Memory):
    """Of an iteration that keeps nothing."""

    def take(self, index: np.ndarray) -> "Memory":
        """Itself."""
        return self

    def joined(self, others: Sequence[Memory]) -> "Memory":
        """Itself."""
        return self


@dataclass
class Flight:
    """K segments, sample by sample, in the order of time. What decisions are made by lies on the host.

    Attributes:
        sample: ``(K,)``.
        t: ``(K,)`` elapsed time at their begins.
        h: ``(K,)`` their lengths.
        age: ``(K,)`` rounds since they were made.
        change: ``(K,)`` the size of the last change, in tolerances.
        stale: ``(K,)`` whether the next round linearises again.
        starts: ``(K, d)`` the states at their begins.
        states: ``(K, n, d)`` at the nodes.
        memory: of the iteration.
    """

    sample: np.ndarray
    t: np.ndarray
    h: np.ndarray
    age: np.ndarray
    change: np.ndarray
    stale: np.ndarray
    starts: Array
    states: Array
    memory: Memory

    @staticmethod
    def new(sample: np.ndarray, t: np.ndarray, h: np.ndarray, starts: Array, states: Array, memory: Memory) -> "Flight":
        """Segments that no round has changed."""
        count = len(sample)
        unknown, true = np.full(count, np.inf), np.ones(count, bool)
        return Flight(sample, t, h, np.zeros(count, int), unknown, true, starts, states, memory)

    def __len__(self) -> int:
        return len(self.sample)

    @cached_property
    def chains(self) -> Chains:
        """The order of the segments."""
        return Chains(self.sample)

    @property
    def end(self) -> np.ndarray:
        """``(K,)`` elapsed time at their ends."""
        return self.t + self.h

    def times(self, places: np.ndarray) -> np.ndarray:
        """Elapsed times ``(K, places)`` at places of [0, 1] in the segments."""
        return self.t[:, None] + self.h[:, None] * places

    def values(self, arrays: Arrays, nodes: Nodes) -> Array:
        """At the points that their polynomials go through, ``(K, points, d)``."""
        return self.states if nodes.c[0] == 0 else arrays.concat([self.starts[:, None], self.states], 1)

    def take(self, arrays: Arrays, index: np.ndarray) -> "Flight":
        """Some of the segments."""
        names = "sample", "t", "h", "age", "change", "stale"
        host = {name: getattr(self, name)[index] for name in names}
        states = {name: arrays.take(getattr(self, name), index) for name in ("starts", "states")}
        return Flight(**host, **states, memory=self.memory.take(index))

    def without(self, arrays: Arrays, gone: np.ndarray) -> "Flight | None":
        """Without those of samples that are ``gone``, ``(B,)``; None where none is left."""
        kept = np.flatnonzero(~gone[self.sample])
        return self if len(kept) == len(self) else self.take(arrays, kept) if len(kept) else None

    @staticmethod
    def in_order(arrays: Arrays, parts: "Sequence[Flight]") -> "Flight":
        """Segments of several flights, sample by sample."""
        together = parts[0]
        if len(parts) > 1:
            names = "sample", "t", "h", "age", "change", "stale"
            host = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
            states = {name: arrays.concat([getattr(part, name) for part in parts]) for name in ("starts", "states")}
            memory = together.memory.joined([part.memory for part in parts[1:]])
            together = Flight(**host, **states, memory=memory)
        order = np.lexsort((together.t, together.sample))
        return together if (order[1:] > order[:-1]).all() else together.take(arrays, order)

    def jumps(self, arrays: Arrays) -> Array:
        """``(K, d)``: the end of each segment less the start of the next; of a sample's last one it means nothing."""
        return self.states[:, -1] - arrays.concat([self.starts[1:], self.starts[:1]])

    def residuals(self, arrays: Arrays, nodes: Nodes, drift: Array) -> Array:
        """``start + h A F - X``, ``(K, n, d)``."""
        h = arrays.array(self.h)[:, None, None]
        return h * (arrays.constant(nodes.integrate) @ drift) + self.starts[:, None] - self.states


@dataclass(frozen=True)
class Correction:
    """What a sweep adds to the states of the segments in flight.

    Attributes:
        states: ``(K, n, d)`` what is added to the states at the nodes.
        starts: ``(K, d)`` what is added to the starts.
        undamped: ``(K, n, d)`` the same without the damping of a secant, where that may be more; None: not damped.
    """

    states: Array
    starts: Array
    undamped: Array | None = None
