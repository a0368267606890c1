"""What an embedded pair of Runge-Kutta methods is: its coefficients, and where it keeps them on a device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """An explicit Runge-Kutta method with estimates of its local error; its last stage is the next step's first.

    Attributes:
        order: of the method.
        c: ``(s,)`` places of the stages in a step; the last two are 1.
        a: s - 1 rows of coefficients, of lengths 1 to s - 1; the last one makes the state after the step.
        errors: rows ``(s,)``, differences to solutions of lower order. Two of them estimate as in Hairer's DOP853.
        nodes: states that a polynomial between steps goes through, with their slopes.
        window: states that local errors are seen by.
        cap: what is seen counts up to this many times the pair's own estimate.
        first: tolerances that a step of the first march may be off by. What is held to the tolerance is the end, and a
            sample that misses it is solved again: so many that errors that grow tenfold rarely do.
    """

    order: int
    c: tuple[float, ...]
    a: Sequence[Sequence[float]]
    errors: Sequence[Sequence[float]]
    nodes: int
    window: int
    cap: float
    first: float

    @property
    def stages(self) -> int:
        """How many there are, with the one that is shared."""
        return len(self.c)

    def twins(self) -> np.ndarray:
        """``(2, s)``: the differences of the last two states and of their slopes.

        Those two are states at the same time. How their slopes differ shows the equation's rate.
        """
        s = self.stages
        last, twin = np.zeros(s), np.zeros(s)
        last[: s - 1], twin[: s - 2] = self.a[-1], self.a[-2]
        slopes = np.zeros(s)
        slopes[-1], slopes[-2] = 1, -1
        return np.array([last - twin, slopes])


@dataclass(frozen=True)
class Coefficients:
    """The coefficients of a pair as tensors.

    Attributes:
        rows: those of ``a``.
        errors: ``(m, s)``.
        twins: ``(2, s)``.
    """

    rows: tuple[Tensor, ...]
    errors: Tensor
    twins: Tensor

    @staticmethod
    def of(pair: Pair, like: Tensor) -> "Coefficients":
        """In the dtype and on the device of a tensor, copied together."""
        errors, twins = np.array(pair.errors, float), pair.twins()
        numbers = np.concatenate([*(np.array(row) for row in pair.a), errors.ravel(), twins.ravel()])
        together = torch.from_numpy(numbers).to(like.device, like.dtype, non_blocking=True)
        *rows, errors_, twins_ = together.split([*range(1, pair.stages), errors.size, twins.size])
        return Coefficients(tuple(rows), errors_.view(errors.shape), twins_.view(twins.shape))
