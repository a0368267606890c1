"""What a parallel run of a pipeline cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from picardsolve import Certificate, Round
from picardsolve.certificate import Evidence
from picardsolve.plot import plot_rounds
from picardsolve.tolerances import Tolerance

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Report:
    """The cost of one run, filled while it goes on.

    Attributes:
        steps: iterations of the pipeline's loop, each one denoiser call if run sequentially.
        rounds: batched denoiser calls that follow each other (the calls of one iteration count once).
        calls: denoiser calls in all: several an iteration with two-call guidance or a ControlNet, or where
            ``max_batch`` cut a round into chunks.
        states: states of the whole batch that the denoiser was given, in all.
        samples: size of the batch.
        width: most steps in a round.
        misses: cached outputs that did not fit when they were needed, and were computed again.
        company: how far a denoiser's output for a state was from its output in a batch, relative to its size: checked
            once a run.
        tolerance: the one that was used; never below what the states' type can show.
        seconds: time of the loop, and of each round by its width: ``(width, seconds)``.
        predicted_gain: how many times faster than sequential, foreseen when a quarter of the steps was done; None
            where the run was too short to tell.
        sequential: why the run, or the rest of it, went one step at a time; None if it did not.
        notes: what else a user should know, a sentence each.
        history: one record per round of the window.
        state: the last state of the loop; None before the first step.
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
    seconds: float = 0.0
    round_seconds: list[tuple[int, float]] = field(default_factory=list, repr=False)
    predicted_gain: float | None = None
    sequential: str | None = None
    notes: list[str] = field(default_factory=list)
    history: Sequence[Round] = field(default=(), repr=False)
    state: Tensor | None = field(default=None, repr=False)

    @property
    def certificate(self) -> Certificate:
        """How far the states may be from the untouched pipeline's, ``(steps + 1, samples)``.

        Remembered outputs are taken for those of states that were moved a little since: that is the error. Steps that
        the pipeline took one at a time carry on the error of the step before.

        Raises:
            ValueError: the loop has not run yet.
        """
        if self.state is None:
            raise ValueError("certificate: the loop has not run yet; read it after the pipeline was called.")
        path = self.state.flatten(1).float()[None] if self.state.dim() > 1 else self.state.float()[None, :, None]
        tolerance = Tolerance(state=self.tolerance)
        return Certificate.of(Evidence(self.history, path, self.steps, tolerance, held=True))

    @property
    def evaluations(self) -> int:
        """States of one sample that the denoiser was given."""
        return self.states * self.samples

    @property
    def measured_gain(self) -> float | None:
        """How many times faster than ``steps`` calls of one step each; None where no such call was timed.

        A single step takes what the fastest round of one step took in this run: mind the first calls of a process.
        """
        single = single_step(self.round_seconds)
        return None if single is None or not self.seconds else self.steps * single / self.seconds

    def note(self, sentence: str) -> None:
        """Add a note, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def plot(self, sample: int = 0) -> "Figure":
        """Draw what every step still changed in every round, and the window sliding through it (needs matplotlib)."""
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
        if self.state is not None and self.history:
            text += f"\n{self.certificate}"
        if self.sequential is not None:
            text += f"\nran one step at a time: {self.sequential}"
        return "\n".join([text, *self.notes])


def single_step(round_seconds: list[tuple[int, float]]) -> float | None:
    """Seconds of a round of one step: the fastest of a run."""
    return min((seconds for width, seconds in round_seconds if width == 1), default=None)
