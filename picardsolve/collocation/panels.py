"""The linearised equations of segments, approximately: exponentials of the mean Jacobians on a few panels."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.polynomial import legendre

from picardsolve.collocation.arrays import Array, Arrays
from picardsolve.collocation.chains import Chains
from picardsolve.collocation.linearization import Linearization
from picardsolve.collocation.nodes import Nodes


def panels(nodes: Nodes) -> int:
    """How many there are: what flows are off by adds up over a solve, and has to be less than the growth of errors."""
    return 2 * nodes.n // 3


@lru_cache
def points(nodes: Nodes) -> np.ndarray:
    """Of [0, 1], as many as panels: where Jacobians are taken."""
    return (1 + legendre.leggauss(panels(nodes))[0]) / 2


@lru_cache
def _ends(nodes: Nodes) -> np.ndarray:
    return np.arange(panels(nodes) + 1) / panels(nodes)


@lru_cache
def _on_panels(nodes: Nodes) -> np.ndarray:
    """From values at P points: mean and rise of their polynomial on panels, its values at ends, ``(3 P + 1, P)``.

    The rise on a panel is that of the straight line with the same first moment.
    """
    count = panels(nodes)
    rows, x = np.eye(count), 2 * _ends(nodes) - 1
    once, twice = (
        np.stack([legendre.legval(x, legendre.legint(row, m, lbnd=-1)) for row in rows], 1) / 2**m for m in (1, 2)
    )
    means = np.diff(once, axis=0) * count
    # by parts: integral of (t - middle) u
    moments = (once[1:] + once[:-1]) / (2 * count) - np.diff(twice, axis=0)
    parts = means, 12 * count**2 * moments, legendre.legvander(x, count - 1)
    return np.concatenate(parts) @ np.linalg.inv(legendre.legvander(2 * points(nodes) - 1, count - 1))


@lru_cache
def to_points(nodes: Nodes) -> np.ndarray:
    """Interpolation from the points of a segment to those of the Jacobians, ``(P, points)``."""
    return nodes.interpolate(points(nodes))


@lru_cache
def _to_ends(nodes: Nodes) -> np.ndarray:
    """Interpolation from the nodes alone to the panels' ends, ``(P + 1, n)``."""
    return nodes.extrapolate(_ends(nodes), nodes.n)


@lru_cache
def _hermite(nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Hermite's cubics on panels, at the nodes: of the values and of the slopes at the ends, ``(n, P + 1)`` each."""
    count, row = panels(nodes), np.arange(nodes.n)
    panel = np.minimum((nodes.c * count).astype(int), count - 1)
    t = nodes.c * count - panel
    rise = t**2 * (3 - 2 * t)
    values, slopes = np.zeros((2, nodes.n, count + 1))
    values[row, panel], values[row, panel + 1] = 1 - rise, rise
    slopes[row, panel], slopes[row, panel + 1] = t * (1 - t) ** 2, t**2 * (t - 1)
    return values, slopes


@lru_cache
def _identity(d: int) -> np.ndarray:
    return np.eye(d)[None, None]


@lru_cache
def _velocities(half: int) -> np.ndarray:
    """That positions change by velocities, ``(half, d)``."""
    return np.eye(half, 2 * half, half)[None, None]


@dataclass
class PanelLinearization(Linearization):
    """J at P points; the algebra is linear in the number of nodes. For moderate states and equations not stiff.

    On a panel the flow is the exponential of ``x = J + [rise of J, J] / 12``, with J the mean Jacobian times the
    panel's length (Magnus' expansion of order 4: Blanes, Casas, Oteo & Ros 2009). On a panel where residuals rise by
    ``r``, ``delta`` changes by ``phi_1(x) (x delta + r)``, with ``phi_1(x) = (I - x / 2 + x^2 / 12)^-1`` up to order
    4, which is as stable as a Gauss method (Hairer & Wanner 1996, IV.3). The answers are off by some hundredths; the
    next rounds of Newton's method correct that.

    Attributes:
        phi: ``phi_1(x)``, ``(K, panels, d, d)``; one for all panels where there is one Jacobian.
        across: ``I + phi_1(x) x``, the flow of a panel, of the shape of phi.
        at_ends: the Jacobians at the panels' ends, times the panels' length, ``(K, P + 1 or 1, d, d)``.
        response: ``(K, P + 1, d, d)`` derivative of ``delta`` at the panels' ends with respect to the start; None where
            it is not needed.
    """

    phi: Array
    across: Array
    at_ends: Array
    response: Array | None = None

    @staticmethod
    def of(
        arrays: Arrays, nodes: Nodes, h: Array, jacobians: Array, second_order: bool, units: Array
    ) -> "PanelLinearization":
        """For K segments of lengths ``(K,)``: Jacobians ``(K, P, size, size)`` and units ``(K, d)``."""
        made = PanelLinearization._prepared(arrays, nodes, h, jacobians, second_order, units)
        state = arrays.constant(_identity(units.shape[1])) + arrays.zeros(len(units), 1, 1, 1)
        states = [state]
        for p in range(panels(nodes)):
            state = made.across[:, p : p + 1] @ state
            states.append(state)
        made.response = arrays.concat(states, 1)
        return made

    @staticmethod
    def _prepared(
        arrays: Arrays, nodes: Nodes, h: Array, jacobians: Array, second_order: bool, units: Array
    ) -> "PanelLinearization":
        x = at_ends = (_whole(arrays, jacobians) if second_order else jacobians) * (h / panels(nodes))[
            :, None, None, None
        ]
        count, places, d, _ = x.shape
        if places > 1:
            read = (arrays.constant(_on_panels(nodes)) @ x.reshape(count, places, -1)).reshape(count, -1, d, d)
            mean, rise, at_ends = read[:, :places], read[:, places : 2 * places], read[:, 2 * places :]
            x = mean + (rise @ mean - mean @ rise) / 12
        matrix = x @ x / 12 - x / 2 + arrays.constant(_identity(d))
        ratios = (units[:, None] / units[:, :, None])[:, None]
        phi = arrays.inverse(matrix * ratios) / ratios
        across = phi @ x + arrays.constant(_identity(d))
        return PanelLinearization(arrays, nodes, second_order, h, jacobians[:, -1], units, phi, across, at_ends)

    def solve(self, residual: Array) -> Array:
        """``delta`` from panel to panel."""
        ends = self.arrays.constant(_to_ends(self.nodes)) @ residual
        return self._between(residual, ends, self._at_ends(ends))

    def answer(self, residual: Array) -> tuple[Array, Array]:
        """The flow is the end of the response."""
        assert self.response is not None
        return self.solve(residual), self.response[:, -1]

    def through(self, chains: Chains, residual: Array, jumps: Array) -> tuple[Array, Array]:
        """All segments by themselves; then what the ends do to the next starts; then the answers to that."""
        assert self.response is not None
        ends = self.arrays.constant(_to_ends(self.nodes)) @ residual
        answers = self._at_ends(ends)
        carried = chains.carried(self.arrays, jumps + answers[:, -1], self.response[:, -1])
        if len(chains.counts) < len(carried):
            count, places, d = answers.shape
            moved = self.response.reshape(count, places * d, d) @ carried[..., None]
            answers = answers + moved.reshape(count, places, d)
        return self._between(residual, ends, answers), carried

    def ahead(self, rows: np.ndarray, h: Array) -> "PanelLinearization":
        """One Jacobian for all panels."""
        end, units = self.arrays.take(self.end, rows), self.arrays.take(self.units, rows)
        return self._prepared(self.arrays, self.nodes, h, end[:, None], self.second_order, units)

    def led(self, fine: Nodes, drift: Array) -> Array:
        """From panel to panel."""
        places = self.arrays.constant(self.nodes.c)[:, None]
        return self.solve(self.h[:, None, None] * places * drift[:, None])

    def _at_ends(self, ends: Array) -> Array:
        """``delta`` at the panels' ends, ``(K, P + 1, d)``, for residuals there."""
        rises, many = (ends[:, 1:] - ends[:, :-1])[..., None], self.phi.shape[1] > 1
        added = self.phi @ rises
        answer = ends[:, :1, :, None]
        answers = [answer]
        for p in range(panels(self.nodes)):
            which = slice(p * many, p * many + 1)
            answer = self.across[:, which] @ answer + added[:, p : p + 1]
            answers.append(answer)
        return self.arrays.concat(answers, 1)[..., 0]

    def _between(self, residual: Array, ends: Array, answers: Array) -> Array:
        """At the nodes: the answers less the residuals are smooth, and Hermite's cubics interpolate them."""
        slopes = (self.at_ends @ answers[..., None])[..., 0]
        of_values, of_slopes = map(self.arrays.constant, _hermite(self.nodes))
        return residual + of_values @ (answers - ends) + of_slopes @ slopes


def _whole(arrays: Arrays, jacobians: Array) -> Array:
    """Jacobians of the whole drift, ``(..., d, d)``, from those of the acceleration with respect to the positions."""
    count, points, half, _ = jacobians.shape
    above = arrays.constant(_velocities(half)) + arrays.zeros(count, points, 1, 1)
    return arrays.concat([above, arrays.concat([jacobians, arrays.zeros(count, points, half, half)], 3)], 2)
