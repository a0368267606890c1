"""The independent check of a segment: the equation at points that the iteration did not use."""

from dataclasses import dataclass

import numpy as np

from picardsolve.collocation.differences import Differences
from picardsolve.collocation.nodes import Nodes
from picardsolve.collocation.panels import SEEN, Panels, to_seen
from picardsolve.collocation.segments import Bounds, Segment

_LIMIT = 10.0  # tolerances that a node may be off by
LARGEST = 64  # numbers in a state whose Jacobians are seen where the iteration has none


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

    def asks(self, segment: Segment) -> tuple[np.ndarray, np.ndarray]:
        """Times and states that are to be evaluated."""
        values = segment.values(self.nodes)
        times, states = segment.t + segment.h * self.nodes.check, self.nodes.to_check @ values
        if not self._probes(segment):
            return times, states
        when, rows = self.differences.rows((segment.t + segment.h * SEEN)[None], self._seen(values), True)
        return np.concatenate([times, when]), np.concatenate([states, rows])

    def _probes(self, segment: Segment) -> bool:
        return segment.linear is None and len(segment.start) <= LARGEST

    def _seen(self, values: np.ndarray) -> np.ndarray:
        return (to_seen(self.nodes) @ values)[None]

    def of(self, segment: Segment, drift: np.ndarray, bounds: Bounds) -> Checked | None:
        """Judge by the drifts at those; None where it fails."""
        count, values, linear = len(self.nodes.check), segment.values(self.nodes), segment.linear
        rho = segment.start + segment.h * (self.nodes.integrate_check @ drift[:count]) - segment.states
        if self._probes(segment):
            jacobian = self.differences.jacobians(self._seen(values), None, drift[count:])[0]
            linear = Panels(self.nodes, segment.h, jacobian, self.differences.second_order)
        error, flow = (rho, None) if linear is None else (linear.solve(rho), linear.flow)
        largest = np.maximum(np.abs(segment.states).max(0), np.abs(segment.start))
        noise = bounds.unit * (largest + segment.h * np.abs(drift[:count]).max(0))
        allowed = bounds.allowed(largest)
        inside = float((np.abs(error).max(0) / allowed).max())
        if not inside <= max(_LIMIT, 50 * float((noise / allowed).max())):
            return None
        return Checked(segment.t, segment.h, values, flow, error[-1], noise, largest)
