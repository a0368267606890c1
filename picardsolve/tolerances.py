"""When a state has stopped moving."""

from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.recurrence import rms

_TINY = 1e-30  # weights at least as large are normal numbers in every dtype that states are kept in


@dataclass(frozen=True)
class Tolerance:
    """A state counts as converged when its change in a round is within tolerance, in root mean square over the state.

    Each field is a number, or a tensor of shape ``(B,)`` with one value per sample.

    Args:
        atol: absolute tolerance.
        rtol: tolerance relative to the size of each element of the state.
        noise: tolerance relative to the noise that the step itself adds (Shih et al. 2023, section 3.2).
    """

    atol: float | Tensor = 0.0
    rtol: float | Tensor = 0.0
    noise: float | Tensor = 0.0

    def within(self, change: Tensor, y: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compare changes with what is allowed.

        Args:
            change: ``(W, B, D)``.
            y: the states that changed, ``(W, B, D)``.
            noise: standard deviation of the step's noise, ``(W, B)``, or None where there is none.

        Returns:
            ``(W, B)`` booleans, and the root mean square of each change, ``(W, B)``.
        """
        size = rms(change)
        if _is_zero(self.rtol) and _is_zero(self.atol) and _is_zero(self.noise):
            return _is_still(change), size  # not by the size, whose squares may underflow
        if _is_zero(self.rtol):
            allowed = self.atol if noise is None else self.atol + self.noise * noise
            within = size <= allowed
            if isinstance(self.atol, Tensor) or isinstance(self.noise, Tensor):
                within &= (allowed > 0) | _is_still(change)
            return within, size
        weights = y.abs()
        if isinstance(self.rtol, Tensor) or isinstance(self.atol, Tensor):
            weights.mul_(_column(self.rtol)).add_(_column(self.atol))
        else:
            torch.add(torch.tensor(self.atol, dtype=y.dtype), weights, alpha=self.rtol, out=weights)
        if noise is not None and not _is_zero(self.noise):
            weights += (self.noise * noise)[..., None]
        if isinstance(self.atol, Tensor) or self.atol < _TINY:
            weights.clamp_(min=torch.finfo(y.dtype).tiny)
        return rms(torch.div(change, weights, out=weights)) <= 1, size


def _is_still(change: Tensor) -> Tensor:
    return change.abs().amax(-1) == 0


def _is_zero(value: float | Tensor) -> bool:
    return not isinstance(value, Tensor) and value == 0


def _column(value: float | Tensor) -> float | Tensor:
    return value[:, None] if isinstance(value, Tensor) else value
