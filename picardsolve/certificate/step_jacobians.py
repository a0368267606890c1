"""Jacobians of the steps along a path, by differences."""

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Rows

_TOGETHER = 4096  # rows of a round


class StepJacobians:
    """Jacobians of single steps, each of which is evaluated once.

    Attributes:
        rounds: that the evaluations took.
    """

    def __init__(self, chain: DriftChain, path: Tensor, scale: Tensor):
        """Choose the differences.

        Args:
            chain: of N explicit one-step steps.
            path: ``(N + 1, B, D)`` states.
            scale: ``(B, D)`` units of each number, which the Jacobians are given in.
        """
        usual = path.double().square().mean(0).sqrt().to(scale)
        unit = torch.finfo(path.dtype).eps ** (1 / 3)  # where rounding and curvature do as little harm
        self._moves = unit * torch.where(usual > 0, torch.maximum(usual, 1e-3 * scale), scale)
        units = scale.double().cpu()
        self._units = units[:, None, :] / units[..., None]
        self._chain, self._path, self.rounds = chain, path, 0
        self._row = np.full(path.shape[:2], -1)  # of `_known`; -1 for those that are not evaluated yet
        self._known = self._units[:0]

    def at(self, step: np.ndarray, sample: np.ndarray) -> Tensor:
        """Jacobians ``(..., D, D)``, float64 on the CPU, of the steps of samples, two arrays that are broadcast."""
        step, sample = np.broadcast_arrays(step, sample)
        missing = self._row[step, sample] < 0
        new = np.unique(np.stack([step[missing], sample[missing]]), axis=1)
        many = max(_TOGETHER // (self._path.shape[-1] + 1), 1)
        found = [self._evaluated(*new[:, k : k + many]) for k in range(0, new.shape[1], many)]
        self._row[new[0], new[1]] = len(self._known) + np.arange(new.shape[1])
        self._known = torch.cat([self._known, *found])
        return self._known[torch.from_numpy(self._row[step, sample])]

    def _evaluated(self, step: np.ndarray, sample: np.ndarray) -> Tensor:
        at = torch.from_numpy(sample).to(self._path.device)
        states = self._path[torch.from_numpy(step).to(self._path.device), at]
        size = states.shape[-1] + 1
        moved = torch.cat([states[:, None], states[:, None] + torch.diag_embed(self._moves[at])], 1)
        image, _ = self._chain.step(Rows(step.repeat(size), sample.repeat(size), moved.flatten(0, 1)))
        image = image.reshape(moved.shape).double()
        really = (moved[:, 1:].double() - moved[:, :1].double()).diagonal(dim1=1, dim2=2)  # as it was rounded
        self.rounds += 1
        return ((image[:, 1:] - image[:, :1]).mT / really[:, None, :]).cpu() * self._units[sample]
