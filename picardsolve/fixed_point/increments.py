"""The Brownian increments of a window's steps, drawn once for each step."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.placement import Pick
from picardsolve.integrators.base import Chain, Index

_LEAST, _MOST = 2**14, 2**21  # numbers that are drawn at once, if not more are needed


@dataclass
class Increments:
    """The increments of the steps ahead; those behind the window are dropped.

    Attributes:
        chain: draws them.
    """

    chain: Chain
    _drawn: Tensor | None = field(init=False, default=None)  # (<= W, B, noise_size), from the window's first step on
    _numbers: int = field(init=False, default=0)  # that were drawn so far

    def first(self, count: int, numbers: Callable[[int, int], Index], like: Tensor) -> Tensor | None:
        """The increments of the window's first ``count`` steps, ``(count, B, noise_size)``; None without noise.

        Args:
            count: how many steps.
            numbers: ``numbers(count, ahead)`` are the steps at ``count`` positions behind the first ``ahead``.
            like: states ``(..., B, D)``, whose dtype and device the increments take.
        """
        if not self.chain.noise_size:
            return None
        known = 0 if self._drawn is None else len(self._drawn)
        if count > known:
            # many steps at once, for a draw takes many operations; but not many more than the solve seems to need
            block = min(max(self._numbers, _LEAST), _MOST) // (self.chain.noise_size * like.shape[-2])
            n = numbers(max(count - known, min(block, self.chain.length)), known)
            ended = int((n.min(1) == self.chain.length - 1).sum())  # beyond the grid's end nothing more is needed
            n = n[: max(count - known, len(n) - ended + 1)]
            n, sample = np.broadcast_arrays(n, np.arange(like.shape[-2]))
            new = self.chain.increments(n.flatten(), sample.flatten())
            new = new.reshape(*n.shape, -1).to(like)
            self._numbers += new.numel()
            self._drawn = new if self._drawn is None else torch.cat([self._drawn, new])
        assert self._drawn is not None
        return self._drawn[:count]

    def pick(self, accepted: Index) -> Pick | None:
        """What is left behind the first ``accepted[s]`` steps of each sample; None without noise."""
        if self._drawn is None:
            return None
        return Pick.from_(accepted, len(self._drawn) - int(accepted.max()), len(self._drawn))

    def slide(self, left: Pick | None) -> None:
        """Keep what is left."""
        if left is not None and self._drawn is not None:
            self._drawn = left.of(self._drawn)

    def drop(self, count: int) -> None:
        """Go on behind the first ``count`` steps, for samples that stand alike."""
        if self._drawn is not None:
            self._drawn = self._drawn[count:]

    def forget(self) -> None:
        """Drop all of them: the window goes on somewhere else."""
        self._drawn = None
