"""torchsde's Brownian motions as the path of a solve, so that both libraries integrate the same noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchsde
from torch import Tensor

import picardsolve as ps

__all__ = ["TorchsdePath", "sdeint"]

_THEIRS = torchsde.BrownianInterval, torchsde.BrownianPath, torchsde.BrownianTree
_WITH_AREAS = ("space-time", "davie", "foster")


def sdeint(
    sde: Any,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Any = None,
    method: str | None = None,
    dt: float = 1e-3,
    **more: Any,
) -> Any:
    """`picardsolve.sdeint` that also takes a Brownian motion of torchsde, whose noise is then integrated.

    Args:
        sde: as for `picardsolve.sdeint`, like all arguments but ``bm``.
        y0: the initial state.
        ts: times of the solution.
        bm: a ``BrownianInterval``, ``BrownianPath`` or ``BrownianTree`` of shape ``(batch, m)``, a
            `picardsolve.BrownianPath`, or None. One of torchsde's is asked once for each step, in order, which takes
            half a millisecond or more a step; picardsolve's own is faster. "srk" needs
            ``levy_area_approximation="space-time"``.
        method: name of the method.
        dt: length of a step.
        **more: further arguments.
    """
    return ps.sdeint(sde, y0, ts, TorchsdePath(bm) if isinstance(bm, _THEIRS) else bm, method, dt, **more)


@dataclass(frozen=True)
class TorchsdePath:
    """A Brownian motion of torchsde as the ``brownian`` of `picardsolve.solve`.

        path = TorchsdePath(torchsde.BrownianInterval(0.0, 1.0, size=(batch, 3), entropy=0))

    torchsde's object remembers the intervals that it was asked for. The same object returns the same value for an
    interval again. Another object with the same entropy does so only if it is asked in the same order.

    Args:
        bm: a ``BrownianInterval``, ``BrownianPath`` or ``BrownianTree`` of shape ``(samples, channels)``; for a system
            without samples, of any shape with one element for each Brownian motion.

    Raises:
        TypeError: ``bm`` is none of these.
    """

    bm: torchsde.BrownianInterval | torchsde.BrownianPath | torchsde.BrownianTree

    def __post_init__(self):
        if not isinstance(self.bm, _THEIRS):
            raise TypeError(
                f"bm: expected a BrownianInterval, BrownianPath or BrownianTree of torchsde, got "
                f"{type(self.bm).__name__}; pass one of these."
            )

    def increments(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int) -> Tensor:
        """The increments of many rows, as `picardsolve.BrownianPath.increments`.

        Raises:
            ValueError: ``bm`` has another shape, or does not contain a time.
        """
        w = self._asked(self.bm, t0, t1, sample, size)  # pyright: ignore[reportArgumentType]
        return w * torch.sign(t1 - t0)[:, None]

    def areas(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The increments and space-time Levy areas of many rows, as `picardsolve.BrownianPath.areas`.

        Raises:
            ValueError: ``bm`` has no areas; and as `increments`.
        """
        if self.bm.levy_area_approximation not in _WITH_AREAS:
            raise ValueError(
                f"bm: expected levy_area_approximation='space-time', got {self.bm.levy_area_approximation!r}; pass "
                "BrownianInterval(..., levy_area_approximation='space-time')."
            )

        # torchsde returns U = h (W / 2 + H)
        def ask(a: float, b: float) -> Tensor:
            w, u = self.bm(a, b, return_U=True)  # pyright: ignore
            return torch.stack([w, u])  # pyright: ignore

        both = self._asked(ask, t0, t1, sample, size)
        w, u = both.unbind(1)
        length = (t1 - t0)[:, None]
        return w * torch.sign(length), u / length.abs() - w / 2

    def check(self, t0: Tensor, t1: Tensor, samples: int) -> None:
        """Raise a ValueError for times that ``bm`` does not contain, and for more samples than it has."""
        within = self.bm if isinstance(self.bm, torchsde.BrownianInterval) else self.bm._interval
        low, high = torch.minimum(t0, t1), torch.maximum(t0, t1)
        if len(t0) and not (within._start <= float(low.min()) and float(high.max()) <= within._end):
            raise ValueError(
                f"bm: reaches from {within._start:g} to {within._end:g}, times from {float(low.min()):g} to "
                f"{float(high.max()):g} were asked for; pass one that holds them."
            )
        if samples > 1 and self.bm.shape[0] < samples:
            raise ValueError(f"bm: has {self.bm.shape[0]} samples, {samples} are solved; pass one with as many.")

    def _asked(
        self, ask: Callable[[float, float], Tensor], t0: Tensor, t1: Tensor, sample: Tensor, size: int
    ) -> Tensor:
        """The values of ``ask`` for each row's sample, forward in time; each interval is asked for once."""
        self.check(t0, t1, int(sample.max()) + 1 if len(sample) else 0)
        elements = torch.Size(self.bm.shape).numel()
        if elements % size or (len(sample) and elements // size <= int(sample.max())):
            raise ValueError(
                f"bm: expected a shape of samples of {size} elements each, got {tuple(self.bm.shape)}; pass one of "
                f"shape (samples, {size})."
            )
        ends = torch.stack([torch.minimum(t0, t1), torch.maximum(t0, t1)], 1)
        distinct, row = torch.unique(ends, dim=0, return_inverse=True)
        answers = [ask(a, b) for a, b in distinct.tolist()]
        if not answers:
            return torch.empty(0, size, dtype=torch.float64)
        stacked = torch.stack(answers).detach().to("cpu", torch.float64)
        leading = stacked.shape[: stacked.dim() - len(self.bm.shape)]
        by_sample = stacked.reshape(*leading, elements // size, size).movedim(-2, 1)
        return by_sample[row, sample]
