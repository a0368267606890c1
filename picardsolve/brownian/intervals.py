"""The increments and areas of intervals of paths, as sums of the normals of the cells that hold their ends."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from picardsolve.brownian.combination import Combination
from picardsolve.brownian.counter import GOLDEN, Keys, mixed
from picardsolve.brownian.dyadic import Floats, Levels

Index = NDArray[np.int64]


def combination(levels: Levels, key: Keys, sample: Index, start: Floats, end: Floats, areas: bool) -> Combination:
    """The increments of intervals ``(R,)``; with ``areas``, the space-time Levy areas behind them.

    Both are the same from the end to the start, but for the sign of the increment.

    Args:
        levels: of the cells.
        key: ``(R,)``, the key of each interval's path.
        sample: ``(R,)``, which path that is.
        start: ``(R,)``.
        end: ``(R,)``.
        areas: whether areas follow.
    """
    low, high, sign = np.minimum(start, end), np.maximum(start, end), np.sign(end - start)
    cells = Cells.of(levels, key, sample, low, high)
    across = Across.of(levels, key, cells)
    factors, further = [_increments(levels, cells, sign)], [across.increments(levels, sign)]
    if areas:
        factors.append(_areas(levels, cells, high - low))
        further.append(across.areas(levels, high - low))
    return _combined(cells, factors, across, further)


@dataclass(frozen=True)
class Cells:
    """The cells of every level that hold the ends of R intervals, which are T times in all. There are C columns.

    Attributes:
        streams: ``(U,)``, one for each cell that is needed.
        number: ``(R, C, 2)``, the cells of the start and of the end of each interval, as places in ``streams``.
        when: ``(2, R)``, start and end of each interval, as places in the following.
        cell: ``(T, C)``, the cells of each time.
        place: ``(T, C)``, its positions in them, from 0 to 1.
    """

    streams: Keys
    number: Index
    when: Index
    cell: Floats
    place: Floats

    @classmethod
    def of(cls, levels: Levels, key: Keys, sample: Index, start: Floats, end: Floats) -> "Cells":
        """The cells of intervals ``(R,)`` of paths ``(R,)``."""
        # neighbouring steps share a time, and neighbouring times share cells
        times, when = np.unique(np.concatenate([start, end]), return_inverse=True)
        _, first, pair = np.unique(
            np.concatenate([sample, sample]) * len(times) + when, return_index=True, return_inverse=True
        )
        place = times[:, None] / levels.length
        cell = np.floor(place)
        place -= cell
        inside = place > 0  # no time needs a cell at whose start it is, except the coarsest
        inside[:, 0] = True
        moment, row = when[first], first % len(sample)
        cells, new = cell[moment], inside[moment]
        same = cells[1:] == cells[:-1]
        same &= new[:-1]
        same &= (sample[row[1:]] == sample[row[:-1]])[:, None]
        new[1:] &= ~same
        count = new.sum(0)
        number = new.cumsum(0)
        number += count.cumsum() - count - 1
        column, at = new.T.nonzero()
        streams = _streams(key[row[at]], levels.key[column], cells[at, column])
        return cls(streams, number[pair.reshape(2, -1).T].transpose(0, 2, 1), when.reshape(2, -1), cell, place)

    @property
    def alone(self) -> NDArray[np.bool_]:
        """Whether both ends of an interval lie in the same cell, ``(R, C)``."""
        return self.cell[self.when[0]] == self.cell[self.when[1]]


@dataclass(frozen=True)
class Across:
    """The coarsest cells between those of the two ends.

    Attributes:
        row: ``(E,)``, the interval.
        before: ``(E,)``, the length of the interval before the cell, in lengths of the cell.
        streams: ``(E,)``.
    """

    row: Index
    before: Floats
    streams: Keys

    @classmethod
    def of(cls, levels: Levels, key: Keys, cells: Cells) -> "Across":
        """The cells between those of intervals of paths ``(R,)``."""
        first, last = cells.cell[cells.when, 0]
        count = np.maximum(last - first - 1, 0).astype(np.int64)
        row = np.repeat(np.arange(len(count)), count)
        nth = np.arange(1, len(row) + 1) - np.repeat(np.cumsum(count) - count, count)
        before = nth - cells.place[cells.when[0, row], 0]
        return cls(row, before, _streams(key[row], levels.key[0], first[row] + nth))

    def increments(self, levels: Levels, sign: Floats) -> Floats:
        """Factors ``(E, 2)`` of the increments."""
        return (sign[self.row] * levels.length[0] ** 0.5)[:, None] * [1.0, 0.0]

    def areas(self, levels: Levels, length: Floats) -> Floats:
        """Factors ``(E, 2)`` of the areas."""
        scale = levels.length[0]
        balance = length[self.row] / scale - 1 - 2 * self.before
        factors = np.stack([balance / 2, np.full(len(balance), 12**-0.5)], 1)
        return factors * scale**1.5 / length[self.row, None]


def _increments(levels: Levels, cells: Cells, sign: Floats) -> Floats:
    """Factors ``(R, C, 2, 2)`` of the increments, by column, the cell of the start or of the end, and normal."""
    (start, end), alone = levels.values(cells.place)[cells.when], cells.alone
    shared = start * alone[..., None]
    factors = np.stack([shared - start, end - shared], 2)
    factors[:, 0, 0, 0] += ~alone[:, 0] * levels.length[0] ** 0.5  # up to the end of the first coarsest cell
    factors *= sign[:, None, None, None]
    return factors


def _areas(levels: Levels, cells: Cells, length: Floats) -> Floats:
    """Factors ``(R, C, 2, 2)`` of the areas, as `_increments`."""
    (start, end), alone = cells.place[cells.when], cells.alone
    whole = length[:, None] / levels.length
    # from the start to the end of its cell, and from the start of the other cell to the end; or from start to end
    first = levels.areas(start * ~alone, np.where(alone, 0.0, 1.0), whole + start - 1)
    last = levels.areas(start * alone, end, (end - whole) * ~alone)
    return np.stack([first, last], 2) / length[:, None, None, None]


def _combined(cells: Cells, factors: list[Floats], across: Across, further: list[Floats]) -> Combination:
    """The combination with factors ``(R, C, 2, 2)`` of `Cells` and, behind them, ``(E, 2)`` of `Across`.

    A term whose factor is 0 is left out.
    """
    rows, normal = len(cells.number), 2 * cells.number[..., None] + np.arange(2)
    used = [factor != 0 for factor in factors]
    count = np.concatenate([one.reshape(rows, -1).sum(1) for one in used])
    terms = np.concatenate([normal[one] for one in used])
    values = np.concatenate([factor[one] for factor, one in zip(factors, used, strict=True)])
    if len(across.row):
        ends, own = count.cumsum(), 2 * np.arange(len(across.row))[:, None] + 2 * len(cells.streams) + np.arange(2)
        behind = np.concatenate([across.row + kind * rows for kind in range(len(factors))])
        terms = np.insert(terms, np.repeat(ends[behind], 2), np.concatenate([own] * len(factors)).ravel())
        values = np.insert(values, np.repeat(ends[behind], 2), np.concatenate(further).ravel())
        count += 2 * np.bincount(behind, minlength=len(count))
    return Combination(count.cumsum() - count, np.concatenate([cells.streams, across.streams]), terms, values)


def _streams(key: Keys, column: Keys, cell: Floats) -> Keys:
    """The streams of cells of paths."""
    return mixed(mixed(key + column) + cell.astype(np.int64) * GOLDEN)
