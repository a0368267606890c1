"""Normals as a pure function of a counter (Salmon et al. 2011): SplitMix64's finaliser, then Box and Muller.

The formulas act on NumPy arrays, and on tensors where they are on another device than the CPU: on small arrays NumPy
takes a third of torch's time, on large ones two thirds. Integers are int64, wrap around, and are the same on every
device. Normals are computed in single precision, because in a sum a normal of 24 bits is as good as one of 53 and
costs a quarter.
"""

import math
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Keys = NDArray[np.int64]
Array = TypeVar("Array", NDArray, Tensor)

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def mixed(x: Array) -> Array:
    """The finaliser of SplitMix64 (Steele et al. 2014), a bijection of 64-bit integers, in place."""
    x ^= _shifted(x, 30)
    x *= _FACTORS[0]
    x ^= _shifted(x, 27)
    x *= _FACTORS[1]
    x ^= _shifted(x, 31)
    return x


def normals(stream: Array, element: Array, out: Array) -> None:
    """Two independent standard normals for each stream and element.

    Args:
        stream: ``(U,)`` well mixed integers.
        element: ``(E,)``, multiples of `GOLDEN`.
        out: ``(U, 2, E)`` float32, takes the normals. Those of a stream and an element do not depend on the others.
    """
    library: Any = torch if isinstance(stream, Tensor) else np
    bits = mixed(stream[:, None] + element)
    # the largest radius is sqrt(2 ln 2**33) = 6.8; one normal in 10**11 would be larger
    radius = library.asarray(_shifted(bits, 32), dtype=library.float32)
    radius += 0.5
    radius *= 2.0**-32
    library.log(radius, out=radius)
    radius *= -2
    library.sqrt(radius, out=radius)
    bits <<= 32  # the lower half, as a signed number
    angle = library.asarray(bits, dtype=library.float32)
    angle *= math.pi * 2.0**-63
    library.cos(angle, out=out[:, 0])
    library.sin(angle, out=out[:, 1])
    out *= radius[:, None]


def _shifted(x: Array, bits: int) -> Array:
    """Shifted to the right, as unsigned integers: a tensor copies the sign, which a mask takes away again."""
    if isinstance(x, Tensor):
        return (x >> bits).bitwise_and_(2 ** (64 - bits) - 1)
    return (x.view(np.uint64) >> np.uint64(bits)).view(np.int64)
