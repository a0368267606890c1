"""The rules that say which states of a window may be accepted.

Norms are computed where the states are. What follows from them is small, and is computed in NumPy on the host, where an
operation starts sooner. All norms of a round are brought there at once: the host waits for the device once a round.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Seen:
    """What the host knows of a sweep, ``(W, B)`` float64 all.

    Attributes:
        norms: those that the rule has asked for.
        residual: as in `Swept`; None where the sweep does not compute it.
        slope: as in `Swept`; None for 1.
    """

    norms: list[np.ndarray]
    residual: np.ndarray | None
    slope: np.ndarray | None


class Stopping(ABC):
    """A stopping rule, with what it remembers of the rounds of one solve.

    Attributes:
        tolerance: what changes and errors are compared with.
        estimates: excess, ratios and slopes of the last round, see `Estimates`; None for a rule that estimates nothing.
        sure: ``(W, B)`` booleans for the states of the last round, as those of `judge`: which of those that are within
            the tolerance need no further look, where another look costs no round. None: all of them.
        patient: whether a state is let go only when it has been within the tolerance in two rounds.
    """

    tolerance: Tolerance
    estimates: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    sure: np.ndarray | None = None
    patient: bool = False

    def norms(self, swept: Swept, noise: Tensor | None) -> Sequence[Tensor]:
        """Tensors ``(W, B)`` that `judge` is given on the host, brought there with all else that a round waits for.

        The default is none: `judge` is then called without ``seen``, and waits for what it reads.
        """
        return ()

    @abstractmethod
    def judge(self, swept: Swept, noise: Tensor | None, seen: Seen | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Judge the states that a sweep made.

        Args:
            swept: the result of a sweep of W steps of B samples.
            noise: standard deviation of each step's noise, ``(W, B)``, or None where there is none.
            seen: the norms, and what is known of the sweep on the host.

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

    def norms(self, swept: Swept, noise: Tensor | None) -> Sequence[Tensor]:
        """Changes in tolerances, and changes."""
        return self.tolerance.norms(swept.change, swept.y, noise)

    def judge(self, swept: Swept, noise: Tensor | None, seen: Seen | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Compare changes with the tolerance."""
        seen = seen or on_host([self], swept, noise)[0][0]
        scaled, size = self.tolerance.in_units(seen.norms, noise, swept.y.shape[-1])
        return scaled <= 1, size


@dataclass
class Residuals(Stopping):
    """Accepts a state when its change, and the sum of the residuals up to it, are within the tolerance.

    The sum bounds what Picard iteration would change the state by. It is therefore independent of the iteration: one
    that predicts much changes states by little, also where its prediction is wrong.
    """

    tolerance: Tolerance

    def norms(self, swept: Swept, noise: Tensor | None) -> Sequence[Tensor]:
        """Changes in tolerances, and changes."""
        return self.tolerance.norms(swept.change, reference(swept, self.tolerance), noise)

    @np.errstate(all="ignore")
    def judge(self, swept: Swept, noise: Tensor | None, seen: Seen | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Compare changes and sums of residuals with the tolerance."""
        seen = seen or on_host([self], swept, noise)[0][0]
        scaled, size = self.tolerance.in_units(seen.norms, noise, swept.y.shape[-1])
        if seen.residual is None or self.tolerance.nothing:
            return scaled <= 1, size
        scaled = np.where(np.isfinite(size), scaled, np.inf)
        total = np.where(size > 0, seen.residual * (scaled / size), 0).cumsum(0)
        return np.maximum(scaled, total) <= 1, size


def reference(swept: Swept, tolerance: Tolerance) -> Tensor:
    """The state that relative tolerances refer to: the old one, element by element, or as a whole the new one.

    A sweep that went far astray must not be excused by the size of the state that it reached. Derivatives may also
    bring states back from very far: the smaller one of old and new then counts, for the next changes are compared.
    """
    before = swept.before
    if isinstance(tolerance.rtol, Tensor) or tolerance.rtol > 0:
        return torch.minimum(swept.y.abs(), before.abs()) if swept.leaps else before
    if not swept.leaps:
        return swept.y
    return torch.where((rms(swept.y) > _ASTRAY * rms(before))[..., None], before, swept.y)


def on_host(
    rules: Sequence[Stopping], swept: Swept, noise: Tensor | None, *more: Tensor
) -> tuple[list[Seen], list[np.ndarray]]:
    """What each rule is shown of a sweep, and further tensors ``(W, B)`` as float64 arrays, in one transfer."""
    asked = [rule.norms(swept, noise) for rule in rules]
    given = [swept.residual, swept.slope]
    tensors = [*(norm for norms in asked for norm in norms), *(part for part in given if part is not None), *more]
    if not tensors:
        return [Seen([], None, None) for _ in rules], []
    dtype = tensors[0].dtype
    together = torch.stack([part if part.dtype == dtype else part.to(dtype) for part in tensors])
    arrays = iter(together.cpu().double().numpy())
    norms = [[next(arrays) for _ in each] for each in asked]
    residual, slope = (None if part is None else next(arrays) for part in given)
    return [Seen(each, residual, slope) for each in norms], list(arrays)
