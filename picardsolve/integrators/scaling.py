"""Steps whose images change by a multiple of their state's change while an output is held."""

from dataclasses import dataclass

from torch import Tensor

from picardsolve.integrators.base import Steps
from picardsolve.problem.recurrence import linear_sweep


@dataclass(frozen=True)
class Scaling(Steps):
    """Of a diffusion sampler, whose outputs are held as they are or as predicted samples.

    Attributes:
        image: ``(W, B, D)``.
        factor: ``(W, B or 1, D or 1)`` by what a change of the state is multiplied.
        expected: see `Steps.expected_slope`.
        noise: see `Steps.noise_scale`.
    """

    image: Tensor
    factor: Tensor
    expected: Tensor
    noise: Tensor | None = None

    def images(self) -> Tensor:
        """As they are."""
        return self.image

    def frozen(self, x: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The sweep by the factors."""
        return linear_sweep(self.image, self.factor, x, scratch)

    def expected_slope(self) -> Tensor | None:
        """What was given."""
        return self.expected

    def passed(self, change: Tensor) -> Tensor:
        """The changes times the factors."""
        return self.factor * change

    def noise_scale(self) -> Tensor | None:
        """What was given."""
        return self.noise
