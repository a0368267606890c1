"""Brownian motion as a pure function of seed and time: without state, in any order, at any refinement.

`counter` makes normals from (seed, sample, dyadic cell, element). `dyadic` says which normals a value of the path is
the sum of.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picardsolve.brownian.counter import GOLDEN, mixed
from picardsolve.brownian.dyadic import TOP, Array, Keys, Levels

_ROWS, _NUMBERS = 32, 2**12  # rows in one block, or as many rows as have this many numbers


@dataclass(frozen=True)
class BrownianPath:
    """Brownian motion of every sample of a batch, on the whole real line.

        path = ps.BrownianPath(seed=0)
        w = path.increment(0.0, 0.5, (batch, 3))  # W(0.5) - W(0)

    An increment depends on the seed, the sample and the two times only. It is the same in any window, order, chunk,
    batch size and device, and up to rounding in any dtype. Increments over a refined grid add up to those over the
    coarse one.

    Args:
        seed: an integer, from which each sample gets a stream of its own; or one integer for each sample, so that a
            sample keeps its noise in any batch.
        resolution: the shortest interval, a power of two from 2**-40 to 1. The law is exact for times at least this far
            apart. Each halving costs two more normals for a value, unless its time is a multiple of a larger power of
            two. A finer resolution gives the same path at multiples of the coarser one; elsewhere it differs by no more
            than a path moves in a sixteenth of the coarser one.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there are no seeds, or ``resolution`` is no such power of two.
    """

    seed: int | Sequence[int] = 0
    resolution: float = 2.0**-16

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
            dtype: of the result, which is computed in float64.
            device: of the result, which is computed on the CPU.

        Raises:
            ValueError: the interval is shorter than ``resolution``, or there are fewer seeds than samples.
        """
        if not len(shape):
            raise ValueError("shape: expected (B, ...), samples first, got ().")
        ends = torch.tensor([[t0], [t1]], dtype=torch.float64)
        sample = torch.arange(shape[0])
        flat = self.increments(ends[0].expand(shape[0]), ends[1].expand(shape[0]), sample, math.prod(shape[1:]))
        return flat.reshape(tuple(shape)).to(device, dtype)

    def increments(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int) -> Tensor:
        """The increments of many rows.

        Args:
            t0: ``(R,)`` float64 on the CPU.
            t1: ``(R,)`` float64 on the CPU.
            sample: ``(R,)`` int64, the sample that each row belongs to.
            size: numbers of a sample's motion.

        Returns:
            ``(R, size)`` float64 on the CPU.

        Raises:
            ValueError: an interval is shorter than ``resolution``, or there are fewer seeds than samples.
        """
        start, end, key = self._rows(t0, t1, sample)
        out = np.empty((len(start), size))
        for block in _blocks(len(start), size):
            out[block] = self._increments(start[block], end[block], key[block], size)
        return torch.from_numpy(out)

    def areas(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The increments and space-time Levy areas of many rows.

        The area is ``H = 1/h int_t0^t1 (W(s) - W(t0) - (s - t0)/h W) ds``. It is independent of the increment W, has
        the law ``N(0, h / 12)``, and is the same from t1 to t0 (Foster, Lyons & Oberhauser 2020). For neighbouring
        intervals, ``h H = h0 H0 + h1 H1 + (h1 W0 - h0 W1) / 2`` with h = h0 + h1. Arguments and errors are those of
        `increments`.

        Returns:
            W and H, both ``(R, size)`` float64 on the CPU.
        """
        start, end, key = self._rows(t0, t1, sample)
        low, high, levels = np.minimum(start, end), np.maximum(start, end), Levels.down_to(self.resolution)
        increments, areas = np.empty((len(start), size)), np.empty((len(start), size))
        for block in _blocks(len(start), size):
            increments[block] = self._increments(start[block], end[block], key[block], size)
            areas[block] = levels.areas(key[block], low[block], high[block]).sums(size)
        return torch.from_numpy(increments), torch.from_numpy(areas)

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

    def _rows(self, t0: Tensor, t1: Tensor, sample: Tensor) -> tuple[Array, Array, Keys]:
        self.check(t0, t1, int(sample.max()) + 1 if len(sample) else 0)
        own = sample.numpy()
        seeds = [self.seed] if isinstance(self.seed, int) else self.seed
        key = mixed(np.array([seed % 2**64 for seed in seeds], dtype=np.uint64))
        number = (own + 1).astype(np.uint64) if isinstance(self.seed, int) else np.ones(1, dtype=np.uint64)
        return t0.numpy(), t1.numpy(), mixed(key[0 if isinstance(self.seed, int) else own] + number * GOLDEN)

    def _increments(self, start: Array, end: Array, key: Keys, size: int) -> Array:
        levels, times, twice = Levels.down_to(self.resolution), np.concatenate([start, end]), np.concatenate([key, key])
        # neighbouring steps share a time, whose value is computed once
        _, first, row = np.unique(mixed(twice + times.view(np.uint64)), return_index=True, return_inverse=True)
        value = levels.values(twice[first], times[first]).sums(size)
        total = value[row[len(start) :]] - value[row[: len(start)]]
        if (np.floor(start / 2**TOP) != np.floor(end / 2**TOP)).any():
            total += levels.crossings(key, start, end).sums(size)
        return total


def resolution_for(shortest: float) -> float:
    """The coarsest resolution that has an interval of this length, or the finest of all."""
    return 2.0 ** math.floor(math.log2(max(shortest, 2**-40)))


def _blocks(rows: int, size: int) -> Iterator[slice]:
    """Blocks of rows, whose temporary memory is a few times their share of the result."""
    step = max(_ROWS, _NUMBERS // max(size, 1))
    return (slice(row, row + step) for row in range(0, rows, step))
