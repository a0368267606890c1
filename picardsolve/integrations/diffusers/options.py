"""How a run is solved, and the window that it is solved with."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from picardsolve import Exponential, FrozenOutput, FrozenSample, Guess, Iteration, Secant
from picardsolve.extend import ErrorEstimate, Residuals, Settings, Tolerance, Window
from picardsolve.integrations.diffusers.report import Report
from picardsolve.integrations.diffusers.scheduler.chain import SchedulerChain
from picardsolve.integrations.diffusers.scheduler.copied_steps import Walk
from picardsolve.integrations.diffusers.scheduler.noise_tape import NoiseTape

_TABLE_TOLERANCE = 1e-5  # below, the window steps with the scheduler itself: a table differs from it by rounding
_WIDEST = 128  # of the windows that are tried by themselves
WIDE = (torch.float32, torch.float64)  # types that states are kept in as they are


@dataclass(frozen=True)
class Numerics:
    """How a run is solved; see `sampler` for the meaning."""

    window: int | Literal["auto"]
    tolerance: float
    iteration: Iteration | None
    guess: Guess | None
    max_batch: int | None

    def widest(self, steps: int) -> int:
        """Steps of the widest window."""
        return min(_WIDEST, steps) if self.window == "auto" else self.window

    def settled_tolerance(self, dtype: torch.dtype, report: Report) -> float:
        """The tolerance for states of a type; noted where the type cannot show what was asked for."""
        shows = torch.finfo(dtype).eps
        if 0 < self.tolerance < shows:
            report.note(f"The tolerance is {shows:.1g}, not {self.tolerance:.1g}: {dtype} shows no less.")
            return shows
        return self.tolerance

    def open(
        self,
        scheduler: Any,
        step: "FirstStep",
        timesteps: Tensor,
        own: Tensor,
        tolerance: float,
    ) -> Window:
        """The window over a scheduler's steps.

        Args:
            scheduler: as it stood before the loop's first step.
            step: that step.
            timesteps: ``(N,)`` the loop's.
            own: the scheduler's own, of which the loop may iterate a part.
            tolerance: see `settled_tolerance`.
        """
        extra = {key: value for key, value in step.extra.items() if key != "return_dict"}
        form = step.timestep.shape if isinstance(step.timestep, Tensor) else ()
        shapes = step.sample.shape, step.output.shape, step.state.dtype, step.output.dtype
        chain = SchedulerChain(
            scheduler, Walk(timesteps, own, *shapes, extra, step.tape, form), tolerance >= _TABLE_TOLERANCE
        )
        width = self.widest(len(timesteps))
        if chain.probe is not None:
            chain.probe.reach(min(width, len(timesteps)))
        onward = chain.probe is None or chain.probe.carries_forward()
        iteration = self.iteration or (Secant() if onward else Exponential())
        guess = self.guess or (FrozenSample() if step.drew else FrozenOutput())
        allowed = Tolerance(noise=tolerance)
        meter = ErrorEstimate(allowed, len(timesteps), frozen=True) if tolerance else None
        settings = Settings(width, iteration, guess, Residuals(allowed), lockstep=True, meter=meter)
        return Window(chain, flat(step.sample), settings)


@dataclass(frozen=True)
class FirstStep:
    """What the loop gave to the scheduler in its first step, the state that came out, and whether noise was drawn."""

    output: Tensor
    timestep: Any
    sample: Tensor
    state: Tensor
    extra: dict[str, Any]
    tape: NoiseTape
    drew: bool


def flat(states: Tensor, dims: int = 1) -> Tensor:
    """All but the first dimensions in one, in at least single precision."""
    rows = states.reshape(*states.shape[:dims], -1)
    return rows if rows.dtype in WIDE else rows.float()
