"""What a round of drifts makes of the segments in flight: Picard with a scalar secant, its cascade, and Newton."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import numpy as np

from picardsolve.collocation.differences import Differences
from picardsolve.collocation.linear import Dense
from picardsolve.collocation.nodes import Nodes
from picardsolve.collocation.panels import SEEN, Panels, through, to_seen
from picardsolve.collocation.segments import Bounds, Flight, Segment

_STEEP = 0.5  # of h times slope: below it, a secant does not pay for its solve


@dataclass(frozen=True)
class Swept:
    """The outcome of a sweep.

    Attributes:
        change: of the states, ``(S, n, d)``.
        carried: of the starts, ``(S, d)``.
        doubt: what the changes would be without damping, where that may be more.
    """

    change: np.ndarray
    carried: np.ndarray
    doubt: np.ndarray | None = None


class Sweep(ABC):
    """An iteration over segments of collocation.

    Attributes:
        patience: rounds that a segment may take.
        settled: rounds after which changes must not grow any more.
        eager: relative change of the last segment in flight below which the next one is started.
        quadratic: whether changes shrink faster and faster.
    """

    patience: int
    settled: int
    eager: float
    quadratic: bool

    def asks(self, flight: Flight) -> tuple[np.ndarray, np.ndarray] | None:
        """Times and states of the rows to be evaluated beside those of the nodes."""
        return None

    @abstractmethod
    def sweep(self, flight: Flight, drift: np.ndarray, beside: np.ndarray) -> Swept:
        """New states from the drifts at the nodes ``(S, n, d)`` and at the rows asked for ``(rows, d)``."""

    @abstractmethod
    def follow(self, segment: Segment, h: float, bounds: Bounds) -> Segment:
        """The segment after a given one, with its guess."""

    @abstractmethod
    def remainder(self, segment: Segment) -> float:
        """Least part of a change that is to be feared after it."""


@dataclass
class Picard(Sweep):
    """``Y = start + h A F``; or, where a segment's drift has a slope c along the last change, ``(1 - h c A)^-1`` of it.

    The slope is the scalar secant ``<dX, dF> / <dX, dX>`` of the last two rounds, in tolerances. Second-order equations
    cascade: velocities first, positions from the new velocities.
    """

    nodes: Nodes
    second_order: bool
    secant: bool = True
    patience: int = 60
    settled: int = 20
    eager: float = 0.1
    quadratic: bool = False

    def sweep(self, flight: Flight, drift: np.ndarray, beside: np.ndarray) -> Swept:
        """New states."""
        residual = flight.residuals(drift)
        if self.second_order:
            return self._cascade(flight, residual)
        slopes = self._slopes(flight, drift) if self.secant else None
        if slopes is None:
            carried = np.zeros_like(flight.starts)
            if len(carried) > 1:
                np.cumsum(flight.jumps + residual[:-1, -1], 0, out=carried[1:])
            residual += carried[:, None]
            swept = Swept(residual, carried)
        else:
            swept = self._damped(flight, residual, slopes)
        if self.secant:
            for segment, change, values in zip(flight.segments, swept.change, drift, strict=True):
                segment.moved, segment.drift = change, values
        return swept

    def _slopes(self, flight: Flight, drift: np.ndarray) -> np.ndarray | None:
        """``h c`` of every segment; None where none is steep."""
        known = [i for i, segment in enumerate(flight.segments) if segment.moved is not None]
        if known:
            segments = [flight.segments[i] for i in known]
            moved = np.array([segment.moved for segment in segments])
            turned = drift[known] - np.array([segment.drift for segment in segments])
            weights, states = 1 / flight.allowed[known], flight.states[known]
            size, along, large = (
                np.einsum("snd,sd,snd,sd->s", one, weights, other, weights)
                for one, other in ((moved, moved), (moved, turned), (states, states))
            )
            slopes = np.clip(along / size, -30 / flight.h[known], 1 / flight.h[known])
            # a change at the level of rounding says nothing
            for segment, slope, tells in zip(segments, slopes.tolist(), (size > 1e-18 * large).tolist(), strict=True):
                if tells and slope == slope:
                    segment.slope = slope
        out = flight.h * np.array([segment.slope for segment in flight.segments])
        steep = np.abs(out) > _STEEP
        return np.where(steep, out, 0.0) if steep.any() else None

    def _damped(self, flight: Flight, residual: np.ndarray, slopes: np.ndarray) -> Swept:
        n, steep = self.nodes.n, np.flatnonzero(slopes)
        right = np.concatenate([residual[steep], np.ones((len(steep), n, 1))], -1)
        answers = np.linalg.solve(np.eye(n) - slopes[steep, None, None] * self.nodes.integrate, right)
        change, response = residual.copy(), np.ones((len(slopes), n, 1))
        change[steep], response[steep] = answers[..., :-1], answers[..., -1:]
        carried = np.zeros_like(flight.starts)
        for i in range(1, len(slopes)):
            carried[i] = flight.jumps[i - 1] + change[i - 1, -1] + response[i - 1, -1] * carried[i - 1]
        change += response * carried[:, None]
        residual += carried[:, None]
        return Swept(change, carried, residual)

    def _cascade(self, flight: Flight, residual: np.ndarray) -> Swept:
        half = residual.shape[-1] // 2
        carried = np.zeros_like(flight.starts)
        more = len(carried) > 1
        if more:
            np.cumsum(flight.jumps[:, half:] + residual[:-1, -1, half:], 0, out=carried[1:, half:])
        residual[..., half:] += carried[:, None, half:]
        residual[..., :half] += flight.h[:, None, None] * (self.nodes.integrate @ residual[..., half:])
        if more:
            np.cumsum(flight.jumps[:, :half] + residual[:-1, -1, :half], 0, out=carried[1:, :half])
        residual[..., :half] += carried[:, None, :half]
        return Swept(residual, carried)

    def follow(self, segment: Segment, h: float, bounds: Bounds) -> Segment:
        """Goes on along the parabola through the last three points."""
        values = segment.values(self.nodes)[-3:]
        guess = self.nodes.extrapolate(1 + h / segment.h * self.nodes.c, 3) @ values
        return Segment(segment.end, h, segment.states[-1], guess, slope=segment.slope)

    def remainder(self, segment: Segment) -> float:
        """A tenth of a change that a secant damped; else whatever the rate says."""
        return 0.1 if self.secant and not self.second_order else 0.0


@dataclass
class Newton(Sweep):
    """Newton's method, with Jacobians from differences whose rows ride in the same round.

    The Jacobians, and what is made of them, are held once changes are small.

    Attributes:
        nodes: of the segments.
        differences: how Jacobians are seen.
        panels: False: at every node, for `Dense` algebra; True: at ten points, for that of `Panels`.
    """

    nodes: Nodes
    differences: Differences
    panels: bool
    patience: int = 12
    settled: int = 4
    eager: float = 0.7
    quadratic: bool = True

    def __post_init__(self):
        if self.panels:
            self.patience = 20

    def asks(self, flight: Flight) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows of the segments whose linearisation is stale."""
        self._stale = [i for i, segment in enumerate(flight.segments) if segment.stale]
        if not self._stale:
            return None
        times, states = flight.times[self._stale], flight.states[self._stale]
        if self.panels:
            values = np.array([flight.segments[i].values(self.nodes) for i in self._stale])
            states = to_seen(self.nodes) @ values
            times = times[:, -1:] + flight.h[self._stale, None] * (SEEN - 1)
        self._at = states
        return self.differences.rows(times, states, self.panels)

    def sweep(self, flight: Flight, drift: np.ndarray, beside: np.ndarray) -> Swept:
        """New states."""
        self._linearise(flight, drift, beside)
        residual, linears = flight.residuals(drift), [segment.linear for segment in flight.segments]
        if self.panels:
            change, carried = through(cast(list[Panels], linears), residual, flight.jumps)
        else:
            change, carried = _one_by_one(cast(list[Dense], linears), residual, flight.jumps)
        for i, segment in enumerate(flight.segments):
            assert segment.linear is not None
            segment.end_drift = drift[i, -1] + segment.linear.at_end(change[i, -1])
        return Swept(change, carried)

    def _linearise(self, flight: Flight, drift: np.ndarray, beside: np.ndarray) -> None:
        if not self._stale:
            return
        jacobians = self.differences.jacobians(self._at, None if self.panels else drift[self._stale], beside)
        lengths, second_order = flight.h[self._stale], self.differences.second_order
        units = self.differences.units(self._at)
        made = (Panels if self.panels else Dense).of(self.nodes, lengths, jacobians, second_order, units)
        for i, linear in zip(self._stale, made, strict=True):
            flight.segments[i].linear = linear

    def follow(self, segment: Segment, h: float, bounds: Bounds) -> Segment:
        """Goes on with the flow that is linearised at the segment's end."""
        start, drift, linear = segment.states[-1], segment.end_drift, segment.linear
        assert drift is not None
        assert linear is not None
        moved = linear.followed(h, drift)
        straight, largest = h * self.nodes.c[:, None] * drift, np.abs(segment.states).max(0)
        allowed = bounds.allowed(largest)
        if not (np.abs(moved).max(0) / allowed).max() <= 100 * ((largest + np.abs(straight[-1])) / allowed).max():
            moved = straight
        new = Segment(segment.end, h, start, start + moved, linear=linear)
        new.end_drift = drift + linear.at_end(moved[-1])
        return new

    def remainder(self, segment: Segment) -> float:
        """A fiftieth of a change by a fresh Jacobian, a tenth by a held one or a rough one."""
        return 0.02 if segment.stale and not self.panels else 0.1


def _one_by_one(segments: list[Dense], residual: np.ndarray, jumps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Changes of states ``(S, n, d)`` and of starts ``(S, d)``; NaN from the first segment on that has no answer."""
    change, carried = np.full_like(residual, np.nan), np.zeros_like(residual[:, 0])
    for i, segment in enumerate(segments):
        if i:
            carried[i] = jumps[i - 1] + change[i - 1, -1]
        right = residual[i] + carried[i]
        if segment.singular or not np.isfinite(right).all():
            break
        change[i] = segment.solve(right)
    return change, carried
