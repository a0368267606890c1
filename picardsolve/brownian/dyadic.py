"""Brownian motion and its integral as sums over dyadic cells: which normals a time or an interval takes, and how much.

Each dyadic cell of length l has an increment W and a space-time Levy area H ~ N(0, l / 12). Its halves' follow from
them and two more normals (Foster, Lyons & Oberhauser 2020, theorem 3.7), so that a path is a sum of parabolas: of a
coarsest cell's (W, H), and of the (X1, X2) of every cell that is halved. What a halved cell adds vanishes at its ends,
and so does its integral: a time takes the cells that hold it, an interval those that hold one of its ends. A cell of
the resolution is cut where the time is, by the same theorem: it holds no other time, so the law is exact.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from picardsolve.brownian.counter import GOLDEN, mixed, pairs

TOP = 10  # cells of the coarsest level are 2**10 long, and independent of each other
_ELEMENTS = 64  # as many at once: their normals stay in the cache
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
    """Rows that are sums of normals; a term has two of them.

    Attributes:
        starts: ``(R + 1,)`` where the terms of a row start.
        streams: ``(n,)`` which normals.
        factors: ``(n, 2)`` how much of each.
    """

    starts: NDArray[np.int64]
    streams: Keys
    factors: Array

    @classmethod
    def of(cls, row: NDArray[np.int64], rows: int, streams: Keys, factors: Array) -> "Combination":
        """Of terms ``(n,)`` of rows ``row``, in any order of rows."""
        order = np.argsort(row, kind="stable")
        starts = np.append(0, np.cumsum(np.bincount(row, minlength=rows)))
        return cls(starts, streams[order], factors[order])

    def then(self, other: "Combination") -> "Combination":
        """These rows, then the ``other`` ones."""
        return Combination(
            np.concatenate([self.starts, self.starts[-1] + other.starts[1:]]),
            np.concatenate([self.streams, other.streams]),
            np.concatenate([self.factors, other.factors]),
        )

    def sums(self, size: int) -> Array:
        """The rows ``(R, size)``. A row is summed in the order of its terms, whatever its company: bitwise the same."""
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
    """What lies within one cell of an interval, all ``(n,)``.

    Attributes:
        row: the interval.
        column: the level.
        cell: which of its cells.
        start: where in the cell the piece starts, from 0 to 1.
        end: where in the cell it ends.
        balance: of the interval, what comes after the piece less what comes before it, in cells.
    """

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    cell: Array
    start: Array
    end: Array
    balance: Array

    def and_(self, *others: "Pieces") -> "Pieces":
        """All of them."""
        return Pieces(*(np.concatenate(parts) for parts in zip(self, *others, strict=True)))


@dataclass(frozen=True)
class Levels:
    """Cells from the coarsest to those of the resolution.

    A column is what a level adds: first the coarsest cell's (W, H), then the (X1, X2) of a cell that is halved, last
    those of a cell of the resolution, cut at the time.

    Attributes:
        length: ``(C,)`` of a column's cells.
        parabolas: ``(C, 2, 2, 2)``: normals, halves, slope and bend.
        key: ``(C,)`` what a column adds to the key of a path.
    """

    length: Array
    parabolas: Array
    key: Keys

    @classmethod
    @lru_cache
    def down_to(cls, resolution: float) -> "Levels":
        """Levels for intervals from ``resolution``, a power of two."""
        length = 2.0 ** np.arange(TOP, round(np.log2(resolution)) - 1, -1)
        parabolas = np.array([(_W, _H)] + [(_X1, _X2)] * len(length))
        return cls(np.append(length[:1], length), parabolas, np.arange(len(length) + 1, dtype=np.uint64) * _LEVEL)

    def values(self, key: Keys, t: Array) -> Combination:
        """``W(t) - W(start of its coarsest cell)`` at times ``(R,)`` of paths ``(R,)``."""
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
        """Space-time Levy areas from ``start`` up to ``end``, both ``(R,)``."""
        length = end - start
        pieces = self._cut_up(start, end)
        increment, area = self._within(pieces)
        # a piece moves what comes after it up, and the chord with it: Chen's relation with pieces that do not move
        factors = area + increment * pieces.balance[:, None] / 2
        factors *= (self.length**1.5)[pieces.column, None] / length[pieces.row, None]
        level = mixed(key[pieces.row] + self.key[pieces.column])
        return Combination.of(pieces.row, len(key), mixed(level + _counter(pieces.cell)), factors)

    def _cut_up(self, start: Array, end: Array) -> "Pieces":
        """Into what lies in the cells of the starts, in those of the ends, and in coarsest cells between them."""
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
        """``(n, 2)`` increments, and areas times lengths, of pieces for cells of length 1."""
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
        """Cells ``(R, C)`` that hold times ``(R,)``, and where in them."""
        scaled = t[:, None] / self.length
        cell = np.floor(scaled)
        return cell, scaled - cell

    def _streams(self, key: Keys, cell: Array) -> Keys:
        """Streams of the normals of cells ``(R, C)``."""
        return mixed(mixed(key[:, None] + self.key) + _counter(cell))


def _cut(place: Array) -> tuple[Array, Array, Array]:
    """Of a cell of length 1 cut in two, the (X1, X2): increments of the left part, areas of the left and of the right.

    Foster, Lyons & Oberhauser 2020, theorem 3.7, for W = H = 0; the right part's increment is the left one's negative.
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
    """Rows, and the whole numbers from ``low`` to below ``high`` of each of them."""
    count = np.maximum(high - low, 0).astype(np.int64)
    row = np.repeat(np.arange(len(count)), count)
    return row, low[row] + np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
