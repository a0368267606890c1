"""The independent check of a segment: the equation at points that the iteration did not use."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picardsolve.collocation.finite_differences import Differences
from picardsolve.collocation.initial_value import Limits
from picardsolve.collocation.nodes import Nodes
from picardsolve.collocation.panels import POINTS, PanelLinearization, to_points
from picardsolve.collocation.segments import Segment
from picardsolve.problem.state import LARGEST_DENSE

_LIMIT = 10.0  # tolerances that a node may be off by


@dataclass(frozen=True)
class CheckedSegment:
    """A segment that passed its check.

    Attributes:
        t, h: elapsed time at its begin, and its length.
        nodes: of the segment.
        values: at the points that its polynomial goes through, ``(points, d)``.
        flow: derivative of its end with respect to its start, ``(d, d)``; None where not known.
        error: ``(d,)`` the estimated error of its end, for an exact start.
        noise: ``(d,)`` the error of its end from rounding.
        scale: ``(d,)`` the largest values of its components.
    """

    t: float
    h: float
    nodes: Nodes
    values: np.ndarray
    flow: np.ndarray | None
    error: np.ndarray
    noise: np.ndarray
    scale: np.ndarray

    @property
    def end(self) -> float:
        """Elapsed time at its end."""
        return self.t + self.h

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """States ``(*x.shape, d)`` at places of [0, 1] in the segment."""
        return self.nodes.interpolate(x) @ self.values


@dataclass(frozen=True)
class Check:
    """``start + integral of f(u)`` is compared with u; the integral uses other points than the nodes.

    The difference ``rho(t)`` and the error ``e`` are related by ``e = rho + integral of J e``. The linearised equations
    of Newton's method solve that. Other iterations have none; for states that are not large Jacobians are taken for the
    check alone.

    Attributes:
        nodes: of the segments.
        differences: how Jacobians are taken.
    """

    nodes: Nodes
    differences: Differences

    def ask(self, segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
        """Times ``(R,)`` and states ``(R, d)`` that are to be evaluated."""
        begin, length = np.array([[segment.t, segment.h] for segment in segments]).T[..., None]
        values = np.array([segment.values(self.nodes) for segment in segments])
        times, states = begin + length * self.nodes.check, self.nodes.to_check @ values
        if not self._linearizes(segments):
            return times.ravel(), states.reshape(-1, states.shape[-1])
        when, rows = self.differences.rows(begin + length * POINTS, to_points(self.nodes) @ values, True)
        return np.concatenate([times.ravel(), when]), np.concatenate([states.reshape(-1, states.shape[-1]), rows])

    def _linearizes(self, segments: Sequence[Segment]) -> bool:
        """Whether Jacobians are taken for the check; the iteration has those of all segments or of none."""
        return segments[0].linear is None and len(segments[0].start) <= LARGEST_DENSE

    def tell(self, segments: Sequence[Segment], drift: np.ndarray, limits: Limits) -> list[CheckedSegment | None]:
        """Judge the segments by the drifts at those rows, ``(R, d)``; None for a segment that fails."""
        nodes, count = self.nodes, len(self.nodes.check)
        lengths = np.array([segment.h for segment in segments])
        states = np.array([segment.states for segment in segments])
        starts = np.array([segment.start for segment in segments])
        values = np.array([segment.values(nodes) for segment in segments])
        at = drift[: len(segments) * count].reshape(len(segments), count, -1)
        rho = lengths[:, None, None] * (nodes.integrate_check @ at) + (starts[:, None] - states)
        linears = [segment.linear for segment in segments]
        if self._linearizes(segments):
            points = to_points(nodes) @ values
            jacobians = self.differences.jacobians(points, None, drift[len(segments) * count :])
            units = self.differences.units(values)
            linears = PanelLinearization.of(nodes, lengths, jacobians, self.differences.second_order, units)
        largest = np.maximum(np.abs(states).max(1), np.abs(starts))
        noise = limits.unit * (largest + lengths[:, None] * np.abs(at).max(1))
        most = np.maximum(_LIMIT * limits.allowed(largest), 50 * noise)
        out: list[CheckedSegment | None] = []
        for i, (segment, linear) in enumerate(zip(segments, linears, strict=True)):
            error, flow = (rho[i], None) if linear is None else linear.answer(rho[i])
            passed = (np.abs(error).max(0) <= most[i]).all()
            checked = CheckedSegment(segment.t, segment.h, nodes, values[i], flow, error[-1], noise[i], largest[i])
            out.append(checked if passed else None)
        return out
