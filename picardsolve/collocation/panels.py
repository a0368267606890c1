"""The linearised equations of a segment, approximately: exponentials of the mean Jacobians on ten panels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.polynomial import legendre

from picardsolve.collocation.linearization import Linearization
from picardsolve.collocation.nodes import Nodes

_PANELS, _POINTS = 10, 10
_ENDS = np.arange(_PANELS + 1) / _PANELS

POINTS = (1 + legendre.leggauss(_POINTS)[0]) / 2  # of [0, 1]: where Jacobians are taken


@lru_cache
def _on_panels() -> np.ndarray:
    """From values at `POINTS`: mean and rise of their polynomial on each panel, its values at the ends, ``(31, 10)``.

    The rise on a panel is that of the straight line with the same first moment.
    """
    rows, x = np.eye(_POINTS), 2 * _ENDS - 1
    once, twice = (
        np.stack([legendre.legval(x, legendre.legint(row, m, lbnd=-1)) for row in rows], 1) / 2**m for m in (1, 2)
    )
    means = np.diff(once, axis=0) * _PANELS
    # by parts: integral of (t - middle) u
    moments = (once[1:] + once[:-1]) / (2 * _PANELS) - np.diff(twice, axis=0)
    parts = means, 12 * _PANELS**2 * moments, legendre.legvander(x, _POINTS - 1)
    return np.concatenate(parts) @ np.linalg.inv(legendre.legvander(2 * POINTS - 1, _POINTS - 1))


@lru_cache
def to_points(nodes: Nodes) -> np.ndarray:
    """Interpolation from the points of a segment to `POINTS`, ``(10, points)``."""
    return nodes.interpolate(POINTS)


@lru_cache
def _to_ends(nodes: Nodes) -> np.ndarray:
    """Interpolation from the nodes alone to the panels' ends, ``(11, n)``."""
    return nodes.extrapolate(_ENDS, nodes.n)


@lru_cache
def _hermite(nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """The panel that each node is in, and Hermite's cubics there ``(n, 1, 4)``: of both values, of both slopes."""
    panel = np.minimum((nodes.c * _PANELS).astype(int), _PANELS - 1)
    t = nodes.c * _PANELS - panel
    rise = t**2 * (3 - 2 * t)
    return panel, np.stack([1 - rise, rise, t * (1 - t) ** 2, t**2 * (t - 1)], 1)[:, None]


@dataclass
class PanelLinearization(Linearization):
    """J at ten points; the algebra is linear in the number of nodes. For moderate states and equations not stiff.

    On a panel the flow is the exponential of ``x = J + [rise of J, J] / 12``, with J the mean Jacobian times the
    panel's length (Magnus' expansion of order 4: Blanes, Casas, Oteo & Ros 2009). On a panel where residuals rise by
    ``r``, ``delta`` changes by ``phi_1(x) (x delta + r)``, with ``phi_1(x) = (I - x / 2 + x^2 / 12)^-1`` up to order
    4, which is as stable as a Gauss method (Hairer & Wanner 1996, IV.3). The answers are off by some hundredths; the
    next rounds of Newton's method correct that.

    Attributes:
        jacobian: at `POINTS`, or one for the whole segment.
        units: ``(d,)`` of the components: without them a pivot would depend on the units of the user.
        x: ``(panels, d, d)``; one for all panels where there is one Jacobian.
        phi: ``phi_1(x)``, of the shape of x.
        at_ends: the Jacobians at the panels' ends, times the panels' length.
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
        nodes: Nodes, h: np.ndarray, jacobians: np.ndarray, second_order: bool, units: np.ndarray
    ) -> "list[PanelLinearization]":
        """For S segments of lengths ``(S,)``: Jacobians ``(S, 10 or 1, size, size)`` and units ``(S, d)``."""
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
        ratios = (units[:, None] / units[:, :, None])[:, None]
        phi[finite] = np.linalg.inv((matrix * ratios)[finite])
        phi /= ratios
        parts = zip(jacobians, units, x, phi, at_ends, (~finite).tolist(), strict=True)
        return [PanelLinearization(nodes, jacobian, own, second_order, *made) for jacobian, own, *made in parts]

    def solve(self, residual: np.ndarray) -> np.ndarray:
        """``delta`` from panel to panel."""
        return solve_through([self], residual[None])[0][0]

    def answer(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both from panel to panel."""
        flow, across = np.eye(residual.shape[1]), self.phi @ self.x
        for p in range(_PANELS):
            flow = flow + across[p % len(across)] @ flow
        return self.solve(residual), flow

    def follow(self, h: float, drift: np.ndarray) -> np.ndarray:
        """With the Jacobian of the end."""
        length, units = np.array([h]), self.units[None]
        (ahead,) = PanelLinearization.of(self.nodes, length, self.jacobian[None, -1:], self.second_order, units)
        return ahead.solve(h * self.nodes.c[:, None] * drift)

    def fill(self, rises: np.ndarray, answers: np.ndarray, slopes: np.ndarray) -> None:
        """Fill in ``delta`` at the panels' ends ``(11, d)`` behind the first, and its slopes there."""
        many = len(self.x) > 1
        for p in range(_PANELS):
            moved = self.x[p * many].dot(answers[p])
            moved += rises[p]
            self.phi[p * many].dot(moved, out=answers[p + 1])
            answers[p + 1] += answers[p]
        np.matmul(self.at_ends, answers[..., None], out=slopes[..., None])


def _whole(jacobians: np.ndarray) -> np.ndarray:
    """Jacobians of the whole drift, ``(..., d, d)``, from those of the acceleration with respect to the positions."""
    half = jacobians.shape[-1]
    out = np.zeros((*jacobians.shape[:-2], 2 * half, 2 * half))
    out[..., :half, half:] = np.eye(half)
    out[..., half:, :half] = jacobians
    return out


def solve_through(
    segments: Sequence[PanelLinearization], residual: np.ndarray, jumps: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Changes of the states ``(S, n, d)`` and of the starts ``(S, d)`` of segments.

    Args:
        segments: S of them.
        residual: ``(S, n, d)``.
        jumps: ``(S - 1, d)``, for segments one behind the other: the end of each segment less the start of the next.
            None: no start moves.
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
    # the answers less the residuals are smooth: Hermite's cubics interpolate them
    panel, weights = _hermite(nodes)
    smooth = answers - ends
    four = np.stack([smooth[:, panel], smooth[:, panel + 1], slopes[:, panel], slopes[:, panel + 1]], 2)
    return residual + (weights @ four)[:, :, 0], carried
