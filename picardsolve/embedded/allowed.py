"""The error that a tolerance allows of each component of each sample."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picardsolve.problem.index import on_device
from picardsolve.problem.tolerances import Tolerance


@dataclass(frozen=True)
class Allowed:
    """Tolerances as numbers, or as tensors ``(B or 1, D or 1)``.

    Attributes:
        rtol: relative to the largest value of each component in a step.
        atol: absolute.
    """

    rtol: float | Tensor
    atol: float | Tensor

    @staticmethod
    def of(tolerance: Tolerance) -> "Allowed":
        """That of a solve."""
        return Allowed(_column(tolerance.rtol), _column(tolerance.atol))

    def at(self, rows: Tensor) -> "Allowed":
        """Those of samples, by their numbers ``(R,)``."""
        return Allowed(_rows(self.rtol, rows), _rows(self.atol, rows))

    def of_nodes(self, sample: np.ndarray, device: torch.device) -> "Allowed":
        """Those of nodes, by the samples ``(M,)`` that they belong to."""
        one = all(not isinstance(value, Tensor) or len(value) == 1 for value in (self.rtol, self.atol))
        return self if one else self.at(on_device(sample, device))

    def scaled(self, factor: float | Tensor) -> "Allowed":
        """Times a number, or numbers ``(B, 1)``."""
        return Allowed(self.rtol * factor, self.atol * factor)

    def __call__(self, largest: Tensor) -> Tensor:
        """The allowed error of components with the largest values ``(..., R, D)``, which are overwritten."""
        allowed = largest.mul_(self.rtol).add_(self.atol)
        if isinstance(self.atol, Tensor) or self.atol == 0:
            allowed.clamp_(min=torch.finfo(largest.dtype).tiny)  # of a component that stays 0
        return allowed


def _column(value: float | Tensor) -> float | Tensor:
    return value[:, None] if isinstance(value, Tensor) and value.dim() == 1 else value


def _rows(value: float | Tensor, rows: Tensor) -> float | Tensor:
    return value.index_select(0, rows) if isinstance(value, Tensor) and len(value) > 1 else value
