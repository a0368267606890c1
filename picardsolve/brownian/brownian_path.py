"""Brownian motion as a pure function of seed and time: without state, in any order, at any refinement.

`dyadic` says which normals of which cells a value of the path is the sum of, `intervals` finds the cells of the rows:
numbers of the size of the rows, on the CPU. `combination` makes the normals from (seed, sample, cell, element) with
`counter` and adds them up, on the device of the state.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picardsolve.brownian.counter import GOLDEN, Keys, mixed
from picardsolve.brownian.dyadic import Levels
from picardsolve.brownian.intervals import combination

_ROWS, _NUMBERS = 128, 2**13  # rows in one block on a CPU, or as many rows as have this many numbers
_MANY = 2**16  # rows in one block on another device, whose operations and copy do not depend on how many they are


@dataclass(frozen=True)
class BrownianPath:
    """Brownian motion of every sample of a batch, on the whole real line.

        path = ps.BrownianPath(seed=0)
        w = path.increment(0.0, 0.5, (batch, 3))  # W(0.5) - W(0)

    An increment depends on the seed, the sample and the two times only. It is the same in any window, order, chunk and
    batch size, and up to rounding in any dtype and on any device. Increments over a refined grid add up to those over
    the coarse one.

    Args:
        seed: an integer, from which each sample gets a stream of its own; or one integer for each sample, so that a
            sample keeps its noise in any batch.
        resolution: the shortest interval, a power of two from 2**-40 to 1. The law is exact for times at least this far
            apart. Each halving costs two more normals for a value, unless its time is a multiple of a larger power of
            two. A finer resolution gives the same path at multiples of the coarser one; elsewhere it differs by no more
            than a path moves in a sixteenth of the coarser one.
        dtype: of what `increments` and `areas` return. Sums are in double precision for float64, else in single
            precision; a solve asks for the dtype of its state.
        device: of what they return, where it is computed; a solve asks for the device of its state.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there are no seeds, or ``resolution`` is no such power of two.
    """

    seed: int | Sequence[int] = 0
    resolution: float = 2.0**-16
    dtype: torch.dtype = torch.float64
    device: torch.device | str = "cpu"

    def __post_init__(self):
        seeds = list(self.seed) if isinstance(self.seed, list | tuple | range) else [self.seed]
        if not seeds:
            raise ValueError("seed: expected one integer per sample, got none.")
        if not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
            raise TypeError(f"seed: expected an integer, or one integer per sample, got {self.seed!r}.")
        if not isinstance(self.resolution, int | float):
            raise TypeError(f"resolution: expected a power of two from 2**-40 to 1, got {self.resolution!r}.")
        if math.frexp(self.resolution)[0] != 0.5 or not 2.0**-40 <= self.resolution <= 1:
            raise ValueError(f"resolution: expected a power of two from 2**-40 to 1, got {self.resolution!r}.")

    def placed(self, dtype: torch.dtype, device: torch.device | str) -> "BrownianPath":
        """The same path, with its values in ``dtype`` and computed on ``device``."""
        return replace(self, dtype=dtype, device=device)

    def increment(
        self,
        t0: float,
        t1: float,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """The increment ``W(t1) - W(t0)`` of all samples, for two times in any order.

        Args:
            t0: start of the interval.
            t1: end of the interval, at least ``resolution`` away from ``t0``.
            shape: ``(B, ...)``, samples first.
            dtype: of the result.
            device: of the result, where it is computed.

        Raises:
            ValueError: the interval is shorter than ``resolution``, or there are fewer seeds than samples.
        """
        if not len(shape):
            raise ValueError("shape: expected (B, ...), samples first, got ().")
        ends = torch.tensor([[t0], [t1]], dtype=torch.float64).expand(2, shape[0])
        flat = self.placed(dtype, device).increments(ends[0], ends[1], torch.arange(shape[0]), math.prod(shape[1:]))
        return flat.reshape(tuple(shape))

    def increments(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int) -> Tensor:
        """The increments of many rows.

        Args:
            t0: ``(R,)`` float64 on the CPU.
            t1: ``(R,)`` float64 on the CPU.
            sample: ``(R,)`` int64 on the CPU, the sample that each row belongs to.
            size: numbers of a sample's motion.

        Returns:
            ``(R, size)``, in the path's dtype on its device.

        Raises:
            ValueError: an interval is shorter than ``resolution``, or there are fewer seeds than samples.
        """
        return self._drawn(t0, t1, sample, size, areas=False)[0]

    def areas(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The increments and space-time Levy areas of many rows.

        The area is ``H = 1/h int_t0^t1 (W(s) - W(t0) - (s - t0)/h W) ds``. It is independent of the increment W, has
        the law ``N(0, h / 12)``, and is the same from t1 to t0 (Foster, Lyons & Oberhauser 2020). For neighbouring
        intervals, ``h H = h0 H0 + h1 H1 + (h1 W0 - h0 W1) / 2`` with h = h0 + h1. Arguments and errors are those of
        `increments`.

        Returns:
            W and H, both ``(R, size)``, in the path's dtype on its device.
        """
        increments, areas = self._drawn(t0, t1, sample, size, areas=True)
        return increments, areas

    def check(self, t0: Tensor, t1: Tensor, samples: int) -> None:
        """Raise a ValueError for intervals ``(R,)`` below the resolution, and for more samples than seeds."""
        shortest = float((t1 - t0).abs().min()) if len(t0) else math.inf
        if shortest < self.resolution:
            raise ValueError(
                f"resolution: the path is known to {self.resolution:g}, an interval of {shortest:g} was asked for; "
                f"pass BrownianPath(seed, resolution={resolution_for(shortest)!r})."
            )
        if not isinstance(self.seed, int) and len(self.seed) < samples:
            raise ValueError(f"seed: got {len(self.seed)} seeds for {samples} samples; pass one for each.")

    def _drawn(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int, areas: bool) -> Tensor:
        """Increments, and areas, ``(1 or 2, R, size)``."""
        self.check(t0, t1, int(sample.max()) + 1 if len(sample) else 0)
        levels, device = Levels.down_to(self.resolution), torch.device(self.device)
        start, end, own = t0.numpy(), t1.numpy(), sample.numpy()
        key = self._keys(own)
        out = torch.empty(1 + areas, len(start), size, dtype=self.dtype, device=device)
        for block in _blocks(len(start), size, device):
            rows = combination(levels, key[block], own[block], start[block], end[block], areas)
            rows.sums(out[:, block])
        return out

    def _keys(self, sample: NDArray[np.int64]) -> Keys:
        """The key of the path of each sample."""
        if isinstance(self.seed, int):
            return mixed(_mixed_seeds(self.seed) + (sample + 1) * GOLDEN)
        return mixed(_mixed_seeds(*self.seed)[sample] + GOLDEN)


@lru_cache
def _mixed_seeds(*seeds: int) -> Keys:
    """The keys of seeds."""
    return mixed(np.array([seed % 2**64 for seed in seeds], dtype=np.uint64).view(np.int64))


def resolution_for(shortest: float) -> float:
    """The coarsest resolution that has an interval of this length, or the finest of all."""
    return 2.0 ** math.floor(math.log2(max(shortest, 2**-40)))


def _blocks(rows: int, size: int, device: torch.device) -> Iterator[slice]:
    """Blocks of rows, whose temporary memory is a multiple of their share of the result."""
    step = max(_ROWS, _NUMBERS // max(size, 1)) if device.type == "cpu" else _MANY
    return (slice(row, row + step) for row in range(0, rows, step))
