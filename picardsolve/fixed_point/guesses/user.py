"""A function of the user's as a guess."""

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
    """``function(ts, y)`` says what the states at times ``ts`` start from; `solve` makes it of any function.

    Args:
        function: called with the times ``(L,)`` of the states that are asked for, as the drift gets them, and with
            the last known state ``y``, of the structure, shape and dtype of y0. Returns one state for each time,
            ``(L, *y0.shape)``. Where samples stand at different times it is called once for each of these, and what
            it returns for samples that do not stand there is not used.
        layout: of y0.
        ts: ``(N + 1,)`` the grid.
    """

    function: Callable[[Tensor, Any], Any]
    layout: Layout
    ts: Tensor

    def first(self, entering: Entering) -> Tensor:
        """The same as later."""
        return self.ahead(entering)

    def ahead(self, entering: Entering) -> Tensor:
        """What the function says, copies of the last state where that is not finite.

        Raises:
            TypeError: the function does not return floating-point tensors in the structure of y0.
            ValueError: they have another shape.
        """
        start, count = entering.start, len(entering.n)
        leaves_from = np.where(entering.wanted > 0, entering.n[0], -1)
        states = start.repeat(count, 1, 1)
        for step in np.unique(leaves_from[leaves_from >= 0]).tolist():
            said = self._call(self.ts[step + 1 : step + 1 + count], start)
            here = torch.from_numpy(leaves_from == step)[:, None].to(start.device)
            states[: len(said)] = torch.where(here, said, states[: len(said)])
        return copies_where_not_finite(states, start)

    def _call(self, ts: Tensor, start: Tensor) -> Tensor:
        start = start.clone()  # which the function may write into
        y = self.layout.unpack(start if self.layout.batched else start[0])
        clock = Clock.of(self.ts, self.layout)
        said = clock.called("guess", lambda dtype: self.function(ts.to(start.device, dtype), y))
        return self.layout.pack_path("guess", said, len(ts))
