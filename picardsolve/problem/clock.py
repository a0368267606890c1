"""The dtype of the times that the user's functions get: float64 wherever rounding would change the result."""

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

RESOLVED = 100.0  # number of grid steps within which a drift is expected to change by its own size
_NEAR = 16.0  # up to this many such lengths from zero, rounding a time does as little as rounding a state
_FINE = 0.02  # largest shift of a time by rounding without a warning, as a fraction of the shortest step
_COARSE = 0.25  # largest shift without an error, as a fraction of the shortest step


@dataclass
class Clock:
    """The dtype of the times that the functions of one solve get.

    Times are stored in float64, and functions get float64 times. On a grid near zero, functions get the state's dtype
    instead, because there rounding a time changes no more than rounding a state. A function that raises an error for
    float64 times also gets the state's dtype, as in torchdiffeq. A noticeable shift of the times gives a warning. A
    shift of more than a quarter of a step gives an error.

    Attributes:
        far: the largest absolute time.
        span: length from the first time to the last.
        shortest: the shortest step.
        ladder: dtypes; the first is in use, and the others follow if a function raises an error.
        settled: whether a function has raised an error for a dtype.
    """

    far: float
    span: float
    shortest: float
    ladder: tuple[torch.dtype, ...]
    settled: bool = False

    @staticmethod
    def of(ts: Tensor, layout: Layout, resolved: float = RESOLVED) -> "Clock":
        """The clock of a grid, ``(N + 1,)`` or ``(T, B)``; the drift changes by its own size in ``resolved`` steps."""
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
        """Use float64 if times up to ``far`` need it for a drift that changes by its own size within ``length``."""
        if far > _NEAR * length and not self.settled and not self.exact:
            self.ladder = (torch.float64, *self.ladder)

    def follow(self, clock: "Clock") -> None:
        """Give functions what another clock of the same times gives them."""
        if not self.settled:
            self.ladder, self.settled = clock.ladder, clock.settled

    def called(self, name: str, function: Callable[[torch.dtype], Out]) -> Out:
        """``function(dtype)`` for the first dtype without a RuntimeError; ValueError if that shifts times too far."""
        first: RuntimeError | None = None
        for rung, dtype in enumerate(self.ladder):
            try:
                out = function(dtype)
            except RuntimeError as error:  # for example torch's "expected m1 and m2 to have the same dtype"
                first = first or error
                continue
            if rung:
                self._settle(name, rung, first)
            return out
        assert first is not None
        raise first

    def _settle(self, name: str, rung: int, error: Exception | None) -> None:
        """Use a lower dtype from now on."""
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
