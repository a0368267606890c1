"""The options that `sample`, `sampler` and `denoise` share."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from picardsolve import Copy, FrozenOutput, FrozenSample, Guess, Iteration
from picardsolve.extend import check_not_negative, check_optional_positive_integer
from picardsolve.integrations.diffusers.report import Report

_WIDEST = 128  # largest window in steps that window="auto" tries


@dataclass(frozen=True)
class Options:
    """How a run is solved; `sampler` documents each option, and the errors for wrong ones."""

    window: int | Literal["auto"] = 32
    tolerance: float = 1e-3
    max_batch: int | None = None
    iteration: Iteration | None = None
    guess: Guess | None = None
    batcher: Any = None
    mesh: Any = None
    devices: Any = None

    def __post_init__(self):
        window, guess = self.window, self.guess
        if self.batcher is not None and (self.mesh is not None or self.devices is not None):
            raise ValueError("batcher: it gathers rows in one process, for one device; leave mesh and devices out.")
        if window != "auto" and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
            raise ValueError(f'window: expected an integer >= 1 or "auto", got {window!r}.')
        check_not_negative("tolerance", self.tolerance)
        check_optional_positive_integer("max_batch", self.max_batch)
        if not isinstance(guess, Copy | FrozenOutput | FrozenSample | None):
            raise TypeError(
                "guess: a pipeline's states start from Copy(), FrozenOutput() or FrozenSample(), got "
                f"{getattr(guess, '__name__', type(guess).__name__)}; pass one of these or None."
            )
        _refuse_iteration(self.iteration)
        if self.batcher is not None and not hasattr(self.batcher, "for_one_solve"):
            raise TypeError(f"batcher: expected a picardsolve.Batcher, got {type(self.batcher).__name__}.")

    def widest(self, steps: int) -> int:
        """Largest window, in steps."""
        return min(_WIDEST, steps) if self.window == "auto" else self.window

    def place(self) -> AbstractContextManager[Any]:
        """A context with the run's request at the model that it shares with others; with None if it shares none."""
        return nullcontext() if self.batcher is None else self.batcher.for_one_solve()

    def settled_tolerance(self, dtype: torch.dtype, report: Report) -> float:
        """The tolerance, at least the resolution of the dtype; the report notes a tolerance that was raised."""
        shows = torch.finfo(dtype).eps
        if 0 < self.tolerance < shows:
            report.note(f"The tolerance is {shows:.1g}, not {self.tolerance:.1g}: {dtype} shows no less.")
            return shows
        return self.tolerance


def _refuse_iteration(iteration: Iteration | None) -> None:
    if iteration is None:
        return
    name = type(iteration).__name__
    if not hasattr(iteration, "sweep"):
        raise TypeError(
            f"iteration: {name} has no sweep over a window: it steps from places all along the grid, and a pipeline's "
            "loop goes through it once; pass picardsolve.Picard(), or call picardsolve.solve with a Denoiser."
        )
    if iteration.directions(1, 0) is not None:
        raise TypeError(f"iteration: {name} needs derivatives, which a pipeline does not give; pass Secant().")
