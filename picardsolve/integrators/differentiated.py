"""The steps of a window with their derivatives along given directions."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.base import Chain, Index, Rows, Steps


@dataclass(frozen=True)
class Differentiated(Steps):
    """Steps, and how their images answer to the states they leave from.

    Attributes:
        steps: the steps themselves.
        directions: ``(P, D)``.
        derivatives: ``dPhi_n / dX_n`` times each direction, ``(W, B, P, D)``. Of a method that reads earlier outputs
            only the own state's part.
    """

    steps: Steps
    directions: Tensor
    derivatives: Tensor

    @staticmethod
    def of(
        steps: Steps, chain: Chain, n: Index, directions: Tensor, outputs: Tensor, noise: Tensor | None
    ) -> "Differentiated":
        """Derivatives of steps from those of their outputs, ``(W, B, P, K)``.

        For given noise a step is affine in its state and its output: its derivative is the step of the derivatives,
        less the step of zeros.
        """
        width, samples, count, _ = outputs.shape
        along = directions.expand(width, samples, count, -1)
        each = np.broadcast_to(n, (width, samples)).ravel()
        noise = None if noise is None else noise.flatten(0, 1)
        many = None if noise is None else noise.repeat_interleave(count, 0)
        anyone = np.zeros(each.size * count, dtype=np.int64)
        rows = Rows(each.repeat(count), anyone, along.flatten(0, 2), noise=many)
        none = Rows(each, anyone[: each.size], torch.zeros_like(along[:, :, 0]).flatten(0, 1), noise=noise)
        images = chain.image(rows, outputs.flatten(0, 2))
        zero = chain.image(none, outputs.new_zeros(len(each), outputs.shape[-1]))
        return Differentiated(steps, directions, images.reshape(along.shape) - zero.reshape(width, samples, 1, -1))

    def images(self) -> Tensor:
        """Of the steps themselves."""
        return self.steps.images()

    def frozen(self, x: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of the steps themselves."""
        return self.steps.frozen(x, scratch)

    def proper(self) -> Tensor | None:
        """Of the steps themselves."""
        return self.steps.proper()

    def separable(self) -> Tensor | None:
        """Of the steps themselves."""
        return self.steps.separable()

    def passed(self, change: Tensor) -> Tensor:
        """Of the steps themselves."""
        return self.steps.passed(change)

    def noise_scale(self) -> Tensor | None:
        """Of the steps themselves."""
        return self.steps.noise_scale()
