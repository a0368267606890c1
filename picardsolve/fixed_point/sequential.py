"""The reference: the same chain, one step after the other."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Index, Rows
from picardsolve.problem.machine import Machine


@dataclass
class Stepper(Machine):
    """Steps a chain: each round is one step of all samples.

    Attributes:
        chain: what is solved.
        y: ``(B, D)`` the last states.
        path: ``(N + 1, B, D)`` to be filled, or None.
        n: the step that comes next.
        past: ``(memory, B, K)`` outputs of the steps before; None for zeros.
        reached: ``(B,)`` how many steps of each sample were finite.
    """

    chain: DriftChain
    y: Tensor
    path: Tensor | None = None
    n: int = 0
    past: Tensor | None = None
    reached: Index = field(init=False)

    def __post_init__(self):
        self.reached = np.full(len(self.y), self.chain.length)
        if self.path is not None:
            self.path[self.n] = self.y

    @property
    def done(self) -> bool:
        """Whether the end of the grid is reached, or every sample has failed."""
        return self.n == self.chain.length or not (self.reached > self.n - 1).any()

    def ask(self) -> Rows:
        """One row of each sample, with the noise of its step."""
        sample = np.arange(len(self.y))
        self._rows = self.chain.with_noise(Rows(np.full_like(sample, self.n), sample, self.y))
        return self._rows

    def evaluate(self, rows: Rows) -> Tensor:
        """The drift's outputs at the rows."""
        return self.chain.evaluate(rows)

    def tell(self, outputs: Tensor) -> None:
        """Take the step."""
        if self.chain.memory and self.past is None:
            self.past = outputs.new_zeros(self.chain.memory, *outputs.shape)
        self.y = self.chain.image(self._rows, outputs, self.past)
        if self.past is not None:
            self.past = torch.cat([self.past, outputs[None]])[1:]
        self.n += 1
        if self.path is not None:
            self.path[self.n] = self.y
        broken = ~torch.isfinite(self.y).all(-1).cpu().numpy()
        self.reached[broken & (self.reached >= self.n)] = self.n - 1
