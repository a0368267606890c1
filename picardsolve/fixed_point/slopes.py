"""Slopes of steps, measured from their changes between two rounds."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import threshold

from picardsolve.integrators.step_maps import Steps

LOWEST, HIGHEST = -0.5, 1.3  # a slope is clipped to: a product of larger ones would blow up over a long window
_SEEN = 1e-13  # changes of a state below this fraction of its size are rounding, and say nothing of the slope
_SAMPLED = 256  # numbers of a state that some slopes are taken from, about


def expected_slope(steps: Steps, x: Tensor) -> Tensor:
    """What a step's slope is taken to be before the step has been seen twice, ``(W, B, 1)``; to be clipped."""
    expected = steps.expected_slope
    shape = torch.Size((len(x) - 1, x.shape[1], 1))
    return ones(shape, x.dtype, x.device) if expected is None else expected.expand(shape)


def changes(now: Tensor, before: Tensor, size: int, seen: Tensor) -> tuple[Tensor, Tensor]:
    """What has changed since the last round, scaled to a change of the state of length one.

    Args:
        now: ``(W, B, K)``, the state of each step in its first ``size`` numbers, and what follows from the state.
        before: the same of the last round.
        size: numbers in a state, D.
        seen: ``(W, B, 1)``, 1 where ``before`` is known, 0 where it is not.

    Returns:
        The changes, ``(W, B, K)``; NaN where the state has not changed by more than rounding, or not been seen. And
        what they were divided by, ``(W, B, 1)``.
    """
    some, change = sampled(size), now - before
    reach = torch.linalg.vector_norm(now[..., :size][..., some], torch.inf, -1, keepdim=True)
    length = torch.linalg.vector_norm(change[..., :size][..., some] / reach, dim=-1, keepdim=True)  # may be tiny
    length = threshold(length * seen, _SEEN, torch.nan).mul_(reach)
    return change.div_(length), length


def slope_along(dx: Tensor, df: Tensor, expected: Tensor) -> Tensor:
    """The clipped slope ``(W, B, 1)`` of changes of length one; the expected one where they are NaN."""
    some = sampled(dx.shape[-1])
    along = torch.linalg.vecdot(dx[..., some], df[..., some])[..., None]
    return clipped(torch.where(along == along, along, expected))


def from_expected(measured: Tensor, expected: Tensor) -> Tensor:
    """Slopes ``(W, B, 1)``: those that are measured for the first steps, then the expected ones."""
    known = len(measured)
    return measured if known == len(expected) else torch.cat([measured, clipped(expected[known:])])


def clipped(slope: Tensor) -> Tensor:
    """A slope within what a long window bears."""
    return slope.clamp(LOWEST, HIGHEST)


@lru_cache(maxsize=64)
def ones(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A constant, not to be written to."""
    with torch.inference_mode(False):
        return torch.ones(shape, dtype=dtype, device=device)


def sampled(size: int) -> slice:
    """The numbers of a large state from which its slopes are taken."""
    return slice(None, None, size // _SAMPLED | 1)  # odd, for states are often stored in pairs
