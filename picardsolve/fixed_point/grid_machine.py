"""What every solve in rounds on a grid shows of its state."""

import numpy as np
from torch import Tensor

from picardsolve.integrators.base import Index
from picardsolve.problem.machine import Machine
from picardsolve.results.history import History


class GridMachine(Machine):
    """A machine that solves the N steps of a grid for B samples of D numbers.

    Attributes:
        begin: ``(B,)`` steps accepted so far.
        failed: ``(B,)`` whether a step of the sample was not finite.
        stopped: ``(B,)`` whether a sample ended by a limit of the method, not by tolerance.
        path: ``(N + 1, B, D)`` accepted states, NaN where there are none yet; None if they are not kept.
        x: states of which row 0, ``(B, D)``, is the last accepted one.
        history: one record per round.
        notes: sentences for the user about how it was solved.
    """

    begin: Index
    failed: np.ndarray
    stopped: np.ndarray
    path: Tensor | None
    x: Tensor
    history: History
    notes: tuple[str, ...] = ()
