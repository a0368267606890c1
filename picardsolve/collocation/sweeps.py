"""What a round of drifts makes of the segments in flight: Picard iteration with a scalar secant, or Newton's method."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from picardsolve.collocation.finite_differences import Differences
from picardsolve.collocation.flight import Correction, Flight
from picardsolve.collocation.initial_value import Limits
from picardsolve.collocation.linearization import DenseLinearization, solve_in_order
from picardsolve.collocation.nodes import Nodes
from picardsolve.collocation.panels import POINTS, PanelLinearization, solve_through, to_points
from picardsolve.collocation.segments import Segment

Choice: TypeAlias = Literal["picard", "secant", "panels", "newton"]

_STEEP = 0.5  # of length times slope: below it a secant is not worth its solve


class SegmentSweep(ABC):
    """An iteration over segments.

    Attributes:
        name: of the iteration; "panels" is Newton's method with the algebra of panels.
        patience: most rounds that a segment may take.
        settled: rounds after which changes must not grow any more.
        eager: relative change of the last segment in flight below which the next one is started.
        quadratic: whether each change is about the square of the one before.
        linearizations: Jacobians of segments that were taken so far.
    """

    name: Choice
    patience: int
    settled: int
    eager: float
    quadratic: bool
    linearizations: int = 0

    def ask(self, flight: Flight) -> tuple[np.ndarray, np.ndarray] | None:
        """Times and states of rows to be evaluated beside those of the nodes; None: no rows."""
        return None

    @abstractmethod
    def sweep(self, flight: Flight, drift: np.ndarray, beside: np.ndarray) -> Correction:
        """The correction from the drifts at the nodes ``(S, n, d)`` and at the rows asked for ``(rows, d)``."""

    @abstractmethod
    def follow(self, segment: Segment, h: float, limits: Limits) -> Segment:
        """A next segment of length h behind a given one, with its guess."""

    @abstractmethod
    def remainder(self, segment: Segment) -> float:
        """The next change relative to this one is taken to be at least this."""


@dataclass
class PicardSweep(SegmentSweep):
    """``Y = start + h A F``; with the slope c of a segment's drift along its last change, ``(1 - h c A)^-1`` of it.

    The slope is the scalar secant ``<dX, dF> / <dX, dX>`` of the last two rounds, in tolerances. For second-order
    equations velocities come first, and positions are integrated from the new velocities.
    """

    nodes: Nodes
    second_order: bool
    name: Choice
    patience: int = 60
    settled: int = 20
    eager: float = 0.1
    quadratic: bool = False

    def __post_init__(self):
        self._secant = self.name == "secant"

    def sweep(self, flight: Flight, drift: np.ndarray, beside: np.ndarray) -> Correction:
        """The correction."""
        residual = flight.residuals(drift)
        if self.second_order:
            return self._velocities_first(flight, residual)
        slopes = self._slopes(flight, drift) if self._secant else None
        if slopes is None:
            carried = np.zeros_like(flight.starts)
            if len(carried) > 1:
                np.cumsum(flight.jumps + residual[:-1, -1], 0, out=carried[1:])
            residual += carried[:, None]
            correction = Correction(residual, carried)
        else:
            correction = self._damped(flight, residual, slopes)
        if self._secant:
            for segment, change, values in zip(flight.segments, correction.states, drift, strict=True):
                segment.moved, segment.drift = change, values
        return correction

    def _slopes(self, flight: Flight, drift: np.ndarray) -> np.ndarray | None:
        """``h c`` of every segment, 0 where it is not steep; None where none is."""
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
            tells = size > 1e-18 * large  # a change at the level of rounding tells nothing
            for segment, slope, told in zip(segments, slopes.tolist(), tells.tolist(), strict=True):
                if told and slope == slope:
                    segment.slope = slope
        out = flight.h * np.array([segment.slope for segment in flight.segments])
        steep = np.abs(out) > _STEEP
        return np.where(steep, out, 0.0) if steep.any() else None

    def _damped(self, flight: Flight, residual: np.ndarray, slopes: np.ndarray) -> Correction:
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
        return Correction(change, carried, residual)

    def _velocities_first(self, flight: Flight, residual: np.ndarray) -> Correction:
        half, carried = residual.shape[-1] // 2, np.zeros_like(flight.starts)
        positions, velocities = np.s_[..., :half], np.s_[..., half:]

        def carry(part: Any) -> None:
            """Move each start to where the segment before ends now."""
            carried[1:][part] = np.cumsum(flight.jumps[part] + residual[:-1, -1][part], 0)
            residual[part] += carried[:, None][part]

        carry(velocities)
        residual[positions] += flight.h[:, None, None] * (self.nodes.integrate @ residual[velocities])
        carry(positions)
        return Correction(residual, carried)

    def follow(self, segment: Segment, h: float, limits: Limits) -> Segment:
        """The guess is the parabola through the last three points."""
        values = segment.values(self.nodes)[-3:]
        guess = self.nodes.extrapolate(1 + h / segment.h * self.nodes.c, 3) @ values
        return Segment(segment.end, h, segment.states[-1], guess, slope=segment.slope)

    def remainder(self, segment: Segment) -> float:
        """A tenth where a secant damped; else 0, for the rate of the changes tells."""
        return 0.1 if self._secant and not self.second_order else 0.0


@dataclass
class NewtonSweep(SegmentSweep):
    """Newton's method, with Jacobians from finite differences whose rows are evaluated in the same round.

    Once changes are small a segment keeps its Jacobians, and what was computed from them.

    Attributes:
        nodes: of the segments.
        differences: how Jacobians are taken.
        name: "newton": Jacobians at every node, for a `DenseLinearization`. "panels": at ten points, for a
            `PanelLinearization`.
    """

    nodes: Nodes
    differences: Differences
    name: Choice
    patience: int = 12
    settled: int = 4
    eager: float = 0.7
    quadratic: bool = True

    def __post_init__(self):
        self._panels = self.name == "panels"
        self._kind: Any = PanelLinearization if self._panels else DenseLinearization
        self._solve: Any = solve_through if self._panels else solve_in_order
        if self._panels:
            self.patience = 20

    def ask(self, flight: Flight) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows of the segments that are to be linearised again."""
        self._stale = [i for i, segment in enumerate(flight.segments) if segment.stale]
        if not self._stale:
            return None
        times, states = flight.times[self._stale], flight.states[self._stale]
        if self._panels:
            values = np.array([flight.segments[i].values(self.nodes) for i in self._stale])
            states = to_points(self.nodes) @ values
            times = times[:, -1:] + flight.h[self._stale, None] * (POINTS - 1)
        self._at = states
        self.linearizations += len(self._stale)
        return self.differences.rows(times, states, self._panels)

    def sweep(self, flight: Flight, drift: np.ndarray, beside: np.ndarray) -> Correction:
        """The correction."""
        if self._stale:
            jacobians = self.differences.jacobians(self._at, None if self._panels else drift[self._stale], beside)
            order, units = self.differences.second_order, self.differences.units(self._at)
            made = self._kind.of(self.nodes, flight.h[self._stale], jacobians, order, units)
            for i, linear in zip(self._stale, made, strict=True):
                flight.segments[i].linear = linear
        linears = [segment.linear for segment in flight.segments]
        change, carried = self._solve(linears, flight.residuals(drift), flight.jumps)
        for i, segment in enumerate(flight.segments):
            assert segment.linear is not None
            segment.end_drift = drift[i, -1] + segment.linear.at_end(change[i, -1])
        return Correction(change, carried)

    def follow(self, segment: Segment, h: float, limits: Limits) -> Segment:
        """The guess is the flow that is linearised at the segment's end; a straight line where that goes too far."""
        start, drift, linear = segment.states[-1], segment.end_drift, segment.linear
        assert drift is not None
        assert linear is not None
        moved = linear.follow(h, drift)
        straight, largest = h * self.nodes.c[:, None] * drift, np.abs(segment.states).max(0)
        allowed = limits.allowed(largest)
        if not (np.abs(moved).max(0) / allowed).max() <= 100 * ((largest + np.abs(straight[-1])) / allowed).max():
            moved = straight
        end_drift = drift + linear.at_end(moved[-1])
        return Segment(segment.end, h, start, start + moved, linear=linear, end_drift=end_drift)

    def remainder(self, segment: Segment) -> float:
        """A fiftieth with a new Jacobian at every node, otherwise a tenth."""
        return 0.02 if segment.stale and not self._panels else 0.1
