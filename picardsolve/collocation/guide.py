"""Earlier paths as the guess of segments that are shorter by a factor."""

from dataclasses import dataclass, field

import numpy as np

from picardsolve.collocation.arrays import Array, Arrays
from picardsolve.collocation.flight import Flight, Memory
from picardsolve.collocation.path import Path
from picardsolve.collocation.sweeps import Followers


def fitted(length: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Lengths of at most ``length``: what is left after each is nothing, or not much shorter than it."""
    return np.where(left > 2 * length, length, np.where(left > length, left / 2, left))


@dataclass
class Guide:
    """The paths of samples that march again.

    Attributes:
        arrays: of the states.
        factor: ``(B,)`` of the lengths of segments; NaN for samples that have no path.
    """

    arrays: Arrays
    factor: np.ndarray
    _paths: list[Path] = field(default_factory=list)
    _path: np.ndarray = field(init=False)

    def __post_init__(self):
        self._path = np.full(len(self.factor), -1)

    def add(self, sample: np.ndarray, path: Path, factor: np.ndarray) -> None:
        """Take the paths of samples."""
        self.forget(sample)
        self._path[sample], self.factor[sample] = len(self._paths), factor
        self._paths.append(path)

    def forget(self, sample: np.ndarray) -> None:
        """Guide some samples no more."""
        self._path[sample], self.factor[sample] = -1, np.nan
        used = np.flatnonzero(np.bincount(self._path[self._path >= 0], minlength=len(self._paths)))
        if len(used) < len(self._paths):
            now = np.full(len(self._paths) + 1, -1)
            now[used] = np.arange(len(used))
            self._path, self._paths = now[self._path], [self._paths[i] for i in used]

    def guides(self, sample: np.ndarray) -> np.ndarray:
        """Whether samples have a path."""
        return self._path[sample] >= 0

    def lengths(self, sample: np.ndarray, t: np.ndarray, left: np.ndarray) -> np.ndarray:
        """Of the segments at elapsed times t, with so much left to go."""
        h = np.empty(len(t))
        for path, own in self._each(sample):
            at = path.segment_of(t[own], sample[own])
            h[own] = path.segments.h[at]
        return fitted(self.factor[sample] * h, left)

    def states(self, sample: np.ndarray, t: np.ndarray, h: np.ndarray, first: np.ndarray, start: Array) -> Array:
        """States ``(P, n, d)`` of segments: along the path, moved to where the first of them starts.

        Args:
            sample: ``(P,)``.
            t: ``(P,)`` elapsed times at their begins.
            h: ``(P,)`` their lengths.
            first: ``(P,)`` elapsed time at which the path is moved.
            start: ``(P, d)`` the states there.
        """
        parts, order = [], []
        for path, own in self._each(sample):
            times = t[own, None] + h[own, None] * path.nodes.c
            n = times.shape[1]
            along = path(times.ravel(), np.repeat(sample[own], n)).reshape(len(own), n, -1)
            moved = self.arrays.take(start, own) - path(first[own], sample[own])
            parts.append(along + moved[:, None])
            order.append(own)
        back = np.argsort(np.concatenate(order))
        return self.arrays.take(self.arrays.concat(parts), back)

    def followers(self, flight: Flight, new: Followers, blank: Memory) -> Flight:
        """Segments to be appended behind those of a flight."""
        arrays, ends = self.arrays, self.arrays.take(flight.states[:, -1], new.behind)
        states = self.states(new.sample, new.t, new.h, flight.end[new.behind], ends)
        later, starts = np.flatnonzero(new.level > 0), ends
        if len(later):
            starts = arrays.put(ends, later, arrays.take(states[:, -1], new.before[later]))
        return Flight.new(new.sample, new.t, new.h, starts, states, blank)

    def _each(self, sample: np.ndarray) -> list[tuple[Path, np.ndarray]]:
        """The paths, and which of the samples are on each."""
        which = self._path[sample]
        return [(self._paths[i], np.flatnonzero(which == i)) for i in np.unique(which)]
