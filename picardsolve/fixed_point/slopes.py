"""Slopes of steps, measured from their changes between two rounds."""

import torch
from torch import Tensor

from picardsolve.integrators.step_maps import Steps

LOWEST, HIGHEST = -0.5, 1.3  # a slope is clipped to: a product of larger ones would blow up over a long window
SEEN = 1e-13  # changes of a state below this fraction of its size are rounding, and say nothing of the slope
_SAMPLED = 256  # numbers of a state that some slopes are taken from, about


def expected_slope(steps: Steps, x: Tensor) -> Tensor:
    """What a step's slope is taken to be before the step has been seen twice, ``(W, B, 1)``."""
    expected = steps.expected_slope
    shape = len(x) - 1, x.shape[1], 1
    return x.new_ones(shape) if expected is None else expected.expand(shape).clamp(LOWEST, HIGHEST)


def differences(
    states: Tensor, before: Tensor, images: Tensor, image_before: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Changes of states and images since the last round, ``(W, B, D)``, and whether they tell a slope, ``(W, B, 1)``.

    Both are scaled to a largest change of a state of 1: the squares of small changes would underflow.
    """
    dx, df = states - before, images - image_before
    largest = dx.abs().amax(-1, keepdim=True)
    fresh = (seen > 0) & (largest > SEEN * states.abs().amax(-1, keepdim=True))
    return dx.div_(largest), df.div_(largest), fresh


def latest_slope(along: Tensor, fresh: Tensor, before: Tensor, seen: Tensor, expected: Tensor) -> Tensor:
    """The slope measured now, else the one before, else the expected one."""
    known = torch.where(fresh & along.isfinite(), along, before)
    return torch.where(seen > 0, known, expected).clamp(LOWEST, HIGHEST)


def sampled(size: int) -> slice:
    """The numbers of a large state from which its slopes are taken."""
    return slice(None, None, size // _SAMPLED | 1)  # odd, for states are often stored in pairs
