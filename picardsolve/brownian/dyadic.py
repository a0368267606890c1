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
        slope: ``(2, 2, 1, C)``, of the parabolas, by normal and half.
        bend: ``(2, 2, 1, C)``.
        key: ``(C,)``, the number that each column adds to the key of a path.
    """

    length: Floats
    slope: Floats
    bend: Floats
    key: Keys

    @classmethod
    @lru_cache
    def down_to(cls, resolution: float) -> "Levels":
        """The levels down to ``resolution``, a power of two."""
        length = 2.0 ** np.arange(TOP, round(np.log2(resolution)) - 1, -1)
        slope, bend = np.array([(_W, _H)] + [(_X1, _X2)] * len(length)).transpose(3, 1, 2, 0)[:, :, :, None]
        return cls(np.append(length[:1], length), slope.copy(), bend.copy(), np.arange(len(length) + 1) * _LEVEL)

    def values(self, place: Floats) -> Floats:
        """Factors ``(2, T, C)`` of the motion from the start of the coarsest cell to positions in the cells."""
        left, right = np.minimum(2 * place, 1), np.maximum(2 * place - 1, 0)
        factors = left * (self.slope[:, 0] + self.bend[:, 0] * left)
        factors += right * (self.slope[:, 1] + self.bend[:, 1] * right)
        factors[..., -1] = _cut(place[:, -1])
        factors *= np.sqrt(self.length)
        return factors

    def areas(self, start: Floats, end: Floats, balance: Floats) -> Floats:
        """Factors of what pieces of cells add to the area of an interval, times its length.

        Args:
            start: ``(R, C)``, where in the cell a piece starts, from 0 to 1.
            end: where it ends.
            balance: the length of the interval after the piece minus that before the piece, in lengths of the cell.

        Returns:
            ``(2, R, C)``.
        """
        increments, areas = self._within(start, end)
        # Chen's relation: the increment of a piece shifts the path behind it, and the chord of the interval
        return (areas + increments * (balance / 2)) * self.length**1.5

    def _within(self, start: Floats, end: Floats) -> tuple[Floats, Floats]:
        """Increments ``(2, R, C)``, and areas times lengths, of pieces of cells of length 1."""
        u0, u1 = (np.clip([2 * place, 2 * place - 1], 0, 1) for place in (start, end))
        step = u1 - u0
        left, right = (step * (self.slope + self.bend * (u0 + u1))).swapaxes(0, 1)
        cubes = self.bend * (step * step * step)
        areas = (step[1] * left - step[0] * right) / 4 - (cubes[:, 0] + cubes[:, 1]) / 12
        increments = left + right
        # in the last column a piece is what is right of its start, or what is left of its end
        place0, place1 = start[:, -1], end[:, -1]
        before, after = _cut_areas(place1)[0] * place1, _cut_areas(place0)[1] * (1 - place0)
        increments[..., -1] = np.where(place1 < 1, _cut(place1), -_cut(place0))
        areas[..., -1] = np.where(place1 < 1, before, after)
        return increments, areas


def _cut(place: Floats) -> Floats:
    """Factors ``(2, R)`` of the increment of the left part of cells of length 1 that are cut in two.

    Source: Foster, Lyons & Oberhauser 2020, theorem 3.7, with W = H = 0. The increment of the right part is minus that
    of the left.
    """
    left, right = place, 1 - place
    first = np.sqrt(left * right * (left * left * left + right * right * right))
    return np.stack([first, np.zeros_like(first)])


def _cut_areas(place: Floats) -> tuple[Floats, Floats]:
    """Factors ``(2, R)`` of the areas of both parts of such cells."""
    left, right = place, 1 - place
    v = 0.5 * np.sqrt(left * right / (left * left * left + right * right * right))
    return np.stack([-v * left**2, v * right / 3**0.5]), np.stack([-v * right**2, -v * left / 3**0.5])
