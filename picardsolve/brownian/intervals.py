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
    factors = [_increments(levels, cells, sign)]
    if areas:
        factors.append(_areas(levels, cells, high - low))
    within = _combined(cells, factors)
    across = Across.of(levels, key, cells)
    if not len(across.row):
        return within
    further = [across.increments(levels, sign)]
    if areas:
        further.append(across.areas(levels, high - low))
    return across.behind(within, further)


@dataclass(frozen=True)
class Cells:
    """The cells of every level that hold the ends of R intervals, which are T times in all. There are C columns.

    Attributes:
        streams: ``(U,)``, one for each cell that is needed.
        number: ``(R, 2, C)``, the cells of the start and of the end of each interval, as places in ``streams``.
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
        ends, samples = np.concatenate([start, end]), np.concatenate([sample, sample])
        first, when = _distinct(ends)
        times = ends[first]
        first, pair = _distinct(samples * len(times) + when)
        place = times[:, None] / levels.length
        cell = np.floor(place)
        place -= cell
        inside = place > 0  # no time needs a cell at whose start it is, except the coarsest
        inside[:, 0] = True
        moment, own, row = when[first], samples[first], first % len(sample)
        cells, new = cell[moment], inside[moment]
        same = cells[1:] == cells[:-1]
        same &= new[:-1]
        same &= (own[1:] == own[:-1])[:, None]
        new[1:] &= ~same
        count = new.sum(0)
        number = new.cumsum(0)
        number += count.cumsum() - count - 1
        column, at = new.T.nonzero()
        streams = _streams(key[row[at]], levels.key[column], cells[at, column])
        return cls(streams, number[pair.reshape(2, -1).T], when.reshape(2, -1), cell, place)

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
        row = np.arange(len(count)).repeat(count)
        nth = np.arange(1, len(row) + 1) - (count.cumsum() - count)[row]
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

    def behind(self, within: Combination, factors: list[Floats]) -> Combination:
        """The rows of a combination with terms behind them, whose factors are ``(E, 2)`` for each kind of rows."""
        rows = len(within.starts) // len(factors)
        row = np.concatenate([self.row + kind * rows for kind in range(len(factors))]).repeat(2)
        normal = 2 * len(within.streams) + np.arange(2 * len(self.row))
        end = np.append(within.starts[1:], len(within.normal))[row]
        return Combination(
            within.starts + np.searchsorted(row, np.arange(len(within.starts))),
            np.concatenate([within.streams, self.streams]),
            np.insert(within.normal, end, np.tile(normal, len(factors))),
            np.insert(within.factors, end, np.concatenate(factors).ravel()),
        )


def _increments(levels: Levels, cells: Cells, sign: Floats) -> Floats:
    """Factors ``(R, 2, 2, C)`` of the increments: the cell of the start or of the end, normal, and column."""
    values, alone = levels.values(cells.place), cells.alone[:, None]
    start, end = values.swapaxes(0, 1)[cells.when]
    shared = start * alone
    factors = np.stack([shared - start, end - shared], 1)
    factors[:, 0, 0, 0] += ~alone[:, 0, 0] * levels.length[0] ** 0.5  # up to the end of the first coarsest cell
    factors *= sign[:, None, None, None]
    return factors


def _areas(levels: Levels, cells: Cells, length: Floats) -> Floats:
    """Factors ``(R, 2, 2, C)`` of the areas, as `_increments`."""
    (start, end), alone = cells.place[cells.when], cells.alone
    whole = length[:, None] / levels.length
    # from the start to the end of its cell, and from the start of the other cell to the end; or from start to end
    first = levels.areas(start * ~alone, np.where(alone, 0.0, 1.0), whole + start - 1)
    last = levels.areas(start * alone, end, (end - whole) * ~alone)
    return np.stack([first, last]).transpose(2, 0, 1, 3) / length[:, None, None, None]


def _combined(cells: Cells, factors: list[Floats]) -> Combination:
    """The combination with factors ``(R, 2, 2, C)`` for each kind of rows; a term whose factor is 0 is left out."""
    normal = 2 * cells.number[:, :, None] + np.arange(2)[:, None]
    used = [factor != 0 for factor in factors]
    count = np.concatenate([one.reshape(len(one), -1).sum(1) for one in used])
    return Combination(
        count.cumsum() - count,
        cells.streams,
        np.concatenate([normal[one] for one in used]),
        np.concatenate([factor[one] for factor, one in zip(factors, used, strict=True)]),
    )


def _streams(key: Keys, column: Keys, cell: Floats) -> Keys:
    """The streams of cells of paths."""
    return mixed(mixed(key + column) + cell.astype(np.int64) * GOLDEN)


def _distinct(numbers: NDArray) -> tuple[Index, Index]:
    """Where each distinct number is first, in order of the numbers; and for each number, which of these it is.

    `numpy.unique` takes three times as long for a few numbers.
    """
    order = numbers.argsort(kind="stable")
    ordered = numbers[order]
    new = np.ones(len(numbers), dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    which = np.empty(len(numbers), dtype=np.int64)
    which[order] = new.cumsum() - 1
    return order[new], which
