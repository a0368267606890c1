"""In which dtype times reach the user's functions: as they are, wherever rounding them would show."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from picardsolve.problem.state import Layout
from picardsolve.results.diagnostics import ConvergenceWarning

Out = TypeVar("Out")

RESOLVED = 100.0  # steps of a grid that a drift is thought to take for a change of its own size
_NEAR = 16.0  # such changes from zero: up to here rounding a time does little more than rounding a state
_FINE = 0.02  # of the shortest step: what rounding may move a time by without a word
_COARSE = 0.25  # of the shortest step: what it may move a time by at all


@dataclass
class Clock:
    """Times of one solve as its functions see them.

    Times are kept in float64. Functions get them so, too, unless the grid is so near to zero that rounding to the dtype
    of the state moves a time no further, in units of what the drift resolves, than it moves a state. A function that
    raises with these gets the state's dtype, as torchdiffeq has it; with a warning where that is further from the
    truth, and not at all where times are off by more than a quarter of a step.

    Attributes:
        far: the largest time.
        span: from the first time to the last.
        shortest: the shortest step.
        ladder: dtypes, the first is in use, the others are tried where it is not taken.
        settled: whether a function has refused one.
    """

    far: float
    span: float
    shortest: float
    ladder: tuple[torch.dtype, ...]
    settled: bool = False

    @staticmethod
    def of(ts: Tensor, layout: Layout, resolved: float = RESOLVED) -> "Clock":
        """Of a grid.

        Args:
            ts: ``(N + 1,)``, or one for each sample, ``(T, B)``.
            layout: of the state.
            resolved: steps of the grid that the drift takes for a change of its own size.
        """
        far, shortest = float(ts.abs().max()), float(ts.diff(dim=0).abs().min())
        span = float((ts[-1] - ts[0]).abs().min())
        lower = layout.compute_dtype, layout.dtype.to_real()
        takes = span if math.isinf(resolved) else min(span, resolved * shortest)
        exact = (torch.float64,) if far > _NEAR * takes and layout.device.type != "mps" else ()  # which has no float64
        clock = Clock(far, span, shortest, tuple(dict.fromkeys((*exact, *lower))))
        if layout.device.type == "mps":
            clock._settle("ts", 0, None)
        return clock

    @property
    def exact(self) -> bool:
        """Whether times are given as they are."""
        return self.ladder[0] == torch.float64

    def resolves(self, far: float, length: float) -> None:
        """Take notice that at times up to ``far`` the drift changes by its own size within ``length``."""
        if far > _NEAR * length and not self.settled and not self.exact:
            self.ladder = (torch.float64, *self.ladder)

    def called(self, name: str, function: Callable[[torch.dtype], Out]) -> Out:
        """What a function returns that is called with times in the dtype that it is given, or the next that it takes.

        Raises:
            ValueError: it takes only a dtype that times are too far off in.
        """
        first: RuntimeError | None = None
        for rung, dtype in enumerate(self.ladder):
            try:
                out = function(dtype)
            except RuntimeError as error:  # such as torch's "expected m1 and m2 to have the same dtype"
                first = first or error
                continue
            if rung:
                self._settle(name, rung, first)
            return out
        assert first is not None
        raise first

    def _settle(self, name: str, rung: int, error: Exception | None) -> None:
        """Go on with a lower dtype."""
        better, self.ladder, self.settled = self.ladder[0], self.ladder[rung:], True
        moved = self.far * torch.finfo(self.ladder[0]).eps / 2
        if self.far <= _NEAR * self.span and moved <= _FINE * self.shortest:
            return
        said = f"{name}: takes times in {self.ladder[0]}, not in {better}, which at t = {self.far:.10g} moves them by"
        instead = "subtract a time of reference first, (t - t0).to(y.dtype), or let ts start near 0."
        if moved > _COARSE * self.shortest:
            raised = "" if error is None else f" It raised {type(error).__name__}: {error}"
            raise ValueError(
                f"{said} {moved:.2g}, where the shortest step is {self.shortest:.2g}; {instead}{raised}"
            ) from error
        warnings.warn(f"{said} up to {moved:.2g}; {instead}", ConvergenceWarning, stacklevel=2)
