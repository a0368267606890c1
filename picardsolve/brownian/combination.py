"""Sums of normals: the terms are found on the host; the normals are made and added up on the device."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picardsolve.brownian.counter import GOLDEN, Keys, normals

_IN_CACHE = 2**15  # pairs of normals that are made at once on a CPU: larger arrays leave the cache
_WIDE = 128  # elements that are summed at once on a CPU, at least: fewer fill no vectors
_SMALL = 2**23  # pairs of normals that are made at once on another device in any case, in 200 MB
_PARTS = 4  # of a draw on another device at most, so that the number of operations is bounded


@dataclass(frozen=True)
class Combination:
    """Rows that are sums of normals. A term is one normal times a factor; every stream has two normals.

    Attributes:
        starts: ``(R,)``, where the terms of each row start.
        streams: ``(U,)``.
        normal: ``(n,)``, the normal of each term: those of stream u are 2 u and 2 u + 1.
        factors: ``(n,)``.
    """

    starts: NDArray[np.int64]
    streams: Keys
    normal: NDArray[np.int64]
    factors: NDArray[np.float64]

    def sums(self, out: Tensor) -> None:
        """Write the sums into ``out``, ``(..., size)``, rows in order.

        A row is summed in the order of its terms, so other rows and elements do not change its bits. Sums are in
        single precision, or in double where ``out`` is.
        """
        size, dtype = out.shape[-1], torch.float64 if out.dtype == torch.float64 else torch.float32
        factors = self.factors.astype(np.float64 if dtype == torch.float64 else np.float32)
        streams, *terms = _on(out.device, self.streams, factors, self.normal, self.starts)
        for part in _parts(len(streams), size, out.device):
            made = _made(streams, part).to(dtype).flatten(0, 1)
            out[..., part] = _added(made, *terms).reshape(*out.shape[:-1], -1)


def _on(device: torch.device, *arrays: NDArray) -> list[Tensor]:
    """Arrays of int64 and floats on the device, in one copy; integers behind the first array as int32."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    streams, factors, *others = arrays
    words = [array.view(np.int32) for array in (streams, factors, *(other.astype(np.int32) for other in others))]
    packed = torch.from_numpy(np.concatenate(words)).to(device, non_blocking=True)
    parts = packed.split([len(part) for part in words])
    return [parts[0].view(torch.int64), parts[1].view(torch.from_numpy(factors).dtype), *parts[2:]]


def _made(streams: Tensor, elements: slice) -> Tensor:
    """The normals of streams ``(U,)`` and some elements, ``(U, 2, E)``."""
    made = torch.empty(len(streams), 2, elements.stop - elements.start, dtype=torch.float32, device=streams.device)
    if streams.device.type == "cpu":
        numbers, step = np.arange(elements.start + 1, elements.stop + 1) * GOLDEN, max(_IN_CACHE // made.shape[2], 1)
        for first in range(0, len(streams), step):
            block = slice(first, first + step)
            normals(streams.numpy()[block], numbers, made.numpy()[block])
    else:
        numbers = torch.arange(elements.start + 1, elements.stop + 1, device=streams.device).mul_(GOLDEN)
        normals(streams, numbers, made)
    return made


def _added(normals: Tensor, factors: Tensor, normal: Tensor, starts: Tensor) -> Tensor:
    """The sums of the rows, each in the order of its terms."""
    return torch.nn.functional.embedding_bag(normal, normals, starts, mode="sum", per_sample_weights=factors)


def _parts(streams: int, size: int, device: torch.device) -> Iterator[slice]:
    """Parts of the elements, whose normals fit into the cache or, on another device, into a share of memory."""
    cached, bounded = max(_IN_CACHE // streams, _WIDE), max(_SMALL // streams, -(-size // _PARTS))
    step = cached if device.type == "cpu" else bounded
    return (slice(first, min(first + step, size)) for first in range(0, size, step))
