"""Drifts that have a clock of their own, by which methods decide in tests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import Tensor

from picardsolve.adaptive import choice_solve
from picardsolve.collocation import adaptive_solve


@dataclass
class Clocked:
    """A drift of states ``(rows, d)`` that takes ``call + row * rows`` seconds; nothing else takes any.

    Attributes:
        calls: rows of every call so far.
    """

    drift: Callable[[Tensor, Tensor], Tensor]
    call: float
    row: float
    now: float = 0.0
    calls: list[int] = field(default_factory=list)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        rows = y.numel() // y.shape[-1]
        self.calls.append(rows)
        self.now += self.call + self.row * rows
        return self.drift(t, y)

    def seconds(self) -> float:
        """By its clock."""
        return self.now


def clocked(patch: pytest.MonkeyPatch, drift: Any, call: float, row: float) -> Clocked:
    """A drift whose clock decides."""
    made = Clocked(drift, call, row)
    for module in (choice_solve, adaptive_solve):
        patch.setattr(module, "seconds", made.seconds)
    return made
