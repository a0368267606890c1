"""The independent check of a segment: the equation at points that the iteration did not use."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picardsolve.collocation.differences import Differences
from picardsolve.collocation.nodes import Nodes
from picardsolve.collocation.panels import SEEN, Panels, to_seen
from picardsolve.collocation.segments import Bounds, Segment
from picardsolve.problem.state import LARGEST_DENSE

_LIMIT = 10.0  # tolerances that a node may be off by


@dataclass(frozen=True)
class Checked:
    """A segment that passed.

    Attributes:
        t, h: where it begins and how long it is.
        values: at the points that its polynomial goes through, ``(points, d)``.
        flow: derivative of its end by its start, ``(d, d)``; None where not known.
        error: ``(d,)`` what its end is off by, for a start that is exact.
        noise: ``(d,)`` what rounding may do to it.
        scale: ``(d,)`` the largest values of its components.
    """

    t: float
    h: float
    values: np.ndarray
    flow: np.ndarray | None
    error: np.ndarray
    noise: np.ndarray
    scale: np.ndarray

    @property
    def end(self) -> float:
        """Where it ends."""
        return self.t + self.h


@dataclass(frozen=True)
class Check:
    """``start + integral of f(u)`` is compared with u, where the integral is taken by other points than the nodes'.

    The difference ``rho(t)`` and the error ``e`` are related by ``e = rho + integral of J e``. Newton's own linear
    equations solve that. Other iterations know no Jacobian: of small states it is seen for the check alone.

    Attributes:
        nodes: of the segments.
        differences: how Jacobians are seen.
    """

    nodes: Nodes
    differences: Differences

    def asks(self, segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
        """Times ``(R,)`` and states ``(R, d)`` that are to be evaluated."""
        begin, length = np.array([[segment.t, segment.h] for segment in segments]).T[..., None]
        values = np.array([segment.values(self.nodes) for segment in segments])
        times, states = begin + length * self.nodes.check, self.nodes.to_check @ values
        if not self._probes(segments):
            return times.ravel(), states.reshape(-1, states.shape[-1])
        when, rows = self.differences.rows(begin + length * SEEN, to_seen(self.nodes) @ values, True)
        return np.concatenate([times.ravel(), when]), np.concatenate([states.reshape(-1, states.shape[-1]), rows])

    def _probes(self, segments: Sequence[Segment]) -> bool:
        """Whether Jacobians are seen for the check; the iteration knows them of all segments or of none."""
        return segments[0].linear is None and len(segments[0].start) <= LARGEST_DENSE

    def of(self, segments: Sequence[Segment], drift: np.ndarray, bounds: Bounds) -> list[Checked | None]:
        """Judge by the drifts at those ``(R, d)``; None where one fails."""
        nodes, count = self.nodes, len(self.nodes.check)
        lengths = np.array([segment.h for segment in segments])
        states = np.array([segment.states for segment in segments])
        starts = np.array([segment.start for segment in segments])
        values = np.array([segment.values(nodes) for segment in segments])
        at = drift[: len(segments) * count].reshape(len(segments), count, -1)
        rho = lengths[:, None, None] * (nodes.integrate_check @ at) + (starts[:, None] - states)
        linears = [segment.linear for segment in segments]
        if self._probes(segments):
            jacobians = self.differences.jacobians(to_seen(nodes) @ values, None, drift[len(segments) * count :])
            units = self.differences.units(values)
            linears = Panels.of(nodes, lengths, jacobians, self.differences.second_order, units)
        answers = [
            (own, None) if linear is None else linear.answer(own) for linear, own in zip(linears, rho, strict=True)
        ]
        largest = np.maximum(np.abs(states).max(1), np.abs(starts))
        noise = bounds.unit * (largest + lengths[:, None] * np.abs(at).max(1))
        allowed = bounds.allowed(largest)
        limits = np.maximum(_LIMIT * allowed, 50 * noise)
        out: list[Checked | None] = []
        for i, (segment, (error, flow)) in enumerate(zip(segments, answers, strict=True)):
            inside = (np.abs(error).max(0) <= limits[i]).all()
            passed = Checked(segment.t, segment.h, values[i], flow, error[-1], noise[i], largest[i])
            out.append(passed if inside else None)
        return out
