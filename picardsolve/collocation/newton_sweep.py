"""Newton's method on segments."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from picardsolve.collocation.arrays import Array
from picardsolve.collocation.dense_linearization import DenseLinearization
from picardsolve.collocation.finite_differences import Differences
from picardsolve.collocation.flight import Correction, Flight, Memory
from picardsolve.collocation.initial_value import Limits
from picardsolve.collocation.linearization import Linearization
from picardsolve.collocation.nodes import Nodes
from picardsolve.collocation.panels import PanelLinearization, points, to_points
from picardsolve.collocation.sweeps import Choice, Followers, Rows, SegmentSweep


@dataclass
class LinearMemory(Memory):
    """The linearised equations of the segments that have some.

    Attributes:
        linear: of several segments; None: of none.
        at: ``(K,)`` which of them is a segment's; -1: none is.
    """

    linear: Linearization | None
    at: np.ndarray

    @property
    def equations(self) -> Linearization | None:
        """Those of the segments, where each has some."""
        return self.linear

    def take(self, index: np.ndarray) -> "LinearMemory":
        """That of some of the segments."""
        at = self.at[index]
        used = at >= 0
        if self.linear is None or not used.any():
            return LinearMemory(None, np.full(len(at), -1))
        now = np.where(used, np.cumsum(used) - 1, -1)
        at = at[used]
        every = len(at) == len(self.linear.h) and bool((at[1:] > at[:-1]).all())
        return LinearMemory(self.linear if every else self.linear.take(at), now)

    def without(self, stale: np.ndarray) -> "LinearMemory":
        """Without those of segments that will be linearised again."""
        return replace(self, at=np.where(stale, -1, self.at))

    def joined(self, others: "Sequence[LinearMemory]") -> "LinearMemory":  # pyright: ignore
        """This, and that of other segments behind it; only one of them has equations."""
        parts = self, *others
        linear = next((part.linear for part in parts if part.linear is not None), None)
        return LinearMemory(linear, np.concatenate([part.at for part in parts]))


class NewtonSweep(SegmentSweep):
    """Newton's method, with Jacobians from finite differences whose rows are evaluated in the same round.

    Once changes are small a segment keeps its Jacobians, and what was computed from them.

    Args:
        nodes: of the segments.
        differences: how Jacobians are taken.
        name: "newton": Jacobians at every node, for a `DenseLinearization`. "panels": at a few points, for a
            `PanelLinearization`.
    """

    settled, eager, quadratic = 4, 0.7, True

    def __init__(self, nodes: Nodes, differences: Differences, name: Choice):
        self.nodes, self.differences, self.name = nodes, differences, name
        self.arrays, self._panels = differences.arrays, name == "panels"
        self._kind: type[PanelLinearization | DenseLinearization] = (
            PanelLinearization if self._panels else DenseLinearization
        )
        self.patience = 20 if self._panels else 12

    def blank(self, count: int) -> LinearMemory:
        """None."""
        return LinearMemory(None, np.full(count, -1))

    def _beside(self, flight: Flight) -> Rows | None:
        """Rows of the segments that are to be linearised again."""
        which = np.flatnonzero(flight.stale)
        if not len(which):
            return None
        arrays, every = self.arrays, len(which) == len(flight)
        states = flight.values(arrays, self.nodes) if self._panels else flight.states
        states = states if every else arrays.take(states, which)
        if self._panels:
            states = arrays.constant(to_points(self.nodes)) @ states
        self._at = states
        self.linearizations += len(which)
        rows, self._steps = self.differences.rows(states, flight.sample[which], self._panels)
        times, moves = (
            flight.times(points(self.nodes) if self._panels else self.nodes.c)[which],
            self.differences.moves(self._panels),
        )
        return np.repeat(times.ravel(), moves), rows, np.repeat(flight.sample[which], times.shape[1] * moves)

    def sweep(self, flight: Flight, drift: Array, beside: Array | None) -> Correction:
        """The correction."""
        arrays = self.arrays
        linear = self._linearized(flight, drift, beside)
        residual, jumps = flight.residuals(arrays, self.nodes, drift), flight.jumps(arrays)
        change, carried = linear.through(flight.chains, residual, jumps)
        self._end_drift = drift[:, -1] + linear.at_end(change[:, -1])
        return Correction(change, carried)

    def _linearized(self, flight: Flight, drift: Array, beside: Array | None) -> Linearization:
        """The equations of all segments in order; what is stale is linearised."""
        arrays, which = self.arrays, np.flatnonzero(flight.stale)
        memory = flight.memory
        assert isinstance(memory, LinearMemory)
        old, kept = memory.linear, len(flight) - len(which)
        linear = memory.take(np.arange(len(flight))).linear if not len(which) else None
        if len(which):
            at = None if self._panels else drift if not kept else arrays.take(drift, which)
            jacobians = self.differences.jacobians(self._steps, at, beside)
            units = self.differences.units(self._at, flight.sample[which])
            lengths, second = arrays.array(flight.h[which]), self.differences.second_order
            linear = self._kind.of(arrays, self.nodes, lengths, jacobians, second, units)
            if kept and old is not None:
                place = np.where(flight.stale, len(old.h) + np.cumsum(flight.stale) - 1, memory.at)
                linear = linear.behind(old).take(place)
        assert linear is not None
        flight.memory = LinearMemory(linear, np.arange(len(flight)))
        return linear

    def follow(self, flight: Flight, new: Followers, limits: Limits) -> tuple[Array, Array, Memory]:
        """The guess is the flow that is linearised at the segment's end; a straight line where that goes too far."""
        arrays, memory = self.arrays, flight.memory
        assert isinstance(memory, LinearMemory)
        assert memory.linear is not None
        ahead = memory.linear.ahead(new.behind, arrays.array(new.h))
        starts, states = [], []
        last = arrays.take(flight.states, new.behind[new.of_level(0)])
        end_drift = arrays.take(self._end_drift, new.behind[new.of_level(0)])
        for level in range(int(new.level[-1]) + 1):
            which = new.of_level(level)
            if level:
                before = new.before[which] - new.of_level(level - 1).start
                last, end_drift = arrays.take(last, before), arrays.take(end_drift, before)
            own = ahead.each(lambda array, which=which: array[which])
            moved = self._moved(own, end_drift, last, arrays.array(new.h[which]), new.sample[which], limits)
            starts.append(last[:, -1])
            last = starts[-1][:, None] + moved
            end_drift = end_drift + own.at_end(moved[:, -1])
            states.append(last)
        return arrays.concat(starts), arrays.concat(states), self.blank(len(new.h))

    def _moved(
        self, ahead: Linearization, drift: Array, last: Array, h: Array, sample: np.ndarray, limits: Limits
    ) -> Array:
        """How far the states of new segments move from their starts, ``(P, n, d)``."""
        arrays = self.arrays
        led = ahead.led(self.nodes, drift)
        straight = h[:, None, None] * arrays.constant(self.nodes.c)[:, None] * drift[:, None]
        largest = arrays.peak(last)
        allowed = limits.allowed(largest, sample)
        far = arrays.largest(arrays.peak(led) / allowed)
        most = 100 * arrays.largest((largest + arrays.size(straight[:, -1])) / allowed)
        return arrays.where((far <= most)[:, None, None], led, straight)

    def remainder(self, stale: np.ndarray) -> np.ndarray:
        """A fiftieth with a new Jacobian at every node, otherwise a tenth."""
        return np.where(stale & (not self._panels), 0.02, 0.1)
