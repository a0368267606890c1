"""What a parallel run of a pipeline cost."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from picardsolve import Round
from picardsolve.plot import plot_rounds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Report:
    """The cost of one run, filled while it goes on.

    Attributes:
        steps: iterations of the pipeline's loop, each one denoiser call if run sequentially.
        rounds: batched denoiser calls that follow each other (the calls of one iteration count once).
        evaluations: states of one sample that the denoiser was given.
        samples: size of the batch.
        width: most steps in a round.
        misses: cached outputs that did not fit when they were needed, and were computed again.
        history: one record per round of the window.
    """

    steps: int = 0
    rounds: int = 0
    evaluations: int = 0
    samples: int = 1
    width: int = 0
    misses: int = 0
    history: list[Round] = field(default_factory=list, repr=False)

    def plot(self, sample: int = 0) -> "Figure":
        """Draw what every step still changed in every round, and the window sliding through it (needs matplotlib)."""
        return plot_rounds(self.history, self.steps, self.rounds, sample)

    def __str__(self) -> str:
        total = self.steps * self.samples
        work = self.evaluations / total if total else 0.0
        return (
            f"{self.steps} steps in {self.rounds} rounds, {self.evaluations} evaluations ({work:.2f} per step and "
            f"sample), at most {self.width} steps in a round, {self.misses} misses"
        )
