"""Brownian motion as a pure function of the seed and the time: no state, no order of visits, any refinement.

Standard normals come from a counter-based generator (Salmon et al. 2011): the finaliser of SplitMix64 (Steele et al.
2014) applied to (seed, sample, dyadic cell, element), then Box-Muller. A value of the path is the sum over the dyadic
cells that hold its time of hat functions times normals (Levy-Ciesielski; Karatzas & Shreve 1991, section 2.3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_TOP = 10  # cells of the coarsest level are 2**10 long, and independent of each other
_BELOW = 5  # halvings below the resolution


@dataclass(frozen=True)
class BrownianPath:
    """Brownian motion of every sample of a batch, on the whole real line.

    ``increment(t0, t1)`` depends on the seed, the sample and the two times only: it is the same for any window, order
    of visits, chunk, batch size, dtype (up to rounding) and device, and increments over a refined grid add up.

    Args:
        seed: an integer, whose sample k gets a stream of its own; or one integer per sample, so that a sample keeps its
            noise in any batch.
        resolution: the shortest interval that may be asked for; a power of two. Cells are halved to a 32nd of it and
            the path is linear below, so the variance of an increment over h is low by at most ``resolution / (64 h)``.
            Each halving costs one more normal per value, for times that are not multiples of a larger power of two.
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
        self.check(t0, t1, int(sample.max()) + 1 if len(sample) else 0)
        key = self._keys(sample)
        t, cell = torch.cat([t0, t1]), torch.floor(torch.cat([t0, t1]) / 2**_TOP).long()
        point, row = torch.unique(_mix(key.repeat(2)) + t.view(torch.int64), return_inverse=True)
        first = torch.empty_like(point).scatter_(0, row, torch.arange(len(row)))  # neighbouring steps share a time
        value = self._within(t[first], cell[first], key.repeat(2)[first], size)
        start, end = row.chunk(2)
        cell0, cell1 = cell.chunk(2)
        return (value[end] - value[start]).add_(self._across(cell0, cell1, key, size))

    def check(self, t0: Tensor, t1: Tensor, samples: int) -> None:
        """Refuse intervals ``(R,)`` below the resolution, and more samples than seeds, with a ValueError."""
        shortest = float((t1 - t0).abs().min()) if len(t0) else math.inf
        if shortest < self.resolution:
            raise ValueError(
                f"resolution: the path is known to {self.resolution:g}, an interval of {shortest:g} was asked for; "
                f"pass BrownianPath(seed, resolution={2.0 ** math.floor(math.log2(max(shortest, 2**-40)))!r})."
            )
        if not isinstance(self.seed, int) and len(self.seed) < samples:
            raise ValueError(f"seed: got {len(self.seed)} seeds for {samples} samples; pass one for each.")

    def _keys(self, sample: Tensor) -> Tensor:
        if isinstance(self.seed, int):
            return _mix(_mix(torch.tensor(_signed(self.seed))) + (sample + 1) * _signed(_GOLDEN))
        return _mix(_mix(torch.tensor([_signed(seed) for seed in self.seed])) + _signed(_GOLDEN))[sample]

    def _within(self, t: Tensor, cell: Tensor, key: Tensor, size: int) -> Tensor:
        """``W(t) - W(start of its coarsest cell)``: ``u Z_top + sum_l hat_l(t) Z_l`` down to the resolution."""
        length = 2.0**_TOP
        fraction = t / length - cell
        value = (fraction * math.sqrt(length))[:, None] * _normals(key, 0, cell, size)
        for level in range(1, round(_TOP + _BELOW - math.log2(self.resolution)) + 1):
            inside = fraction > 0
            if not bool(inside.any()):
                break
            # the hat of a cell of this length has height sqrt(length) / 2 in its middle
            hat = torch.minimum(fraction, 1 - fraction) * math.sqrt(length)
            rows = inside.nonzero()[:, 0]
            value.index_add_(0, rows, hat[rows, None] * _normals(key[rows], level, cell[rows], size))
            length /= 2
            upper = fraction >= 0.5
            cell, fraction = 2 * cell + upper, 2 * fraction - upper.to(fraction.dtype)
        return value

    def _across(self, cell0: Tensor, cell1: Tensor, key: Tensor, size: int) -> Tensor:
        total = torch.zeros(len(key), size, dtype=torch.float64)
        for row in (cell0 != cell1).nonzero()[:, 0].tolist():
            low, high = sorted((int(cell0[row]), int(cell1[row])))
            cells = torch.arange(low, high)
            step = _normals(key[row].expand(len(cells)), 0, cells, size).sum(0) * math.sqrt(2.0**_TOP)
            total[row] = step if cell1[row] > cell0[row] else -step
        return total


def _normals(key: Tensor, level: int, cell: Tensor, size: int) -> Tensor:
    """Standard normals ``(R, size)``, float64: row r is a pure function of ``key[r]``, ``level`` and ``cell[r]``."""
    stream = _mix(_mix(key + _signed(level * 0xD1B54A32D192ED03)) + cell * _signed(_GOLDEN))
    stream, row = torch.unique(stream, return_inverse=True)
    pairs = torch.arange(1, (size + 1) // 2 + 1) * _signed(_GOLDEN)
    bits = _mix(stream[:, None] + pairs)
    radius = torch.sqrt(-2 * torch.log1p(-(bits >> 33 & 0x7FFFFFFF).double() * 2.0**-31))
    angle = (bits & 0xFFFFFFFF).double() * (2 * math.pi * 2.0**-32)
    pair = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1)
    return pair.flatten(1)[:, :size].index_select(0, row)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64, whose products wrap as unsigned ones do."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _signed(0x94D049BB133111EB)
    return x ^ (x >> 31 & (1 << 33) - 1)


def _signed(x: int) -> int:
    """The int64 with the low 64 bits of ``x``."""
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x
