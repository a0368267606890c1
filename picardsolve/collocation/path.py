"""Segments one behind the other, as functions of elapsed time, of all samples."""

from dataclasses import dataclass

import numpy as np

from picardsolve.collocation.accepted import Segments
from picardsolve.collocation.arrays import Array, Arrays
from picardsolve.collocation.nodes import Nodes

_NUMBERS = 2**22  # that are read at once


def counted(known: np.ndarray, of: np.ndarray, t: np.ndarray, sample: np.ndarray, before: bool) -> np.ndarray:
    """How many known times of the same sample are before each time.

    Args:
        known: ``(S,)`` times, by sample, increasing.
        of: ``(S,)`` their samples.
        t: ``(Q,)``.
        sample: ``(Q,)``.
        before: whether equal times do not count.
    """
    if len(of) and of[0] == of[-1] and (sample == of[0]).all():
        return np.searchsorted(known, t, side="left" if before else "right")
    asked = np.concatenate([np.full(len(known), int(before)), np.full(len(t), int(not before))])
    order = np.lexsort((asked, np.concatenate([known, t]), np.concatenate([of, sample])))
    is_known = order < len(known)
    so_far = np.cumsum(is_known)
    out = np.empty(len(t), int)
    out[order[~is_known] - len(known)] = so_far[~is_known]
    return out - np.searchsorted(of, sample)


@dataclass(frozen=True)
class Path:
    """The polynomials of accepted segments.

    Attributes:
        arrays: of the states.
        nodes: of every segment.
        segments: by sample, in the order of time.
    """

    arrays: Arrays
    nodes: Nodes
    segments: Segments

    def __call__(self, t: np.ndarray, sample: np.ndarray) -> Array:
        """States ``(Q, d)`` at elapsed times of samples ``(Q,)``; the outer polynomials go on beyond their ends."""
        at, weights = self.weights(t, sample)
        values = self.segments.values
        most = max(_NUMBERS // (values.shape[1] * values.shape[2]), 1)
        pieces = [slice(first, first + most) for first in range(0, max(len(t), 1), most)]
        return self.arrays.concat(
            [(self.arrays.array(weights[own][:, None]) @ self.arrays.take(values, at[own]))[:, 0] for own in pieces]
        )

    def segment_of(self, t: np.ndarray, sample: np.ndarray) -> np.ndarray:
        """Places of the segments that hold the times."""
        own = self.segments
        first, last = (np.searchsorted(own.sample, sample, side) for side in ("left", "right"))
        after = counted(own.t, own.sample, t, sample, before=False)
        return first + np.clip(after - 1, 0, np.maximum(last - first - 1, 0))

    def weights(self, t: np.ndarray, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The segments that hold the times, ``(Q,)``, and the weights of their values there, ``(Q, points)``."""
        at = self.segment_of(t, sample)
        return at, self.nodes.interpolate((t - self.segments.t[at]) / self.segments.h[at])
