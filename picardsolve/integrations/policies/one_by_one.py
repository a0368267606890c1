"""Plans of few steps: one step after the other where the clock says that this is faster."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import torch

from picardsolve.integrations.policies.solver import Plan

_FEW = 20  # model calls up to which it is tried
_TRIES = 3  # plans that are made in each way before one of the two is chosen
_RECENT = 5  # times of each way that count


def may_be_tried(calls: int, max_rounds: int | None) -> bool:
    """Whether plans may be made one step after the other: few calls, no budget, and the clock may decide."""
    return calls <= _FEW and max_rounds is None and not torch.are_deterministic_algorithms_enabled()


@dataclass
class Faster:
    """The faster one of two ways to make plans: both are tried, the least of the last times of each counts.

    Attributes:
        alone: seconds of the last plans made one step after the other.
        together: seconds of the last plans made all steps at once.
    """

    alone: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)

    def plan(self, alone: Callable[[], Plan], together: Callable[[], Plan]) -> Plan:
        """A plan by one of the ways; one that fails alone is made together, where failures are told apart."""
        tried = min(len(self.alone), len(self.together)) >= _TRIES
        one_by_one = min(self.alone) < min(self.together) if tried else len(self.alone) <= len(self.together)
        begun = perf_counter()
        plan = alone() if one_by_one else together()
        spent = self.alone if one_by_one else self.together
        spent.append(perf_counter() - begun)
        del spent[:-_RECENT]  # a lucky time is forgotten, and the other way has its turn if it was better
        return together() if one_by_one and plan.failed.any() else plan
