"""The linearised equations of a segment, roughly: a Gauss method of order 4 on five panels."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from picardsolve.collocation.linear import Linear
from picardsolve.collocation.nodes import Nodes

_PANELS = 5
_GAUSS = np.array([0.5 - 3**-0.5 / 2, 0.5 + 3**-0.5 / 2])
_WEIGHTS = np.array([[1 / 4, 1 / 4 - 3**0.5 / 6], [1 / 4 + 3**0.5 / 6, 1 / 4]])  # Hairer & Wanner 1996, table IV.5.1

SEEN = ((np.arange(_PANELS)[:, None] + _GAUSS) / _PANELS).ravel()  # where Jacobians are seen, of [0, 1]


@lru_cache
def to_seen(nodes: Nodes) -> np.ndarray:
    """Interpolation from the points of a segment to `SEEN`, ``(10, points)``."""
    return nodes.interpolate(SEEN)


@lru_cache
def _from_nodes(nodes: Nodes) -> np.ndarray:
    """The same from the nodes alone, ``(10, n)``."""
    return nodes.extrapolate(SEEN, nodes.n)


@lru_cache
def _inside(nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Of every node the panel that it is in, and the weights of the panel's two stages up to it."""
    panel = np.minimum((nodes.c * _PANELS).astype(int), _PANELS - 1)
    theta, (a, b) = nodes.c * _PANELS - panel, _GAUSS
    weights = np.stack([(theta**2 / 2 - b * theta) / (a - b), (theta**2 / 2 - a * theta) / (b - a)], 1)
    return panel, weights


@dataclass
class Panels(Linear):
    """J at ten points, for algebra that is linear in the nodes: of moderate states, where equations are not stiff.

    Its answers are off by some hundredths, which Newton's iteration mends.

    Attributes:
        h: length of the segment.
        jacobian: at `SEEN`, or at one point for all.
    """

    nodes: Nodes
    h: float
    jacobian: np.ndarray
    second_order: bool

    def __post_init__(self):
        whole, d = self._whole(), self.size
        scaled = whole.reshape(-1, min(len(whole), 2), d, d) * (self.h / _PANELS)
        rows = np.broadcast_to(scaled, (len(scaled), 2, d, d))
        systems = -(_WEIGHTS[:, None, :, None] * rows[:, :, :, None]).reshape(-1, 2 * d, 2 * d)
        systems += np.eye(2 * d)
        self.singular = not np.isfinite(systems).all()
        if not self.singular:
            right = np.zeros((len(rows), 2, d, 2, d))
            right[:, 0, :, 0], right[:, 1, :, 1] = rows[:, 0], rows[:, 1]
            self._stages = np.linalg.solve(systems, right.reshape(-1, 2 * d, 2 * d))
            self._by_state = self._stages[..., :d] + self._stages[..., d:]

    def _whole(self) -> np.ndarray:
        """The Jacobians of the whole drift."""
        if not self.second_order:
            return self.jacobian
        k, half, _ = self.jacobian.shape
        out = np.zeros((k, 2 * half, 2 * half))
        out[:, :half, half:] = np.eye(half)
        out[:, half:, :half] = self.jacobian
        return out

    def solve(self, residual: np.ndarray) -> np.ndarray:
        """From panel to panel: the answer less the residual, which is smooth."""
        if self.singular:
            return np.full_like(residual, np.nan)
        n, d = residual.shape[:2]
        flat = residual.reshape(n, d, -1)
        seen = np.tensordot(_from_nodes(self.nodes), flat, 1)
        known = self._stages @ seen.reshape(_PANELS, 2 * d, -1)
        states = np.zeros((_PANELS + 1, d, known.shape[-1]))
        for p in range(_PANELS):
            known[p] += self._by_state[p % len(self._by_state)] @ states[p]
            states[p + 1] = states[p] + (known[p, :d] + known[p, d:]) / 2
        panel, weights = _inside(self.nodes)
        stages = known.reshape(_PANELS, 2, d, -1)[panel]
        moved = states[panel] + np.einsum("ns,nsdk->ndk", weights, stages)
        return (flat + moved).reshape(residual.shape)

    def followed(self, h: float, drift: np.ndarray) -> np.ndarray:
        """On as many panels."""
        return Panels(self.nodes, h, self.jacobian[-1:], self.second_order).solve(h * self.nodes.c[:, None] * drift)
