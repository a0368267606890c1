"""The independent check of a segment: the equation at points that the iteration did not use."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from picardsolve.collocation.nodes import Nodes
from picardsolve.collocation.segments import Bounds, Segment

_LIMIT = 10.0  # tolerances that a node may be off by
_PANELS = 5  # of a segment, whose Jacobians are seen where the iteration has none
_GAUSS = np.array([0.5 - 3**-0.5 / 2, 0.5 + 3**-0.5 / 2])  # and the method of order 4 on each
_GAUSS_WEIGHTS = np.array([[1 / 4, 1 / 4 - 3**0.5 / 6], [1 / 4 + 3**0.5 / 6, 1 / 4]])
_SEEN = ((np.arange(_PANELS)[:, None] + _GAUSS) / _PANELS).ravel()
_LARGEST = 64  # numbers in a state whose Jacobians are


@dataclass(frozen=True)
class Checked:
    """A segment that passed.

    Attributes:
        t, h: where it begins and how long it is.
        values: at the points that its polynomial goes through, ``(points, d)``.
        flow: derivative of its end by its start, ``(d, d)``; None where not known.
        error: ``(d,)`` what its end is off by, for a start that is exact.
        inside: largest error at a node, in tolerances.
        noise: ``(d,)`` what rounding may do to it.
        scale: ``(d,)`` the largest values of its components.
    """

    t: float
    h: float
    values: np.ndarray
    flow: np.ndarray | None
    error: np.ndarray
    inside: float
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
    system solves that. Other iterations know no Jacobian: of small states it is seen by differences on
    five panels, and the error carried by the Gauss method of order 4.

    Attributes:
        nodes: of the segments.
        second_order: whether the state is (positions, velocities).
        unit: unit roundoff of the drift.
        typical: ``(d,)`` least sizes for differences.
    """

    nodes: Nodes
    second_order: bool
    unit: float
    typical: np.ndarray

    def asks(self, segment: Segment) -> tuple[np.ndarray, np.ndarray]:
        """Times and states that are to be evaluated."""
        times, states = segment.t + segment.h * self.nodes.check, self.nodes.to_check @ segment.values(self.nodes)
        if not self._probes(segment):
            return times, states
        at, steps = self._seen(segment)
        rows = np.repeat(at[:, None], len(steps) + 1, 1)
        which = np.arange(len(steps))
        rows[:, which + 1, which] += steps
        when = np.repeat(segment.t + segment.h * _SEEN, len(steps) + 1)
        return np.concatenate([times, when]), np.concatenate([states, rows.reshape(len(when), -1)])

    def _seen(self, segment: Segment) -> tuple[np.ndarray, np.ndarray]:
        """States where Jacobians are seen, and the sizes of the differences."""
        at = self._to_seen @ segment.values(self.nodes)
        size = at.shape[1] // 2 if self.second_order else at.shape[1]
        return at, self.unit**0.5 * np.maximum(np.abs(at).max(0), self.typical)[:size]

    def of(self, segment: Segment, drift: np.ndarray, bounds: Bounds) -> Checked | None:
        """Judge by the drifts at those; None where it fails."""
        count = len(self.nodes.check)
        rho = segment.start + segment.h * (self.nodes.integrate_check @ drift[:count]) - segment.states
        error, flow = rho, None
        if segment.linear is not None:
            error, flow = segment.linear.solve(rho), segment.linear.flow
        largest = np.maximum(np.abs(segment.states).max(0), np.abs(segment.start))
        noise = bounds.unit * (largest + segment.h * np.abs(drift[:count]).max(0))
        allowed = bounds.atol + bounds.rtol * largest
        inside = float((np.abs(error).max(0) / allowed).max())
        if not inside <= max(_LIMIT, 50 * float((noise / allowed).max())):
            return None
        end = error[-1]
        if self._probes(segment):
            end, flow = self._carried(segment, rho, drift[count:])
        return Checked(segment.t, segment.h, segment.values(self.nodes), flow, end, inside, noise, largest)

    @cached_property
    def _to_seen(self) -> np.ndarray:
        return self.nodes.interpolate(_SEEN)

    def _probes(self, segment: Segment) -> bool:
        return segment.linear is None and len(segment.start) <= _LARGEST

    def _carried(self, segment: Segment, rho: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The error at the end, and the flow."""
        d = len(segment.start)
        values = np.concatenate([0 * rho[:1], rho])[-len(self.nodes.points) :]
        residuals = (self._to_seen @ values).reshape(_PANELS, 2, d, 1)
        jacobians = self._jacobians(segment, rows).reshape(_PANELS, 2, d, d) * (segment.h / _PANELS)
        systems = -(_GAUSS_WEIGHTS[:, None, :, None] * jacobians[:, :, :, None]).reshape(_PANELS, 2 * d, 2 * d)
        systems += np.eye(2 * d)
        right = np.concatenate([jacobians, jacobians @ residuals], -1)
        stages = np.linalg.solve(systems, right.reshape(_PANELS, 2 * d, d + 1))
        flow, error = np.eye(d), np.zeros(d)  # error less rho
        for step in (stages[:, :d] + stages[:, d:]) / 2:
            error = error + step[:, :d] @ error + step[:, d]
            flow = flow + step[:, :d] @ flow
        return error + rho[-1], flow

    def _jacobians(self, segment: Segment, rows: np.ndarray) -> np.ndarray:
        """Of the whole drift, ``(points, d, d)``."""
        d, (_, steps) = len(segment.start), self._seen(segment)
        drift = rows.reshape(len(_SEEN), len(steps) + 1, d)
        slopes = ((drift[:, 1:] - drift[:, :1]) / steps[:, None]).swapaxes(1, 2)
        if not self.second_order:
            return slopes
        half, out = d // 2, np.zeros((len(_SEEN), d, d))
        out[:, :half, half:] = np.eye(half)
        out[:, half:, :half] = slopes[:, half:]
        return out
