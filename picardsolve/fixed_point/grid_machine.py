"""What every solve in rounds on a grid shows of its state."""

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.base import Chain, Index
from picardsolve.problem.machine import Machine
from picardsolve.results.history import History


class GridMachine(Machine):
    """A machine that solves the N steps of a grid for B samples of D numbers.

    Attributes:
        chain: the steps.
        begin: ``(B,)`` steps accepted so far.
        failed: ``(B,)`` whether a step of the sample was not finite.
        stopped: ``(B,)`` whether a sample ended by a limit of the method, not by tolerance.
        path: ``(N + 1, B, D)`` accepted states; None if they are not kept. States beyond ``begin`` do not count, see
            `forget_beyond`.
        x: states of which row 0, ``(B, D)``, is the last accepted one.
        history: one record per round.
        exact: whether every state is the sequential solver's, because it took the steps.
        notes: sentences for the user about how it was solved.
    """

    chain: Chain
    begin: Index
    failed: np.ndarray
    stopped: np.ndarray
    path: Tensor | None
    x: Tensor
    history: History
    notes: tuple[str, ...] = ()
    exact: bool = False

    def fail_where_not_finite(self) -> None:
        """Let samples fail whose states are not finite: in lockstep they go on with the others until the end."""
        broken = ~torch.isfinite(self.x[0]).all(-1).cpu().numpy()
        if self.path is not None and broken.any():
            finite = torch.isfinite(self.path).all(-1).cpu().numpy()
            self.begin = np.where(broken, np.logical_and.accumulate(finite, 0).sum(0) - 1, self.begin)
        self.failed = self.failed | broken


def forget_beyond(path: Tensor, reached: Index) -> None:
    """Set the states of a path behind the first ``reached[s]`` steps of each sample to NaN."""
    if (reached < len(path) - 1).any():
        beyond = torch.from_numpy(np.arange(len(path))[:, None] > reached).to(path.device)
        path.masked_fill_(beyond[..., None], torch.nan)
