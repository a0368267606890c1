"""The rules that say which states of a window may be accepted.

Norms are computed where the states are. What follows from them is small, and is computed in NumPy on the host, where an
operation starts sooner: each rule waits for the device once a round.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.sweep import Swept
from picardsolve.integrators.base import Index
from picardsolve.problem.recurrence import rms
from picardsolve.problem.tolerances import Tolerance

_ASTRAY = 2.0  # times the size of a state, to which no step takes it


class Stopping(ABC):
    """A stopping rule, with what it remembers of the rounds of one solve.

    Attributes:
        tolerance: what changes and errors are compared with.
        estimates: excess, ratios and slopes of the last round, see `Estimates`; None for a rule that estimates nothing.
    """

    tolerance: Tolerance
    estimates: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    @abstractmethod
    def judge(self, swept: Swept, noise: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """Judge the states that a sweep made.

        Args:
            swept: the result of a sweep of W steps of B samples.
            noise: standard deviation of each step's noise, ``(W, B)``, or None where there is none.

        Returns:
            ``(W, B)`` booleans, and the root mean square of each change, ``(W, B)``. The leading states whose boolean
            is true may be accepted; if the chain is explicit, so may the state after them.
        """

    def slide(self, accepted: Index, kept: Index) -> None:  # noqa: B027
        """Learn that sample s accepted ``accepted[s]`` steps, and goes on from the first ``kept[s]`` states."""

    def restart(self) -> None:  # noqa: B027
        """Forget the states ahead."""

    def widest(self, width: int) -> int:
        """The widest window, up to ``width``, that the arithmetic is precise enough for, as far as is known."""
        return width


MakesRule: TypeAlias = Callable[[Tolerance], Stopping]  # a user's own rule: its class, for example


@dataclass
class Increment(Stopping):
    """Accepts a state when a round changes it by no more than the tolerance (Shih et al. 2023, section 3.2).

    The change is no bound on the error, and it is often small a round later than the error.
    """

    tolerance: Tolerance

    def judge(self, swept: Swept, noise: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """Compare changes with the tolerance."""
        scaled, size = on_host(*self.tolerance.measure(swept.change, swept.y, noise))
        return scaled <= 1, size


@dataclass
class Residuals(Stopping):
    """Accepts a state when its change, and the sum of the residuals up to it, are within the tolerance.

    The sum bounds what Picard iteration would change the state by. It is therefore independent of the iteration: one
    that predicts much changes states by little, also where its prediction is wrong.
    """

    tolerance: Tolerance

    @np.errstate(all="ignore")
    def judge(self, swept: Swept, noise: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """Compare changes and sums of residuals with the tolerance."""
        measured = self.tolerance.measure(swept.change, smaller_state(swept, self.tolerance), noise)
        if swept.residual is None or self.tolerance.nothing:
            scaled, size = on_host(*measured)
            return scaled <= 1, size
        scaled, size, residual = on_host(*measured, swept.residual)
        scaled = np.where(np.isfinite(size), scaled, np.inf)
        total = np.where(size > 0, residual * (scaled / size), 0).cumsum(0)
        return np.maximum(scaled, total) <= 1, size


def smaller_state(swept: Swept, tolerance: Tolerance) -> Tensor:
    """The state that relative tolerances refer to: elementwise the smaller one of old and new.

    A sweep that went far astray must not be excused by the size of the state that it reached.
    """
    if isinstance(tolerance.rtol, Tensor) or tolerance.rtol > 0:
        return torch.minimum(swept.y.abs(), (swept.y - swept.change).abs())
    if not swept.leaps:
        return swept.y
    before = swept.y - swept.change
    return torch.where((rms(swept.y) > _ASTRAY * rms(before))[..., None], before, swept.y)


def on_host(*values: Tensor) -> np.ndarray:
    """Tensors of one shape as float64 arrays, in one transfer."""
    return torch.stack(torch.broadcast_tensors(*(value.to(values[0]) for value in values))).cpu().double().numpy()
