"""Coarse runs of parareal: over the steps of a block with few outputs."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.base import Chain, Evaluated


@dataclass
class CoarseJump:
    """A coarse run from the states ``(B, D)`` of one core.

    Each of its coarse steps takes the fine steps that it covers with the output of its first state held fixed.

    Attributes:
        state: ``(B, D)``, at step ``at``.
        at: the step reached so far.
        ahead: the steps where the next coarse steps end.
        leader: the highest leader for whose samples the jump is of use.
        finite: ``(B,)`` whether the state is finite.
        sample: the samples that have a row in this round.
    """

    state: Tensor
    at: int
    ahead: list[int]
    leader: int
    finite: np.ndarray
    sample: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def advance(self, chain: Chain, outputs: Tensor) -> None:
        """Take one coarse step with the outputs ``(R, K)`` of ``sample``; the states of other samples become NaN."""
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
