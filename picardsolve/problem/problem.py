"""One solve, validated."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from picardsolve.brownian.path import Path
from picardsolve.problem.state import Layout
from picardsolve.problem.terms import Term


@dataclass(frozen=True)
class Problem:
    """One solve, validated: everything a chain is made of.

    Attributes:
        parameters: where tensors that require gradients are noted, which functions close over; None where gradients
            are not recorded.
    """

    term: Term
    layout: Layout
    ts: Tensor
    args: Any
    brownian: Path
    max_batch: int | None = None
    parameters: list[Tensor] | None = None
