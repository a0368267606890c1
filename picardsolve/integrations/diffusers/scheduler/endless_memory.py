"""Weights of steps whose memory never ends, such as UniPC's with its corrector, on the latest steps alone.

Such a scheduler carries a sum over all the steps that it took. On the path of a loop every step starts where the one
before it ended, and that end holds a multiple of the same sum. The difference between the two, start and end, is zero
on the path: so much of it is subtracted that the sum is gone.

Weights are arrays ``(2, A)``: of the states and of the outputs, by age, the present step's first.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LONG = 6  # ages from here on count as the endless part; UniPC of order p needs p + 1 ages
_SMALL = 1e-6  # smaller weights are rounding errors


def nothing_on_path(before: np.ndarray) -> np.ndarray:
    """Weights of a state less the result of the step before it, which has the weights ``before``."""
    zero = later(-before)
    zero[0, 0] = 1.0
    return zero


def later(weights: np.ndarray) -> np.ndarray:
    """The same weights, seen from the step after."""
    return np.pad(weights, ((0, 0), (1, 0)))


def shortened(weights: np.ndarray, zero: np.ndarray, ages: int) -> np.ndarray | None:
    """The same on the path, with weights for the latest ``ages`` steps alone.

    Args:
        weights: of a step's result, or of what a scheduler remembers.
        zero: weights, of as many ages, of something that is zero on the path.
        ages: kept.

    Returns:
        ``(2, ages)``; None where the memory cannot be shortened.
    """
    old, against = weights[:, _LONG:].ravel(), zero[:, _LONG:].ravel()
    if np.abs(old).max(initial=0.0) >= _SMALL and against.any():
        weights = weights - (old @ against) / (against @ against) * zero
    weights = np.where(np.abs(weights) < _SMALL, 0.0, weights)
    if weights[:, ages:].any():
        return None
    return np.pad(weights, ((0, 0), (0, max(0, ages - weights.shape[1]))))[:, :ages]


def with_states(value: Any, unit: torch.Size, made: Callable[[Tensor], Tensor | None]) -> Any:
    """An attribute of a scheduler with ``made`` of every state and output in the place of these; copies of the rest.

    Args:
        value: a number, a tensor, or a list of such.
        unit: shape of states and outputs.
        made: what takes the place of one.
    """
    if isinstance(value, list):
        return [with_states(part, unit, made) for part in value]
    if not isinstance(value, Tensor):
        return value
    return made(value) if value.shape == unit else value.clone()
