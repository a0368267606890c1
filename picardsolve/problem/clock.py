"""The dtype in which the user's functions get times: float64 wherever rounding them would change the result."""

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

RESOLVED = 100.0  # steps of a grid within which a drift is expected to change by its own size
_NEAR = 16.0  # such changes between zero and a time: up to here, rounding the time does as little as rounding a state
_FINE = 0.02  # part of the shortest step that rounding may move a time by without a warning
_COARSE = 0.25  # part of the shortest step that rounding may move a time by at all


@dataclass
class Clock:
    """The dtype of the times that the functions of one solve get.

    Times are kept in float64, and functions get them in float64. On a grid near zero they get the dtype of the state
    instead, because rounding a time does no more harm there than rounding a state. A function that raises an error for
    float64 times gets the dtype of the state, too, as in torchdiffeq. A warning says so where this moves times
    noticeably. An error is raised where it moves them by more than a quarter of a step.

    Attributes:
        far: the largest time, in absolute value.
        span: from the first time to the last.
        shortest: the shortest step.
        ladder: dtypes; the first is in use, the others are tried if a function raises an error.
        settled: whether a function has raised an error for a dtype.
    """

    far: float
    span: float
    shortest: float
    ladder: tuple[torch.dtype, ...]
    settled: bool = False

    @staticmethod
    def of(ts: Tensor, layout: Layout, resolved: float = RESOLVED) -> "Clock":
        """The clock of a grid.

        Args:
            ts: ``(N + 1,)``, or one grid for each sample, ``(T, B)``.
            layout: of the state.
            resolved: the number of steps within which the drift is expected to change by its own size.
        """
        far, shortest = float(ts.abs().max()), float(ts.diff(dim=0).abs().min())
        span = float((ts[-1] - ts[0]).abs().min())
        lower = layout.compute_dtype, layout.dtype.to_real()
        takes = span if math.isinf(resolved) else min(span, resolved * shortest)
        exact = (torch.float64,) if far > _NEAR * takes and layout.device.type != "mps" else ()  # no float64 there
        clock = Clock(far, span, shortest, tuple(dict.fromkeys((*exact, *lower))))
        if layout.device.type == "mps":
            clock._settle("ts", 0, None)
        return clock

    @property
    def exact(self) -> bool:
        """Whether functions get float64 times."""
        return self.ladder[0] == torch.float64

    def resolves(self, far: float, length: float) -> None:
        """Account for a drift that changes by its own size within ``length``, at times up to ``far``."""
        if far > _NEAR * length and not self.settled and not self.exact:
            self.ladder = (torch.float64, *self.ladder)

    def called(self, name: str, function: Callable[[torch.dtype], Out]) -> Out:
        """The value of ``function(dtype)`` for the first dtype of the ladder that raises no RuntimeError.

        Raises:
            ValueError: times are too far off in this dtype.
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
        """Take a lower dtype from here on."""
        better, self.ladder, self.settled = self.ladder[0], self.ladder[rung:], True
        moved = self.far * torch.finfo(self.ladder[0]).eps / 2
        if self.far <= _NEAR * self.span and moved <= _FINE * self.shortest:
            return
        message = (
            f"{name}: takes times in {self.ladder[0]}, not in {better}, which at t = {self.far:.10g} moves them by"
        )
        instead = "subtract a time of reference first, (t - t0).to(y.dtype), or let ts start near 0."
        if moved > _COARSE * self.shortest:
            raised = "" if error is None else f" It raised {type(error).__name__}: {error}"
            raise ValueError(
                f"{message} {moved:.2g}, where the shortest step is {self.shortest:.2g}; {instead}{raised}"
            ) from error
        warnings.warn(f"{message} up to {moved:.2g}; {instead}", ConvergenceWarning, stacklevel=2)
