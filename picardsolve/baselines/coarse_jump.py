"""Coarse runs of parareal: coarse steps over a block."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.base import Chain, Evaluated


@dataclass
class CoarseJump:
    """A coarse run from the states ``(B, D)`` of one core.

    A coarse step covers several fine steps, with the output of its first state held fixed.

    Attributes:
        state: ``(B, D)``, at step ``at``.
        at: the step reached so far.
        ahead: the steps where the next coarse steps end.
        leader: the jump matters only for samples whose leader is at most this core.
        finite: ``(B,)``, whether the state is finite.
        sample: the samples with a row in this round.
    """

    state: Tensor
    at: int
    ahead: list[int]
    leader: int
    finite: np.ndarray
    sample: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def advance(self, chain: Chain, outputs: Tensor) -> None:
        """Take one coarse step with the outputs ``(R, K)`` of ``sample``; states of other samples become NaN."""
        held = outputs.new_full((len(self.state), outputs.shape[-1]), torch.nan)
        held.index_copy_(0, torch.from_numpy(self.sample).to(held.device), outputs)
        end = self.ahead.pop(0)
        n, samples = np.arange(self.at, end)[:, None], np.arange(len(held))
        noise = None
        if chain.noise_size:
            step, sample = (index.ravel() for index in np.broadcast_arrays(n, samples))
            noise = chain.increments(step, sample).to(self.state).reshape(len(n), len(samples), -1)
        source = Evaluated(n[:1], self.state, held)
        self.state, self.at = chain.extend(n, "output", self.state, source, noise)[-1], end
