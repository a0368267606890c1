"""Normals as a pure function of a counter (Salmon et al. 2011): SplitMix64's finaliser, then Box and Muller.

This is NumPy, because a call on a small array takes a third of torch's time. Normals are computed in single precision,
because in a sum a normal of 24 bits is as good as one of 53 and costs a quarter. Sums are in double precision.
"""

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_AT_ONCE = 2**13  # larger temporary arrays leave the cache, and are three times slower
_27, _30, _31, _32 = (np.uint64(shift) for shift in (27, 30, 31, 32))


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014), a bijection of 64-bit integers."""
    x = x ^ (x >> _30)
    x *= _FACTORS[0]
    x ^= x >> _27
    x *= _FACTORS[1]
    x ^= x >> _31
    return x


def pairs(stream: NDArray[np.uint64], first: int, count: int) -> NDArray[np.float64]:
    """Two independent standard normals for each stream and element.

    Args:
        stream: ``(U,)`` well mixed integers.
        first: the first element.
        count: how many elements.

    Returns:
        ``(U, 2, count)``, float64 with single precision. The normals of an element do not depend on ``first`` and
        ``count``.
    """
    element = np.arange(first + 1, first + count + 1, dtype=np.uint64) * GOLDEN
    out = np.empty((len(stream), 2, count))
    step = max(1, _AT_ONCE // max(count, 1))
    for start in range(0, len(stream), step):
        block = slice(start, start + step)
        _box_muller(mixed(stream[block, None] + element), out[block])
    return out


def _box_muller(bits: NDArray[np.uint64], out: NDArray[np.float64]) -> None:
    # the largest radius is sqrt(2 ln 2**33) = 6.8; one normal in 10**11 would be larger
    radius = (bits >> _32).astype(np.uint32).astype(np.float32)
    radius += np.float32(0.5)
    radius *= np.float32(2.0**-32)
    np.sqrt(np.float32(-2) * np.log(radius, out=radius), out=radius)
    angle = bits.astype(np.uint32).view(np.int32).astype(np.float32)
    angle *= np.float32(np.pi * 2.0**-31)
    np.multiply(radius, np.cos(angle), out=out[:, 0])
    np.multiply(radius, np.sin(angle), out=out[:, 1])
