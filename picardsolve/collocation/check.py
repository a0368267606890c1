"""The independent check of segments: the equation at points that the iteration did not use."""

from dataclasses import dataclass

import numpy as np

from picardsolve.collocation.accepted import Segments
from picardsolve.collocation.arrays import Array
from picardsolve.collocation.finite_differences import Differences
from picardsolve.collocation.flight import Flight
from picardsolve.collocation.initial_value import Limits
from picardsolve.collocation.nodes import Nodes
from picardsolve.collocation.panels import PanelLinearization, points, to_points
from picardsolve.collocation.sweeps import Rows
from picardsolve.problem.state import LARGEST_DENSE

_LIMIT = 10.0  # tolerances that a node may be off by
_GROWS = 1e6  # times the start of a segment, at most, both in tolerances: of what is larger all errors look small


@dataclass(frozen=True)
class Verdict:
    """What the check found of W segments.

    Attributes:
        passed: ``(W,)`` whether they are right.
        flow: derivative of the end with respect to the start, ``(W, d, d)``; None where not known.
        error: ``(W, d)`` the estimated error of the end, for an exact start.
        noise: ``(W, d)`` the error of the end from rounding.
        scale: ``(W, d)`` the largest values of the components.
    """

    passed: Array
    flow: Array | None
    error: Array
    noise: Array
    scale: Array

    def segments(self, own: Flight, values: Array) -> Segments:
        """The segments that were judged, with the values ``(W, points, d)`` of their polynomials."""
        return Segments(own.sample, own.t, own.h, values, self.flow, self.error, self.noise, self.scale)


class Check:
    """``start + integral of f(u)`` is compared with u; the integral uses other points than the nodes.

    The difference ``rho(t)`` and the error ``e`` are related by ``e = rho + integral of J e``. The linearised equations
    of Newton's method solve that. Other iterations have none; for states that are not large Jacobians are taken for the
    check alone.

    Args:
        nodes: of the segments.
        differences: how Jacobians are taken.
        has_linear: whether the iteration linearises.
    """

    def __init__(self, nodes: Nodes, differences: Differences, has_linear: bool):
        self.nodes, self.differences, self.arrays = nodes, differences, differences.arrays
        self._linearizes = not has_linear and differences.problem.numbers <= LARGEST_DENSE

    def ask(self, waiting: Flight) -> Rows:
        """Times ``(R,)``, states ``(R, d)`` and samples ``(R,)`` that are to be evaluated."""
        arrays, nodes = self.arrays, self.nodes
        values = self._values = waiting.values(arrays, nodes)
        times, d = waiting.times(nodes.check).ravel(), values.shape[-1]
        sample = np.repeat(waiting.sample, len(nodes.check))
        states = (arrays.constant(nodes.to_check) @ values).reshape(-1, d)
        if not self._linearizes:
            return times, states, sample
        self._points = arrays.constant(to_points(nodes)) @ values
        rows, self._steps = self.differences.rows(self._points, waiting.sample, True)
        moves = self.differences.moves(True)
        when = np.repeat(waiting.times(points(nodes)).ravel(), moves)
        whose = np.repeat(waiting.sample, len(points(nodes)) * moves)
        return np.concatenate([times, when]), arrays.concat([states, rows]), np.concatenate([sample, whose])

    def tell(self, waiting: Flight, drift: Array, limits: Limits) -> Verdict:
        """Judge the segments by the drifts at those rows, ``(R, d)``."""
        arrays, nodes, count, sample = self.arrays, self.nodes, len(waiting), waiting.sample
        h, rows, linear = arrays.array(waiting.h), count * len(nodes.check), waiting.memory.equations
        at = drift[:rows].reshape(count, len(nodes.check), -1)
        rho = h[:, None, None] * (arrays.constant(nodes.integrate_check) @ at) + (
            waiting.starts[:, None] - waiting.states
        )
        if self._linearizes:
            jacobians = self.differences.jacobians(self._steps, None, drift[rows:])
            units = self.differences.units(self._values, sample)
            linear = PanelLinearization.of(arrays, nodes, h, jacobians, self.differences.second_order, units)
        scale = arrays.larger(arrays.peak(waiting.states), arrays.size(waiting.starts))
        noise = limits.problem.unit * (scale + h[:, None] * arrays.peak(at))
        error, flow = (rho, None) if linear is None else linear.answer(rho)
        most = arrays.larger(_LIMIT * limits.allowed(scale, sample), 50 * noise)
        passed = (arrays.peak(error) <= most).all(1) & self._plausible(waiting, scale, limits)
        return Verdict(passed, flow, error[:, -1], noise, scale)

    def _plausible(self, waiting: Flight, scale: Array, limits: Limits) -> Array:
        """Whether states stay within sight of their start, ``(W,)``; a start of nearly 0 tells nothing."""
        arrays, start = self.arrays, self.arrays.size(waiting.starts)
        allowed = limits.allowed(start, waiting.sample)
        begin = arrays.largest(start / allowed)
        return (arrays.largest(scale / allowed) <= _GROWS * begin) | (begin < 1)

    @property
    def values(self) -> Array:
        """At the points of the polynomials that were checked last, ``(W, points, d)``."""
        return self._values
