"""The protocol of a Brownian path: what a solve needs of its noise."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Path(Protocol):
    """A Brownian motion of samples: `picardsolve.BrownianPath`, or one of another library.

    Times are float64 tensors on the CPU, samples int64, and results float64 on the CPU.
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
