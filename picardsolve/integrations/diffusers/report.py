"""The cost of a parallel run of a pipeline, and the distance of its result from the sequential one."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from picardsolve import Certificate
from picardsolve.extend import Evidence, History, Tolerance, plot_rounds, rms
from picardsolve.integrations.diffusers.predicted_gain import GainPrediction, TimedRound
from picardsolve.integrations.diffusers.scheduler.table import SchedulerTable
from picardsolve.integrations.diffusers.spans import Span

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Report:
    """The cost of one run, filled during the run.

    Attributes:
        steps: iterations of the pipeline's loop; each is one denoiser call in a sequential run.
        rounds: batched denoiser calls, one after the other (the calls of one iteration count once).
        calls: all denoiser calls; several in an iteration with two-call guidance, a ControlNet, or ``max_batch``.
        states: number of states that the denoiser evaluated, where a whole batch counts as one.
        samples: size of the batch.
        width: most steps in a round.
        misses: stored outputs that did not fit when their steps were reached, and were computed again.
        company: distance between a state's output in a batch and its output alone, relative to the output's size.
        tolerance: the tolerance in use; at least the resolution of the states' dtype.
        sequential: why the run, or the rest of it, went one step at a time; None if it did not.
        notes: further sentences for the user.
        history: one record per round of the window.
        state: the last state of the loop; None before the first step.
        taken: steps that have led to it.
        span: time of the loop.
        rounds_timed: each round with its time, which is read from a GPU when it is asked for.
        table: weights of the scheduler's steps; None if unknown.
    """

    steps: int = 0
    rounds: int = 0
    calls: int = 0
    states: int = 0
    samples: int = 1
    width: int = 0
    misses: int = 0
    company: float = 0.0
    tolerance: float = 0.0
    sequential: str | None = None
    notes: list[str] = field(default_factory=list)
    history: History = field(default_factory=History, repr=False)
    state: Tensor | None = field(default=None, repr=False)
    taken: int = 0
    span: Span = field(default_factory=Span, repr=False)
    rounds_timed: list[TimedRound] = field(default_factory=list, repr=False)
    table: SchedulerTable | None = field(default=None, repr=False)

    @property
    def held_slopes(self) -> Tensor | None:
        """Derivative of each step with respect to its state, at a fixed output, ``(N,)``; None if unknown."""
        return None if self.table is None else self.table.held_slopes()

    @property
    def seconds(self) -> float:
        """Seconds that the loop took."""
        return self.span.seconds

    @property
    def round_seconds(self) -> list[tuple[int, float]]:
        """Width and seconds of each round, from its first denoiser call to the end of its step."""
        return [(each.width, each.span.seconds) for each in self.rounds_timed]

    @property
    def single_seconds(self) -> list[float]:
        """Seconds of rounds of one step, without the process's slower first call of a kind."""
        return [each.span.seconds for each in self.rounds_timed if each.alone and each.warm]

    @property
    def predicted_gain(self) -> float | None:
        """Prediction of `measured_gain` after a quarter of the steps, from the times of these steps and their replays.

        None for a short run, or before a round of one step was measured.
        """
        return GainPrediction.of(self.steps, self.rounds_timed)

    @property
    def certificate(self) -> Certificate:
        """Estimates of the distance of the states from the untouched pipeline's, ``(steps + 1, samples)``.

        The error has one source: the last sweep changes the states slightly after the denoiser was evaluated. Steps
        taken one at a time propagate the error of the step before. The distances are in the units of the states. The
        tolerance is relative: see `distance`.

        Raises:
            ValueError: the loop has not run yet.
        """
        if self.state is None:
            raise ValueError("certificate: the loop has not run yet; read it after the pipeline was called.")
        path = self.state.flatten(1).float()[None] if self.state.dim() > 1 else self.state.float()[None, :, None]
        tolerance, taken = Tolerance(state=self.tolerance), self.held_slopes
        if taken is None:
            taken = torch.ones(self.steps, dtype=torch.float64)
        return Certificate.of(Evidence(self.history, path, self.steps, tolerance, taken=taken))

    @property
    def distance(self) -> Tensor:
        """Estimated distance of the last state from the untouched pipeline's, relative to its size, ``(samples,)``.

        On 73 small pipelines the estimate was 1/3 to 30 times the true distance in 138 of 146 runs, with a median of 3.
        It was 17 to 66 times the true distance where the weights of the scheduler's steps are unknown (UniPC), because
        nothing is measured there. The estimate does not detect a sample that ends in another mode.

        Raises:
            ValueError: the loop has not run yet.
        """
        error = self.certificate.error[-1]
        assert self.state is not None
        return error / rms(self.state.reshape(len(error), -1).double()).cpu().clamp(min=1e-30)

    @property
    def evaluations(self) -> int:
        """Number of states that the denoiser evaluated, where each sample of a batch counts."""
        return self.states * self.samples

    @property
    def measured_gain(self) -> float | None:
        """Speedup over ``steps`` calls of one step each; None where no such call was measured.

        The time of one step is the shortest of `single_seconds`. The first run of a network in a process often has no
        such time; the second has. The pipeline's own work in its loop, outside denoiser and scheduler, does not count.
        """
        return None if not self.single_seconds or not self.seconds else self.steps * self.single / self.seconds

    @property
    def single(self) -> float:
        """Seconds of a round of one step; NaN where none was measured."""
        return min(self.single_seconds, default=float("nan"))

    def note(self, sentence: str) -> None:
        """Add a note, unless it is there already."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def plot(self, sample: int = 0) -> "Figure":
        """Draw the change of every step in every round, and the window (needs matplotlib)."""
        return plot_rounds(self.history, self.steps, self.rounds, sample)

    def __str__(self) -> str:
        total = self.steps * self.samples
        work = self.evaluations / total if total else 0.0
        text = (
            f"{self.steps} steps in {self.rounds} rounds, {self.evaluations} evaluations ({work:.2f} per step and "
            f"sample), at most {self.width} steps in a round, {self.misses} misses"
        )
        if self.measured_gain is not None:
            text += f", {self.measured_gain:.2f} times as fast as one step at a time"
        elif self.rounds < self.steps:
            text += ", how much faster than one step at a time was not measured (run it again)"
        if self.state is not None and self.history:
            text += (
                f"\nlast state estimated to be {float(self.distance.max()):.1e} of its size from the untouched "
                f"pipeline's (the tolerance of {self.tolerance:.1g} is on what a round changes); in the state's units:"
                f"\n{self.certificate}"
            )
        if self.sequential is not None:
            text += f"\nran one step at a time: {self.sequential}"
        return "\n".join([text, *self.notes])
