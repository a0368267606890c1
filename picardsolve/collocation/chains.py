"""Segments one behind the other: what the end of each does to the next, for all samples at once."""

from functools import cached_property
from itertools import pairwise

import numpy as np

from picardsolve.collocation.arrays import Array, Arrays


class Chains:
    """The order of K segments that lie sample by sample, in the order of time.

    Attributes:
        begins: ``(A,)`` place of the first segment of each sample.
        counts: ``(A,)`` how many segments it has.
        chain: ``(K,)`` which of the A samples a segment belongs to.
        level: ``(K,)`` how many of its sample are before it.
    """

    def __init__(self, sample: np.ndarray):
        count = len(sample)
        if count and sample[0] == sample[-1]:  # one sample: the usual case, and the one that has to be quick
            self.begins, self.counts = np.zeros(1, int), np.array([count])
            self.chain, self.level = np.zeros(count, int), np.arange(count)
            return
        new = np.ones(count, bool)
        new[1:] = sample[1:] != sample[:-1]
        self.begins = np.flatnonzero(new)
        self.counts = np.diff(self.begins, append=count)
        self.chain = np.cumsum(new) - 1
        self.level = np.arange(count) - self.begins[self.chain]

    @property
    def ends(self) -> np.ndarray:
        """``(A,)`` place of the last segment of each sample."""
        return self.begins + self.counts - 1

    @cached_property
    def by_level(self) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """All first segments, all second ones, and so on, samples with more segments first.

        Returns:
            the segments in that order, ``(K,)``, its inverse, and how many there are of each level.
        """
        if len(self.counts) == 1:
            return self.level, self.level, [1] * len(self.level)
        order = np.lexsort((self.chain, -self.counts[self.chain], self.level))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return order, back, np.bincount(self.level).tolist()

    def carried(self, arrays: Arrays, added: Array, flows: Array | None = None) -> Array:
        """``c = 0`` at the first segment of a sample; then ``c[next] = added + flow c``, ``(K, d)``.

        Args:
            arrays: of the states.
            added: ``(K, d)``; of the last segment of a sample it is not used.
            flows: ``(K, d, d)``, or numbers ``(K, 1)``; None: 1.
        """
        if len(self.counts) == len(self.chain):
            return arrays.zeros(*added.shape)
        several = len(self.counts) > 1
        if not several and flows is None:
            return arrays.concat([arrays.zeros(1, added.shape[1]), added[:-1].cumsum(0)])
        order, back, sizes = self.by_level
        if several:
            added, flows = (None if part is None else arrays.take(part, order) for part in (added, flows))
        parts, first = [arrays.zeros(sizes[0], added.shape[1])], 0
        for size, more in pairwise(sizes):
            which, before = slice(first, first + more), parts[-1][:more]
            parts.append(added[which] + (before if flows is None else _pushed(flows[which], before)))
            first += size
        together = arrays.concat(parts)
        return arrays.take(together, back) if several else together


def _pushed(flow: Array, values: Array) -> Array:
    return flow * values if len(flow.shape) == 2 else (flow @ values[..., None])[..., 0]
