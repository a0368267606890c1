"""How much a state may be off."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from picardsolve.problem.recurrence import rms

Stop = Literal["error", "residual", "increment"]

_TINY = 1e-30  # weights at least as large are normal numbers in every dtype that states are kept in


@dataclass(frozen=True)
class Tolerance:
    """What changes and errors of states are measured by, in root mean square over the state.

    Each field is a number, or a tensor of shape ``(B,)`` with one value per sample; ``atol`` and ``rtol`` may also be
    ``(1, D)`` or ``(B, D)``, with one value for each element of a state.

    Args:
        atol: absolute tolerance.
        rtol: tolerance relative to the size of each element of the state.
        noise: tolerance relative to the scale that a chain gives as its step's noise (`Steps.noise_scale`): of a
            solve, the standard deviation of the noise that the step itself adds (Shih et al. 2023, section 3.2); of a
            pipeline's scheduler, the size of the state.
        state: tolerance relative to the root mean square of the whole state.
    """

    atol: float | Tensor = 0.0
    rtol: float | Tensor = 0.0
    noise: float | Tensor = 0.0
    state: float | Tensor = 0.0

    @property
    def nothing(self) -> bool:
        """Whether no change at all is allowed."""
        return all(map(_is_zero, (self.rtol, self.atol, self.noise, self.state)))

    def scaled(self, factor: float | Tensor) -> "Tolerance":
        """The same, times a number, or one for each sample."""
        given = self.atol, self.rtol, self.noise, self.state
        return Tolerance(*(value if _is_zero(value) else _times(value, factor) for value in given))

    @property
    def smallest(self) -> float:
        """The smallest relative tolerance of any sample, or the absolute one where there is none."""
        rtol, state, atol = (torch.as_tensor(_column(value)) for value in (self.rtol, self.state, self.atol))
        relative = rtol + state
        return float(torch.where(relative > 0, relative, atol).min())

    def size(self, y: Tensor) -> Tensor:
        """Root mean square error that is allowed of states ``(..., D)``; noise left aside."""
        if not (_has_elements(self.rtol) or _has_elements(self.atol)):
            return rms(y) * (self.rtol + self.state) + self.atol
        return rms(y.abs() * _column(self.rtol) + _column(self.atol)) + rms(y) * self.state

    def measure(self, change: Tensor, y: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Measure changes in units of what is allowed.

        Args:
            change: ``(W, B, D)``.
            y: the states that changed, ``(W, B, D)``.
            noise: standard deviation of the step's noise, ``(W, B)``, or None where there is none.

        Returns:
            The size of each change in units of the tolerance, and its root mean square, ``(W, B)`` both. Where nothing
            is allowed the former is 0 for no change at all, and infinite for any other.
        """
        size = rms(change)
        if self.nothing:
            return _any(change), size  # not by the size, whose squares may underflow
        relative = not (_is_zero(self.state) and (noise is None or _is_zero(self.noise)))
        if not relative or not _is_zero(self.rtol) or _has_elements(self.atol):  # the squares of changes may underflow
            return self._by_element(change, y, noise), size
        allowed = self.atol + (0 if noise is None else self.noise * noise)
        allowed = allowed if _is_zero(self.state) else allowed + self.state * rms(y)
        scaled = torch.where(size == 0, 0, size / allowed)
        if any(isinstance(value, Tensor) for value in (self.atol, self.noise, self.state)):
            scaled = torch.where(torch.as_tensor(allowed) > 0, scaled, _any(change))
        return scaled, size

    def within(self, change: Tensor, y: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Whether each change is within tolerance, ``(W, B)`` booleans, and its root mean square; see `measure`."""
        scaled, size = self.measure(change, y, noise)
        return scaled <= 1, size

    def _by_element(self, change: Tensor, y: Tensor, noise: Tensor | None) -> Tensor:
        weights = y.abs()
        if isinstance(self.rtol, Tensor) or isinstance(self.atol, Tensor):
            weights.mul_(_column(self.rtol)).add_(_column(self.atol))
        else:
            torch.add(torch.tensor(self.atol, dtype=y.dtype), weights, alpha=self.rtol, out=weights)
        if noise is not None and not _is_zero(self.noise):
            weights += (self.noise * noise)[..., None]
        if isinstance(self.atol, Tensor) or self.atol < _TINY:
            weights.clamp_(min=torch.finfo(y.dtype).tiny)
        return rms(torch.div(change, weights, out=weights))


def _any(change: Tensor) -> Tensor:
    """Infinite where there is any change, else 0."""
    return torch.where(change.abs().amax(-1) == 0, 0.0, torch.inf).to(change.dtype)


def _is_zero(value: float | Tensor) -> bool:
    return not isinstance(value, Tensor) and value == 0


def _has_elements(value: float | Tensor) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2


def _times(value: float | Tensor, factor: float | Tensor) -> float | Tensor:
    return value * (_column(factor) if _has_elements(value) else factor)


def _column(value: float | Tensor) -> float | Tensor:
    """As it applies to the elements of states."""
    return value[:, None] if isinstance(value, Tensor) and value.dim() == 1 else value
