"""Picard iteration, with a scalar secant."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from picardsolve.collocation.arrays import Array, Arrays
from picardsolve.collocation.flight import Correction, Flight, Memory, Nothing
from picardsolve.collocation.initial_value import InitialValueProblem, Limits
from picardsolve.collocation.nodes import Nodes
from picardsolve.collocation.sweeps import Choice, Followers, SegmentSweep

_STEEP = 0.5  # of length times slope: below it a secant is not worth its solve


@dataclass
class SecantMemory(Memory):
    """What a secant keeps.

    Attributes:
        arrays: of the others.
        drift: ``(K, n, d)`` at the nodes, in the round before.
        moved: ``(K, n, d)`` the last change of the states.
        slope: ``(K,)`` of the drift along the last change.
    """

    arrays: Arrays
    drift: Array
    moved: Array
    slope: Array

    def take(self, index: np.ndarray) -> "SecantMemory":
        """That of some of the segments."""
        return SecantMemory(
            self.arrays, *(self.arrays.take(part, index) for part in (self.drift, self.moved, self.slope))
        )

    def joined(self, others: "Sequence[SecantMemory]") -> "SecantMemory":  # pyright: ignore
        """This, and that of other segments behind it."""
        parts = [(each.drift, each.moved, each.slope) for each in (self, *others)]
        return SecantMemory(self.arrays, *(self.arrays.concat(part) for part in zip(*parts, strict=True)))


class PicardSweep(SegmentSweep):
    """``Y = start + h A F``; with the slope c of a segment's drift along its last change, ``(1 - h c A)^-1`` of it.

    The slope is the scalar secant ``<dX, dF> / <dX, dX>`` of the last two rounds, in tolerances. For second-order
    equations velocities come first, and positions are integrated from the new velocities.
    """

    patience, settled, eager, quadratic = 60, 20, 0.1, False

    def __init__(self, nodes: Nodes, problem: InitialValueProblem, limits: Limits, name: Choice):
        self.nodes, self.arrays, self.name = nodes, problem.arrays, name
        self._problem, self._limits = problem, limits
        self._secant = name == "secant" and not problem.second_order

    def blank(self, count: int) -> Memory:
        """Zeros."""
        if not self._secant:
            return Nothing()
        numbers = self.arrays.zeros(count, self.nodes.n, self._problem.numbers)
        return SecantMemory(self.arrays, numbers, numbers, self.arrays.zeros(count))

    def sweep(self, flight: Flight, drift: Array, beside: Array | None) -> Correction:
        """The correction."""
        residual = flight.residuals(self.arrays, self.nodes, drift)
        if self._problem.second_order:
            return self._velocities_first(flight, residual)
        correction = self._damped(flight, residual, drift) if self._secant else None
        if correction is None:
            carried = flight.chains.carried(self.arrays, flight.jumps(self.arrays) + residual[:, -1])
            correction = Correction(residual + carried[:, None], carried)
        if self._secant:
            flight.memory = SecantMemory(self.arrays, drift, correction.states, self._slope)
        return correction

    def _slopes(self, flight: Flight, drift: Array) -> Array:
        """The slope of every segment."""
        arrays, memory = self.arrays, flight.memory
        assert isinstance(memory, SecantMemory)
        known = flight.age > 0
        if not known.any():
            return memory.slope
        states = flight.states
        largest = arrays.larger(arrays.peak(states), arrays.size(flight.starts))
        allowed = self._limits.allowed(largest, flight.sample)[:, None]
        moved, turned, large = memory.moved / allowed, (drift - memory.drift) / allowed, states / allowed
        size, along, large = ((one * other).reshape(len(known), -1).sum(1) for one, other in (
            (moved, moved), (moved, turned), (large, large)
        ))  # fmt: skip
        h = arrays.array(flight.h)
        slopes = arrays.clip(along / size, -30 / h, 1 / h)
        tells = arrays.array(known) & (size > 1e-18 * large)  # a change at the level of rounding tells nothing
        return arrays.where(tells & (slopes == slopes), slopes, memory.slope)

    def _damped(self, flight: Flight, residual: Array, drift: Array) -> Correction | None:
        """With the slopes; None where none is steep."""
        arrays, n = self.arrays, self.nodes.n
        self._slope = self._slopes(flight, drift)
        slopes = arrays.array(flight.h) * self._slope
        steep = arrays.size(slopes) > _STEEP
        which = arrays.may_be(steep)
        if not len(which):
            return None
        slopes = arrays.where(steep, slopes, 0.0)
        own = residual if len(which) == len(flight) else arrays.take(residual, which)
        ones = arrays.zeros(len(which), n, 1) + 1
        own_slopes = arrays.take(slopes, which)[:, None, None]
        matrix = arrays.constant(_identity(n)) - own_slopes * arrays.constant(self.nodes.integrate)
        answers = arrays.solve(matrix, arrays.concat([own, ones], 2))
        change, response = answers[..., :-1], answers[..., -1:]
        if len(which) < len(flight):
            change = arrays.put(residual, which, change)
            response = arrays.put(arrays.zeros(len(flight), n, 1) + 1, which, response)
        carried = flight.chains.carried(arrays, flight.jumps(arrays) + change[:, -1], response[:, -1])
        return Correction(change + response * carried[:, None], carried, residual + carried[:, None])

    def _velocities_first(self, flight: Flight, residual: Array) -> Correction:
        arrays, half, jumps = self.arrays, residual.shape[-1] // 2, flight.jumps(self.arrays)
        h = arrays.array(flight.h)[:, None, None]

        def carry(part: Array, jump: Array) -> tuple[Array, Array]:
            """Move each start to where the segment before ends now."""
            carried = flight.chains.carried(arrays, jump + part[:, -1])
            return part + carried[:, None], carried

        velocities, of_velocities = carry(residual[..., half:], jumps[:, half:])
        moved = residual[..., :half] + h * (arrays.constant(self.nodes.integrate) @ velocities)
        positions, of_positions = carry(moved, jumps[:, :half])
        return Correction(arrays.concat([positions, velocities], 2), arrays.concat([of_positions, of_velocities], 1))

    def follow(self, flight: Flight, new: Followers, limits: Limits) -> tuple[Array, Array, Memory]:
        """The guess is the parabola through the last three points."""
        arrays, behind = self.arrays, new.behind
        states = arrays.take(flight.states, behind)
        places = 1 + (new.h / flight.h[behind])[:, None] * self.nodes.c
        guess = arrays.array(self.nodes.extrapolate(places, 3)) @ states[:, -3:]
        memory = self.blank(len(behind))
        if isinstance(memory, SecantMemory) and isinstance(flight.memory, SecantMemory):
            memory = SecantMemory(arrays, memory.drift, memory.moved, arrays.take(flight.memory.slope, behind))
        return states[:, -1], guess, memory

    def remainder(self, stale: np.ndarray) -> float:
        """A tenth where a secant damped; else 0, for the rate of the changes tells."""
        return 0.1 if self._secant else 0.0


@lru_cache
def _identity(n: int) -> np.ndarray:
    return np.eye(n)
