"""What a solve asks of the noise."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Path(Protocol):
    """A Brownian motion of samples: `picardsolve.BrownianPath`, or another library's. Times are float64, on the CPU."""

    def increments(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int) -> Tensor:
        """``W(t1) - W(t0)``, ``(R, size)``, of times ``(R,)`` and samples ``(R,)``; the same whenever it is asked."""
        ...

    def areas(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The increments, and the space-time Levy areas over the same intervals, ``(R, size)`` both."""
        ...

    def check(self, t0: Tensor, t1: Tensor, samples: int) -> None:
        """Refuse intervals ``(R,)`` and numbers of samples that cannot be had, with a ValueError."""
        ...
