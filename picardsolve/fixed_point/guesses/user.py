"""A user's function as a guess."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.guesses.base import Entering, Guess, copies_where_not_finite
from picardsolve.problem.clock import Clock
from picardsolve.problem.state import Layout


@dataclass(frozen=True)
class UserGuess(Guess):
    """States from ``function(ts, y)``; `solve` makes this guess from any function.

    Args:
        function: called with the times ``(L,)`` of the states to guess, in the dtype that the drift gets, and with the
            last known state ``y``, in the structure, shape and dtype of y0. Returns one state per time,
            ``(L, *y0.shape)``. Where the samples' windows begin at different times, it is called once for each time.
        layout: layout of y0.
        ts: ``(N + 1,)``, times of the grid.
    """

    function: Callable[[Tensor, Any], Any]
    layout: Layout
    ts: Tensor

    def first(self, entering: Entering) -> Tensor:
        """As after an evaluation."""
        return self.ahead(entering)

    def ahead(self, entering: Entering) -> Tensor:
        """The function's states; copies of the last state replace states that are not finite."""
        start, count = entering.start, len(entering.n)
        leaves_from = np.where(entering.wanted > 0, entering.n[0], -1)
        states = start.repeat(count, 1, 1)
        for step in np.unique(leaves_from[leaves_from >= 0]).tolist():
            said = self._call(self.ts[step + 1 : step + 1 + count], start)
            here = torch.from_numpy(leaves_from == step)[:, None].to(start.device)
            states[: len(said)] = torch.where(here, said, states[: len(said)])
        return copies_where_not_finite(states, start)

    def _call(self, ts: Tensor, start: Tensor) -> Tensor:
        start = start.clone()  # the function may write to its argument
        y = self.layout.unpack(start if self.layout.batched else start[0])
        clock = Clock.of(self.ts, self.layout)
        said = clock.called("guess", lambda dtype: self.function(ts.to(start.device, dtype), y))
        return self.layout.pack_path("guess", said, len(ts))
