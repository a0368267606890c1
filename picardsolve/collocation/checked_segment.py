"""One segment that passed its check, on the host."""

from dataclasses import dataclass

import numpy as np

from picardsolve.collocation.nodes import Nodes


@dataclass(frozen=True)
class CheckedSegment:
    """A segment that passed its check.

    Attributes:
        t, h: elapsed time at its begin, and its length.
        nodes: of the segment.
        values: at the points that its polynomial goes through, ``(points, d)``.
    """

    t: float
    h: float
    nodes: Nodes
    values: np.ndarray

    @property
    def end(self) -> float:
        """Elapsed time at its end."""
        return self.t + self.h

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """States ``(*x.shape, d)`` at places of [0, 1] in the segment."""
        return self.nodes.interpolate(x) @ self.values
