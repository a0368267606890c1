"""The linearised equations of a segment, roughly: by exponentials of the mean Jacobians on ten panels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.polynomial import legendre

from picardsolve.collocation.linear import Linear
from picardsolve.collocation.nodes import Nodes

_PANELS, _POINTS = 10, 10
_ENDS = np.arange(_PANELS + 1) / _PANELS

SEEN = (1 + legendre.leggauss(_POINTS)[0]) / 2  # where Jacobians are seen, of [0, 1]


@lru_cache
def _on_panels() -> np.ndarray:
    """From values at `SEEN`: their polynomial's mean on each panel, its rise there, its values at ends, ``(31, 10)``.

    The rise is that of the straight line with the panel's first moment.
    """
    rows, x = np.eye(_POINTS), 2 * _ENDS - 1
    once, twice = (
        np.stack([legendre.legval(x, legendre.legint(row, m, lbnd=-1)) for row in rows], 1) / 2**m for m in (1, 2)
    )
    means = np.diff(once, axis=0) * _PANELS
    # by parts: integral of (t - middle) u
    moments = (once[1:] + once[:-1]) / (2 * _PANELS) - np.diff(twice, axis=0)
    parts = means, 12 * _PANELS**2 * moments, legendre.legvander(x, _POINTS - 1)
    return np.concatenate(parts) @ np.linalg.inv(legendre.legvander(2 * SEEN - 1, _POINTS - 1))


@lru_cache
def to_seen(nodes: Nodes) -> np.ndarray:
    """Interpolation from the points of a segment to `SEEN`, ``(10, points)``."""
    return nodes.interpolate(SEEN)


@lru_cache
def _to_ends(nodes: Nodes) -> np.ndarray:
    """The same from the nodes alone to the panels' ends, ``(11, n)``."""
    return nodes.extrapolate(_ENDS, nodes.n)


@lru_cache
def _inside(nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Of every node the panel that it is in, and Hermite's cubics ``(n, 1, 4)``: of both values, of both slopes."""
    panel = np.minimum((nodes.c * _PANELS).astype(int), _PANELS - 1)
    t = nodes.c * _PANELS - panel
    rise = t**2 * (3 - 2 * t)
    return panel, np.stack([1 - rise, rise, t * (1 - t) ** 2, t**2 * (t - 1)], 1)[:, None]


@dataclass
class Panels(Linear):
    """J at ten points, for algebra that is linear in the nodes: of moderate states, where equations are not stiff.

    On a panel the flow is the exponential of ``x = J + [rise of J, J] / 12`` with J the mean times the panel's length
    (Magnus' expansion of order 4: Blanes, Casas, Oteo & Ros 2009), and the answer ``delta`` moves by
    ``phi_1(x) (x delta + r)`` where residuals rise by ``r``; ``phi_1(x) = (I - x / 2 + x^2 / 12)^-1`` up to order 4, as
    stable as a Gauss method (Hairer & Wanner 1996, IV.3). Answers are off by some hundredths, which Newton mends.

    Attributes:
        jacobian: at `SEEN`, or at one point for all.
        units: ``(d,)`` of the components, in which pivots are told apart.
        x: ``(panels, d, d)``; of one point one panel for all.
        phi: likewise.
        at_ends: the Jacobians at the panels' ends, times their length.
    """

    nodes: Nodes
    jacobian: np.ndarray
    units: np.ndarray
    second_order: bool
    x: np.ndarray
    phi: np.ndarray
    at_ends: np.ndarray
    singular: bool

    @staticmethod
    def of(
        nodes: Nodes, h: np.ndarray, jacobians: np.ndarray, second_order: bool, units: np.ndarray | None = None
    ) -> "list[Panels]":
        """Of S segments of lengths ``(S,)``, by Jacobians ``(S, 10 or 1, size, size)`` and units ``(S, d)`` or 1."""
        x = at_ends = (_whole(jacobians) if second_order else jacobians) * (h / _PANELS)[:, None, None, None]
        if x.shape[1] > 1:
            read = (_on_panels() @ x.reshape(*x.shape[:2], -1)).reshape(len(x), -1, *x.shape[2:])
            mean, rise, at_ends = np.split(read, [_PANELS, 2 * _PANELS], 1)
            x = mean + (rise @ mean - mean @ rise) / 12
        matrix = x @ x
        matrix /= 12
        matrix -= x / 2
        matrix.reshape(*x.shape[:2], -1)[..., :: x.shape[-1] + 1] += 1
        finite = np.asarray(np.isfinite(matrix).all((1, 2, 3)))
        phi = np.full_like(matrix, np.nan)
        units = np.ones((len(x), x.shape[-1])) if units is None else units
        ratios = (units[:, None] / units[:, :, None])[:, None]
        phi[finite] = np.linalg.inv((matrix * ratios)[finite])
        phi /= ratios
        singular = (~finite).tolist()
        parts = zip(jacobians, units, x, phi, at_ends, singular, strict=True)
        return [Panels(nodes, jacobian, own, second_order, *made) for jacobian, own, *made in parts]

    def solve(self, residual: np.ndarray) -> np.ndarray:
        """From panel to panel."""
        return through([self], residual[None])[0][0]

    def answer(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From panel to panel."""
        flow, across = np.eye(self.size), self.phi @ self.x
        for p in range(_PANELS):
            flow = flow + across[p % len(across)] @ flow
        return self.solve(residual), flow

    def followed(self, h: float, drift: np.ndarray) -> np.ndarray:
        """On as many panels."""
        length, units = np.array([h]), self.units[None]
        (ahead,) = Panels.of(self.nodes, length, self.jacobian[None, -1:], self.second_order, units)
        return ahead.solve(h * self.nodes.c[:, None] * drift)

    def fill(self, rises: np.ndarray, answers: np.ndarray, slopes: np.ndarray) -> None:
        """The answers ``(11, d)`` behind the first, and their slopes there."""
        many = len(self.x) > 1
        for p in range(_PANELS):
            moved = self.x[p * many].dot(answers[p])
            moved += rises[p]
            self.phi[p * many].dot(moved, out=answers[p + 1])
            answers[p + 1] += answers[p]
        np.matmul(self.at_ends, answers[..., None], out=slopes[..., None])


def _whole(jacobians: np.ndarray) -> np.ndarray:
    """Of the whole drift, ``(..., d, d)``, by those of the acceleration by the positions."""
    half = jacobians.shape[-1]
    out = np.zeros((*jacobians.shape[:-2], 2 * half, 2 * half))
    out[..., :half, half:] = np.eye(half)
    out[..., half:, :half] = jacobians
    return out


def through(
    segments: Sequence[Panels], residual: np.ndarray, jumps: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The answers to residuals ``(S, n, d)`` of segments.

    Args:
        segments: S of them.
        residual: of every one.
        jumps: ``(S - 1, d)``: the segments are one behind the other, and what the end of one moves by, with the jump
            to the next start, moves that; None: no start moves.

    Returns:
        Changes of the states ``(S, n, d)`` and of the starts ``(S, d)``.
    """
    nodes, (count, _, d) = segments[0].nodes, residual.shape
    ends = _to_ends(nodes) @ residual
    rises = ends[:, 1:] - ends[:, :-1]
    answers, slopes = np.empty((2, count, _PANELS + 1, d))
    carried = np.zeros((count, d))
    for i, segment in enumerate(segments):
        if i and jumps is not None:
            np.add(jumps[i - 1], answers[i - 1, -1], out=carried[i])
        np.add(ends[i, 0], carried[i], out=answers[i, 0])
        segment.fill(rises[i], answers[i], slopes[i])
    # the answers less the residuals are smooth
    panel, weights = _inside(nodes)
    smooth = answers - ends
    four = np.stack([smooth[:, panel], smooth[:, panel + 1], slopes[:, panel], slopes[:, panel + 1]], 2)
    return residual + (weights @ four)[:, :, 0], carried
