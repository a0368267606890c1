"""Brownian motion as a pure function of the seed and the time: no state, no order of visits, any refinement.

Normals are a function of (seed, sample, dyadic cell, element) (`counter`); a value of the path is a sum of
some of them (`dyadic`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picardsolve.brownian.counter import GOLDEN, mixed
from picardsolve.brownian.dyadic import TOP, Array, Keys, Levels

_ROWS, _NUMBERS = 32, 2**12  # rows at once, or as many as have so many numbers


@dataclass(frozen=True)
class BrownianPath:
    """Brownian motion of every sample of a batch, on the whole real line.

    ``increment(t0, t1)`` depends on the seed, the sample and the two times only: it is the same for any window, order
    of visits, chunk, batch size, dtype (up to rounding) and device, and increments over a refined grid add up.

    Args:
        seed: an integer, whose sample k gets a stream of its own; or one integer per sample, so that a sample keeps its
            noise in any batch.
        resolution: the shortest interval that may be asked for; a power of two. The law is exact for times that far
            apart. Each halving costs two more normals per value, for times that are not multiples of a larger power of
            two. A finer resolution is the same path at multiples of the coarser one, and as near as a path may move
            in a sixteenth of it elsewhere.
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
        """``W(t1) - W(t0)``, for any two times (negative of the increment where t1 < t0).

        Args:
            t0: start of the interval.
            t1: end of the interval, at least ``resolution`` away.
            shape: ``(B, ...)``: samples, then anything.
            dtype: of the result; computed in float64.
            device: of the result; computed on the CPU.

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
        """Increments of many rows at once.

        Args:
            t0: ``(R,)`` float64, on the CPU.
            t1: ``(R,)`` float64, on the CPU.
            sample: ``(R,)`` int64, which sample a row belongs to.
            size: elements of a sample's motion.

        Returns:
            ``(R, size)`` float64, on the CPU.
        """
        start, end, key = self._rows(t0, t1, sample)
        out = np.empty((len(start), size))
        for block in _blocks(len(start), size):
            out[block] = self._increments(start[block], end[block], key[block], size)
        return torch.from_numpy(out)

    def areas(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Increments and space-time Levy areas ``H = 1/h int_t0^t1 (W(s) - W(t0) - (s - t0)/h W) ds`` of many rows.

        H is independent of W, ``N(0, h / 12)``, and the same from t1 to t0 (Foster, Lyons & Oberhauser 2020). Areas of
        neighbouring intervals add up to that of both: ``h H = h0 H0 + h1 H1 + (h1 W0 - h0 W1) / 2``, h = h0 + h1.

        Args:
            t0: ``(R,)`` float64, on the CPU.
            t1: ``(R,)`` float64, on the CPU.
            sample: ``(R,)`` int64, which sample a row belongs to.
            size: elements of a sample's motion.

        Returns:
            W, as `increments` gives it, and H, both ``(R, size)`` float64, on the CPU.

        Raises:
            ValueError: an interval is shorter than ``resolution``, or there are fewer seeds than samples.
        """
        start, end, key = self._rows(t0, t1, sample)
        low, high, levels = np.minimum(start, end), np.maximum(start, end), Levels.down_to(self.resolution)
        increments, areas = np.empty((len(start), size)), np.empty((len(start), size))
        for block in _blocks(len(start), size):
            increments[block] = self._increments(start[block], end[block], key[block], size)
            areas[block] = levels.areas(key[block], low[block], high[block]).sums(size)
        return torch.from_numpy(increments), torch.from_numpy(areas)

    def check(self, t0: Tensor, t1: Tensor, samples: int) -> None:
        """Refuse intervals ``(R,)`` below the resolution, and more samples than seeds, with a ValueError."""
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
        # neighbouring steps share a time
        _, first, row = np.unique(mixed(twice + times.view(np.uint64)), return_index=True, return_inverse=True)
        value = levels.values(twice[first], times[first]).sums(size)
        total = value[row[len(start) :]] - value[row[: len(start)]]
        if (np.floor(start / 2**TOP) != np.floor(end / 2**TOP)).any():
            total += levels.crossings(key, start, end).sums(size)
        return total


def resolution_for(shortest: float) -> float:
    """The coarsest resolution that an interval may be asked of, or the finest that there is."""
    return 2.0 ** math.floor(math.log2(max(shortest, 2**-40)))


def _blocks(rows: int, size: int) -> Iterator[slice]:
    """Rows to compute at once: what they need besides the result is a few times their share of it."""
    step = max(_ROWS, _NUMBERS // max(size, 1))
    return (slice(row, row + step) for row in range(0, rows, step))
