"""What the rounds of a solve did."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimates:
    """What a round let one estimate of each step of its window, ``(W, B)`` all.

    Attributes:
        excess: estimated errors of the new states, in units of what may have been spent on them.
        ratios: of the residual that the last sweep left to how far it had moved the state; NaN where not known.
        slopes: by how much a change of the state changes the one after it; NaN where not known.
    """

    excess: Tensor
    ratios: Tensor
    slopes: Tensor

    @staticmethod
    def of(excess: np.ndarray, ratios: np.ndarray, slopes: np.ndarray | None) -> "Estimates":
        """From arrays; slopes may be unknown."""
        known = np.full_like(excess, np.nan) if slopes is None else slopes
        return Estimates(*map(torch.from_numpy, (excess, ratios, known)))


@dataclass(frozen=True)
class Round:
    """What one round did, on the CPU.

    Attributes:
        begin: ``(B,)`` the step each sample's window stood at.
        stride: ``(B,)`` the steps it accepted.
        width: ``(B,)`` the steps it held.
        increments: ``(W, B)`` root mean square change of the states after each step.
        residuals: ``(W, B)`` root mean square of ``Phi_n(X[n]) - X[n+1]``, or None where not computed.
        step: ``(W, B)`` the step of each row, where they do not simply follow from ``begin`` on (`Parareal`).
        estimates: what could be estimated of each step; None where nothing was.
    """

    begin: Tensor
    stride: Tensor
    width: Tensor
    increments: Tensor
    residuals: Tensor | None
    step: Tensor | None = None
    estimates: Estimates | None = None

    @staticmethod
    def of(
        begin: np.ndarray,
        stride: np.ndarray,
        width: np.ndarray,
        increments: Tensor,
        residuals: Tensor | None,
        step: np.ndarray | None = None,
        estimates: Estimates | None = None,
    ) -> "Round":
        """From the window's numbers on the host and its norms on the device."""
        at = None if step is None else torch.from_numpy(step.copy())
        begin_, stride_, width_ = (torch.from_numpy(value.copy()) for value in (begin, stride, width))
        norms = increments.cpu(), None if residuals is None else residuals.cpu()
        return Round(begin_, stride_, width_, *norms, at, estimates)
