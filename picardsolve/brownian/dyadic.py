"""Brownian motion and its integral as sums over dyadic cells: which normals a value needs, with which factors.

Each dyadic cell of length l has an increment W and a space-time Levy area H ~ N(0, l / 12). Those of its two halves
follow from them and from two more normals (Foster, Lyons & Oberhauser 2020, theorem 3.7). A path is therefore a sum of
parabolas: one from (W, H) of a coarsest cell, and one from (X1, X2) of every cell that is halved. The parabola of a
halved cell and its integral vanish at both ends of the cell. So the value at a time needs the cells that contain the
time, and the area of an interval those that contain one of its ends. A cell of the resolution is cut at the time
itself, by the same theorem. It contains no other time, so the law is exact.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from picardsolve.brownian.counter import Keys

TOP = 10  # cells of the coarsest level are 2**10 long, and independent of each other
_LEVEL = 0xD1B54A32D192ED03 - 2**64

Floats = NDArray[np.float64]

# parabolas u (slope + bend u), u from 0 to 1 in either half of a cell of length 1: slope, bend; left, right
_W = ((0.5, 0.0), (0.5, 0.0))
_H = ((0.75**0.5, -(0.1875**0.5)), (0.0, -(0.1875**0.5)))
_X1 = ((-0.5, 0.75), (-1.0, 0.75))
_X2 = ((0.75**0.5, -(0.75**0.5)), (-(0.75**0.5), 0.75**0.5))


@dataclass(frozen=True)
class Levels:
    """The levels of cells from the coarsest to those of the resolution.

    There are C columns: first (W, H) of the coarsest cell, then (X1, X2) of each cell that is halved, last (X1, X2) of
    the cell of the resolution, which is cut at the time.

    Attributes:
        length: ``(C,)``, length of the cells of each column.
        parabolas: ``(C, 2, 2, 2)``, by normal, half, and slope or bend.
        key: ``(C,)``, the number that each column adds to the key of a path.
    """

    length: Floats
    parabolas: Floats
    key: Keys

    @classmethod
    @lru_cache
    def down_to(cls, resolution: float) -> "Levels":
        """The levels down to ``resolution``, a power of two."""
        length = 2.0 ** np.arange(TOP, round(np.log2(resolution)) - 1, -1)
        parabolas = np.array([(_W, _H)] + [(_X1, _X2)] * len(length))
        return cls(np.append(length[:1], length), parabolas, np.arange(len(length) + 1) * _LEVEL)

    def values(self, place: Floats) -> Floats:
        """Factors ``(..., C, 2)`` of the motion from the start of the coarsest cell to positions in the cells."""
        left, right = np.minimum(2 * place, 1)[..., None], np.maximum(2 * place - 1, 0)[..., None]
        slope, bend = self.parabolas[..., 0], self.parabolas[..., 1]
        factors = left * (slope[..., 0] + bend[..., 0] * left) + right * (slope[..., 1] + bend[..., 1] * right)
        factors[..., -1, :] = _cut(place[..., -1])[0]
        factors *= np.sqrt(self.length)[:, None]
        return factors

    def areas(self, start: Floats, end: Floats, balance: Floats) -> Floats:
        """Factors of what pieces of cells add to the area of an interval, times its length.

        Args:
            start: ``(..., C)``, where in the cell a piece starts, from 0 to 1.
            end: where it ends.
            balance: the length of the interval after the piece minus that before the piece, in lengths of the cell.

        Returns:
            ``(..., C, 2)``.
        """
        increments, areas = self._within(start, end)
        # Chen's relation: the increment of a piece shifts the path behind it, and the chord of the interval
        return (areas + increments * balance[..., None] / 2) * (self.length**1.5)[:, None]

    def _within(self, start: Floats, end: Floats) -> tuple[Floats, Floats]:
        """Increments ``(..., C, 2)``, and areas times lengths, of pieces of cells of length 1."""
        half = np.array([0.0, 1.0])
        u0, u1 = (np.clip(2 * place[..., None] - half, 0, 1) for place in (start, end))
        slope, bend = self.parabolas[..., 0], self.parabolas[..., 1]
        step = (u1 - u0)[..., None, :]
        w = step * (slope + bend * (u0 + u1)[..., None, :])
        areas = (step**3 * -bend).sum(-1) / 12 + (step[..., 1] * w[..., 0] - step[..., 0] * w[..., 1]) / 4
        increments = w.sum(-1)
        # in the last column a piece is what is right of its start, or what is left of its end
        place0, place1 = start[..., -1], end[..., -1]
        (left, area0, _), (right, _, area1) = _cut(place1), _cut(place0)
        before = (place1 < 1)[..., None]
        increments[..., -1, :] = np.where(before, left, -right)
        areas[..., -1, :] = np.where(before, area0 * place1[..., None], area1 * (1 - place0[..., None]))
        return increments, areas


def _cut(place: Floats) -> tuple[Floats, Floats, Floats]:
    """Factors of (X1, X2) for a cell of length 1 cut in two: increment of the left part, areas of both parts.

    Source: Foster, Lyons & Oberhauser 2020, theorem 3.7, with W = H = 0. The increment of the right part is minus that
    of the left.
    """
    left, right = place[..., None], 1 - place[..., None]
    cubes = left**3 + right**3
    v = 0.5 * np.sqrt(left * right / cubes)
    increments = np.concatenate([2 * v * cubes, np.zeros_like(v)], -1)
    return (
        increments,
        np.concatenate([-v * left**2, v * right / 3**0.5], -1),
        np.concatenate([-v * right**2, -v * left / 3**0.5], -1),
    )
