"""The interface of a guess: what the states that enter a window start from."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.base import Chain, Evaluated, Index
from picardsolve.problem.problem import Problem


@dataclass(frozen=True)
class Trail:
    """The states of the last round, of which a sample's state ``last[s]`` is the one that a guess leaves from.

    Attributes:
        start: ``(B, D)``, number 0: where the window stood.
        y: ``(W, B, D)``, numbers 1 to W: what the round made of the states behind it.
        last: ``(B,)``.
    """

    start: Tensor
    y: Tensor
    last: Index

    def state(self, number: Index) -> Tensor:
        """State ``number[s]`` of each sample s, ``(B, D)``."""
        row, sample = torch.from_numpy(np.maximum(number - 1, 0)), torch.arange(len(number))
        moved = torch.from_numpy(number > 0)[:, None].to(self.y.device)
        return torch.where(moved, self.y[row, sample], self.start)


@dataclass(frozen=True)
class Entering:
    """The states that enter a window: asked for are the L behind ``start``.

    Attributes:
        chain: what is solved.
        n: ``(L, B)``, or ``(L, 1)`` if all samples stand alike: the steps that lead to them. Numbers repeat behind the
            end of the grid.
        wanted: ``(B,)`` how many of the L a sample has a use for.
        start: ``(B, D)`` the last known state.
        noise: ``(L, B, noise_size)`` of the steps, or None.
        source: the last evaluation; None before the first.
        trail: the states that led here; None before the first evaluation.
    """

    chain: Chain
    n: Index
    wanted: Index
    start: Tensor
    noise: Tensor | None
    source: Evaluated | None
    trail: Trail | None


class Guess(ABC):
    """How the states that enter a window are filled in. It never changes the answer, only how soon it is reached."""

    def first(self, entering: Entering) -> Tensor | None:
        """The first window's states, before any evaluation, ``(L, B, D)``; None: its round is the first step alone."""
        return None

    @abstractmethod
    def ahead(self, entering: Entering) -> Tensor:
        """The states, ``(L, B, D)``."""

    def prepared(self, problem: Problem, chain: Chain) -> "Guess":
        """This guess for one problem.

        Raises:
            TypeError: the problem gives it no meaning, or what it holds has the wrong type.
            ValueError: what it holds has the wrong shape.
        """
        return self

    def most(self, rounds: int, width: int) -> int:
        """How many states may enter a window of ``width`` steps after so many rounds."""
        return width


def copies_where_not_finite(states: Tensor, start: Tensor) -> Tensor:
    """States ``(L, B, D)``, those that are not finite replaced by ``start`` (B, D)."""
    return torch.where(states.isfinite().all(-1, keepdim=True), states, start)
