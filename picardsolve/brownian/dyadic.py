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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from picardsolve.brownian.counter import GOLDEN, mixed, pairs

TOP = 10  # cells of the coarsest level are 2**10 long, and independent of each other
_ELEMENTS = 64  # elements in one block, whose normals stay in the cache
_LEVEL = np.uint64(0xD1B54A32D192ED03)

Array = NDArray[np.float64]
Keys = NDArray[np.uint64]

# parabolas u (slope + bend u), u from 0 to 1 in either half of a cell of length 1: slope, bend; left, right
_W = ((0.5, 0.0), (0.5, 0.0))
_H = ((0.75**0.5, -(0.1875**0.5)), (0.0, -(0.1875**0.5)))
_X1 = ((-0.5, 0.75), (-1.0, 0.75))
_X2 = ((0.75**0.5, -(0.75**0.5)), (-(0.75**0.5), 0.75**0.5))


@dataclass(frozen=True)
class Combination:
    """Rows that are sums of normals. Each term is two normals of one stream, times two factors.

    Attributes:
        starts: ``(R + 1,)``, where the terms of each row start.
        streams: ``(n,)``, the stream of each term.
        factors: ``(n, 2)``, the factors of each term.
    """

    starts: NDArray[np.int64]
    streams: Keys
    factors: Array

    @classmethod
    def of(cls, row: NDArray[np.int64], rows: int, streams: Keys, factors: Array) -> "Combination":
        """The combination of terms ``(n,)`` that belong to rows ``row``, in any order."""
        order = np.argsort(row, kind="stable")
        starts = np.append(0, np.cumsum(np.bincount(row, minlength=rows)))
        return cls(starts, streams[order], factors[order])

    def then(self, other: "Combination") -> "Combination":
        """These rows followed by the ``other`` ones."""
        return Combination(
            np.concatenate([self.starts, self.starts[-1] + other.starts[1:]]),
            np.concatenate([self.streams, other.streams]),
            np.concatenate([self.factors, other.factors]),
        )

    def sums(self, size: int) -> Array:
        """The sums ``(R, size)``. A row is summed in the order of its terms, so other rows do not change its bits."""
        stream, place = np.unique(self.streams, return_inverse=True)
        columns = (2 * place[:, None] + np.arange(2)).ravel()
        shape = len(self.starts) - 1, 2 * len(stream)
        matrix = csr_array((self.factors.ravel(), columns, 2 * self.starts), shape=shape)
        out = np.empty((shape[0], size))
        for first in range(0, size, _ELEMENTS):
            count = min(_ELEMENTS, size - first)
            out[:, first : first + count] = matrix @ pairs(stream, first, count).reshape(-1, count)
        return out


class Pieces(NamedTuple):
    """Parts of intervals that lie within one cell, all ``(n,)``.

    Attributes:
        row: the interval.
        column: the level.
        cell: the cell of this level.
        start: where in the cell the piece starts, from 0 to 1.
        end: where in the cell the piece ends.
        balance: the length of the interval after the piece minus that before the piece, in lengths of the cell.
    """

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    cell: Array
    start: Array
    end: Array
    balance: Array

    def and_(self, *others: "Pieces") -> "Pieces":
        """These pieces and the others."""
        return Pieces(*(np.concatenate(parts) for parts in zip(self, *others, strict=True)))


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

    length: Array
    parabolas: Array
    key: Keys

    @classmethod
    @lru_cache
    def down_to(cls, resolution: float) -> "Levels":
        """The levels down to ``resolution``, a power of two."""
        length = 2.0 ** np.arange(TOP, round(np.log2(resolution)) - 1, -1)
        parabolas = np.array([(_W, _H)] + [(_X1, _X2)] * len(length))
        return cls(np.append(length[:1], length), parabolas, np.arange(len(length) + 1, dtype=np.uint64) * _LEVEL)

    def values(self, key: Keys, t: Array) -> Combination:
        """``W(t) - W(start of the coarsest cell of t)`` at times ``(R,)`` of paths ``(R,)``."""
        cell, place = self._cells(t)
        left, right = np.minimum(2 * place, 1)[:, :, None], np.maximum(2 * place - 1, 0)[:, :, None]
        slope, bend = self.parabolas[..., 0], self.parabolas[..., 1]
        factors = left * (slope[..., 0] + bend[..., 0] * left) + right * (slope[..., 1] + bend[..., 1] * right)
        factors[:, -1] = _cut(place[:, -1])[0]
        factors *= np.sqrt(self.length)[:, None]
        used = place > 0
        return Combination(np.append(0, np.cumsum(used.sum(1))), self._streams(key, cell)[used], factors[used])

    def crossings(self, key: Keys, t0: Array, t1: Array) -> Combination:
        """``W(start of the coarsest cell of t1) - W(start of that of t0)``."""
        cell0, cell1 = np.floor(t0 / self.length[0]), np.floor(t1 / self.length[0])
        row, cell = _between(np.minimum(cell0, cell1), np.maximum(cell0, cell1))
        factors = np.zeros((len(row), 2))
        factors[:, 0] = np.sign(cell1 - cell0)[row] * self.length[0] ** 0.5
        return Combination.of(row, len(key), mixed(mixed(key[row]) + _counter(cell)), factors)

    def areas(self, key: Keys, start: Array, end: Array) -> Combination:
        """The space-time Levy areas from ``start`` up to ``end``, both ``(R,)``."""
        length = end - start
        pieces = self._cut_up(start, end)
        increment, area = self._within(pieces)
        # Chen's relation: the increment of a piece shifts the path behind it, and the chord of the interval
        factors = area + increment * pieces.balance[:, None] / 2
        factors *= (self.length**1.5)[pieces.column, None] / length[pieces.row, None]
        level = mixed(key[pieces.row] + self.key[pieces.column])
        return Combination.of(pieces.row, len(key), mixed(level + _counter(pieces.cell)), factors)

    def _cut_up(self, start: Array, end: Array) -> "Pieces":
        """The pieces in the cells of the starts, in the cells of the ends, and in the coarsest cells in between."""
        (cell0, place0), (cell1, place1) = self._cells(start), self._cells(end)
        row, column = (index.ravel() for index in np.indices(cell0.shape))
        length, alone = (end - start)[:, None] / self.length, cell0 == cell1
        upto, after = np.where(alone, place1, 1), np.where(alone, 0, length + place0 - 1)
        more = ~alone & (place1 > 0)
        first = Pieces(row, column, cell0.ravel(), place0.ravel(), upto.ravel(), after.ravel())
        last = Pieces(
            row[more.ravel()],
            column[more.ravel()],
            cell1[more],
            np.zeros(more.sum()),
            place1[more],
            (place1 - length)[more],
        )
        row, cell = _between(cell0[:, 0] + 1, cell1[:, 0])
        before = cell - (cell0 + place0)[row, 0]
        none = np.zeros_like(before)
        return first.and_(
            last, Pieces(row, none.astype(np.int64), cell, none, none + 1, length[row, 0] - 1 - 2 * before)
        )

    def _within(self, of: "Pieces") -> tuple[Array, Array]:
        """Increments ``(n, 2)``, and areas times lengths, of pieces of cells of length 1."""
        half = np.array([0.0, 1.0])
        u0, u1 = (np.clip(2 * place[:, None] - half, 0, 1) for place in (of.start, of.end))
        slope, bend = self.parabolas[of.column, ..., 0], self.parabolas[of.column, ..., 1]
        step = (u1 - u0)[:, None]
        w = step * (slope + bend * (u0 + u1)[:, None])
        areas = (step**3 * -bend).sum(-1) / 12 + (step[..., 1] * w[..., 0] - step[..., 0] * w[..., 1]) / 4
        increments = w.sum(-1)
        cut = of.column == len(self.length) - 1
        right, left = cut & (of.end == 1), cut & (of.end < 1)
        place0, place1 = of.start[right], of.end[left]
        increments[right], areas[right] = -_cut(place0)[0], _cut(place0)[2] * (1 - place0[:, None])
        increments[left], areas[left] = _cut(place1)[0], _cut(place1)[1] * place1[:, None]
        return increments, areas

    def _cells(self, t: Array) -> tuple[Array, Array]:
        """The cells ``(R, C)`` that contain times ``(R,)``, and the positions in them from 0 to 1."""
        scaled = t[:, None] / self.length
        cell = np.floor(scaled)
        return cell, scaled - cell

    def _streams(self, key: Keys, cell: Array) -> Keys:
        """The streams of the normals of cells ``(R, C)``."""
        return mixed(mixed(key[:, None] + self.key) + _counter(cell))


def _cut(place: Array) -> tuple[Array, Array, Array]:
    """Factors of (X1, X2) for a cell of length 1 cut in two: increment of the left part, areas of both parts.

    Source: Foster, Lyons & Oberhauser 2020, theorem 3.7, with W = H = 0. The increment of the right part is minus that
    of the left.
    """
    left, right = place[:, None], 1 - place[:, None]
    cubes = left**3 + right**3
    v = 0.5 * np.sqrt(left * right / cubes)
    increments = np.concatenate([2 * v * cubes, np.zeros_like(v)], 1)
    return (
        increments,
        np.concatenate([-v * left**2, v * right / 3**0.5], 1),
        np.concatenate([-v * right**2, -v * left / 3**0.5], 1),
    )


def _counter(cell: Array) -> Keys:
    return cell.astype(np.int64).view(np.uint64) * GOLDEN


def _between(low: Array, high: Array) -> tuple[NDArray[np.int64], Array]:
    """For each row, the whole numbers from ``low`` to below ``high``: the rows, and the numbers."""
    count = np.maximum(high - low, 0).astype(np.int64)
    row = np.repeat(np.arange(len(count)), count)
    return row, low[row] + np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
