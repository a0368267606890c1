"""The protocol of a Brownian path: what a solve needs of its noise."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Path(Protocol):
    """A Brownian motion of samples: `picardsolve.BrownianPath`, or one of another library.

    Times are float64 tensors on the CPU, samples int64. Results may have any float dtype and device: a solve takes them
    to those of its state. A path that can compute there has a method ``placed(dtype, device)``, which returns the path
    that does.
    """

    def increments(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int) -> Tensor:
        """``W(t1) - W(t0)``, ``(R, size)``, for times ``(R,)`` and samples ``(R,)``; the same in every call."""
        ...

    def areas(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The increments and the space-time Levy areas of the same intervals, both ``(R, size)``."""
        ...

    def check(self, t0: Tensor, t1: Tensor, samples: int) -> None:
        """Raise a ValueError for intervals ``(R,)`` or a number of samples that the path does not have."""
        ...


def placed(path: Path, dtype: torch.dtype, device: torch.device) -> Path:
    """The path whose results are computed where a state lives, if it has one; else the path itself."""
    place = getattr(path, "placed", None)
    return path if place is None else place(dtype, device)
