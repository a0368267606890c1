"""The reference: the same chain, one step after the other."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.increments import Increments
from picardsolve.integrators.base import DriftChain, Index, Rows
from picardsolve.problem.index import DeviceIndex
from picardsolve.problem.machine import Machine

_UNSEEN = 16  # steps after which the host looks whether states are finite; on a CPU it looks after each


@dataclass
class Stepper(Machine):
    """Steps a chain: each round is one step of all samples.

    Whether states are finite decides nothing but when to stop. On another device than a CPU, where looking is waiting,
    the host looks after every 16 steps. Where every sample has failed, up to 15 steps are then taken in vain.

    Attributes:
        chain: what is solved.
        y: ``(B, D)`` the last states.
        path: ``(N + 1, B, D)`` to be filled, or None.
        n: the step that comes next.
        past: ``(memory, B, K)`` outputs of the steps before; None for zeros.
    """

    chain: DriftChain
    y: Tensor
    path: Tensor | None = None
    n: int = 0
    past: Tensor | None = None

    def __post_init__(self):
        samples, length, device = len(self.y), self.chain.length, self.y.device
        self._reached = np.full(samples, length)
        self._sample = np.arange(samples).view(DeviceIndex)
        self._numbers = torch.arange(length, device=device)[:, None].expand(-1, samples)  # all steps, sent once
        self._increments, self._unseen = Increments(self.chain), []
        self._alive = True
        self._every = 1 if device.type == "cpu" else _UNSEEN
        if self.path is not None:
            self.path[self.n] = self.y

    @property
    def done(self) -> bool:
        """Whether the end of the grid is reached, or every sample has failed."""
        return self.n == self.chain.length or not self._alive

    @property
    def reached(self) -> Index:
        """How many steps of each sample were finite, ``(B,)``; N for one that has not failed."""
        if self._unseen:
            self._look()
        return self._reached

    def ask(self) -> Rows:
        """One row of each sample, with the noise of its step."""
        step = np.full(len(self.y), self.n).view(DeviceIndex)
        step.keep(self._numbers[self.n])
        self._rows = Rows(step, self._sample, self.y, noise=self._noise())
        return self._rows

    def evaluate(self, rows: Rows) -> Tensor:
        """The drift's outputs at the rows."""
        return self.chain.evaluate(rows)

    def tell(self, outputs: Tensor) -> None:
        """Take the step."""
        rows = self._rows
        if rows.noise is None and self.chain.noise_size:  # the first output has shown how large the noise is
            rows = replace(rows, noise=self._noise())
        if self.chain.memory and self.past is None:
            self.past = outputs.new_zeros(self.chain.memory, *outputs.shape)
        self.y = self.chain.image(rows, outputs, self.past)
        if self.past is not None:
            self.past = torch.cat([self.past, outputs[None]])[1:]
        self._increments.drop(1)
        self.n += 1
        if self.path is not None:
            self.path[self.n].copy_(self.y)
        self._unseen.append(self.y)
        if len(self._unseen) == self._every or self.n == self.chain.length:
            self._look()

    def _noise(self) -> Tensor | None:
        """The noise of the next step, ``(B, noise_size)``; None without noise."""
        noise = self._increments.first(1, self._ahead, self.y)
        return None if noise is None else noise[0]

    def _ahead(self, count: int, ahead: int) -> Index:
        return np.minimum(self.n + ahead + np.arange(count), self.chain.length - 1)[:, None]

    def _look(self) -> None:
        """See which samples have failed since the last look."""
        unseen, self._unseen = self._unseen, []
        if self._every == 1 and math.isfinite(float(self.y.sum())):  # a fifth of the time of what follows
            return
        finite = torch.isfinite(torch.stack(unseen)).all(-1).cpu().numpy()
        sound = np.logical_and.accumulate(finite, 0).sum(0)
        failed = (sound < len(finite)) & (self._reached == self.chain.length)
        self._reached[failed] = (self.n - len(finite) + sound)[failed]
        self._alive = bool((self._reached == self.chain.length).any())
