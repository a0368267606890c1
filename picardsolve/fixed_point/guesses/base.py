"""The interface of a guess: the initial values of the states that enter a window."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from picardsolve.fixed_point.placement import Pick
from picardsolve.integrators.base import Chain, Evaluated, Hold, Index
from picardsolve.problem.problem import Problem


@dataclass(frozen=True)
class Trail:
    """The states of the last round; sample s continues from state number ``last[s]``.

    Attributes:
        start: ``(B, D)``, state number 0, where the window began.
        y: ``(W, B, D)``, states number 1 to W, the round's new states.
        last: ``(B,)``.
    """

    start: Tensor
    y: Tensor
    last: Index

    def state(self, number: Index) -> Tensor:
        """State ``number[s]`` of each sample s, ``(B, D)``."""
        return Pick.at(number[None]).of(torch.cat([self.start[None], self.y]))[0]


@dataclass(frozen=True)
class Entering:
    """The states that enter a window: the L states after ``start``.

    Attributes:
        chain: the chain to solve.
        n: the steps that lead to the states, ``(L, B)``, or ``(L, 1)`` where all samples share the steps. Beyond the
            end of the grid the last step repeats.
        wanted: ``(B,)``, number of the L states that each sample needs.
        start: ``(B, D)``, the last known state.
        noise: increments of the steps, ``(L, B, noise_size)``; None without noise.
        source: the last evaluation; None before the first.
        trail: the states before ``start``; None before the first evaluation.
    """

    chain: Chain
    n: Index
    wanted: Index
    start: Tensor
    noise: Tensor | None
    source: Evaluated | None
    trail: Trail | None

    def predicted(self) -> Tensor | None:
        """The chain's prediction of the states before any evaluation, ``(L, B, D)``; None without a prediction."""
        return self.chain.predict(self.n, self.start, self.noise)

    def extended(self, hold: Hold) -> Tensor:
        """The states with the last evaluation held fixed, ``(L, B, D)``."""
        assert self.source is not None
        return self.chain.extend(self.n, hold, self.start, self.source, self.noise)

    def copied(self) -> "Entering":
        """A copy with its own tensors."""
        noise, source, trail = self.noise, self.source, self.trail
        return replace(
            self,
            n=self.n.copy(),
            start=self.start.clone(),
            noise=None if noise is None else noise.clone(),
            source=source and replace(source, state=source.state.clone(), output=source.output.clone()),
            trail=trail and replace(trail, start=trail.start.clone(), y=trail.y.clone()),
        )


class Guess(ABC):
    """Initial values of the states that enter a window. They change the number of rounds, never the answer."""

    def first(self, entering: Entering) -> Tensor | None:
        """The states of the first window, ``(L, B, D)``, before any evaluation.

        The default is None: no prediction, and the first round evaluates the first step alone.
        """
        return None

    @abstractmethod
    def ahead(self, entering: Entering) -> Tensor:
        """The states after an evaluation, ``(L, B, D)``."""

    def prepared(self, problem: Problem, chain: Chain) -> "Guess":
        """This guess for one problem.

        Raises:
            TypeError: the guess does not apply to the problem, or one of its arguments has the wrong type.
            ValueError: one of its arguments has the wrong shape.
        """
        return self


def copies_where_not_finite(states: Tensor, start: Tensor) -> Tensor:
    """States ``(L, B, D)``; copies of ``start`` (B, D) replace states that are not finite."""
    return torch.where(states.isfinite().all(-1, keepdim=True), states, start)
