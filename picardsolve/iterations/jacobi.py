"""Jacobi iteration."""

from dataclasses import dataclass

from torch import Tensor

from picardsolve.integrators.base import Steps
from picardsolve.iterations.base import Iteration


@dataclass(frozen=True)
class Jacobi(Iteration):
    """``delta = 0``: every state becomes the image of its predecessor (Song et al. 2021b). Slow; a baseline."""

    def sweep(self, steps: Steps, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """``Y[n+1] = F[n]``."""
        images = steps.images()
        residual = images - x[1:]
        return images, residual, residual
