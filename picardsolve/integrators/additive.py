"""Steps that add something held fixed."""

from dataclasses import dataclass

from torch import Tensor

from picardsolve.integrators.base import Steps
from picardsolve.problem.recurrence import linear_sweep


@dataclass(frozen=True)
class Additive(Steps):
    """A change of the state passes unchanged.

    Attributes:
        image: ``(W, B, D)``.
        noise: see `Steps.noise_scale`.
        solves: see `Steps.proper`.
        noisy: see `Steps.separable`.
    """

    image: Tensor
    noise: Tensor | None = None
    solves: Tensor | None = None
    noisy: Tensor | None = None

    def images(self) -> Tensor:
        """As they are."""
        return self.image

    def frozen(self, x: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Sums of what is added."""
        return linear_sweep(self.image, None, x, scratch)

    def proper(self) -> Tensor | None:
        """What was given."""
        return self.solves

    def separable(self) -> Tensor | None:
        """What was given."""
        return self.noisy

    def passed(self, change: Tensor) -> Tensor:
        """The changes themselves."""
        return change

    def noise_scale(self) -> Tensor | None:
        """What was given."""
        return self.noise
