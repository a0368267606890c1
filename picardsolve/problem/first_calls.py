"""Checks of a function's first calls: its value at a state must not change with the other states, or by chance."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from picardsolve.problem.lifting import SINGLE, Takes, not_random, random
from picardsolve.problem.state import Layout

Call: TypeAlias = Callable[[Tensor, Tensor, np.ndarray], Tensor]  # of times, states and samples of rows


@dataclass
class FirstCalls:
    """What the first calls of one function have shown.

    Attributes:
        name: the argument's name in messages.
        layout: of one sample's state.
        takes: what one call of the function is written for. One that is lifted from a single state is not checked.
        done: whether nothing is left to check.
    """

    name: str
    layout: Layout
    takes: Takes
    done: bool = field(init=False)
    _first: tuple[Tensor, Tensor, np.ndarray, Tensor] | None = field(default=None, repr=False)

    def __post_init__(self):
        self.done = self.takes in ("state", "batch")

    def checked(self, call: Call, t: Tensor, x: Tensor, sample: np.ndarray) -> Tensor:
        """The function's values at rows, ``call(t, x, sample)``, with the checks that are due.

        Raises:
            ValueError: the function is random, or its value at a row depends on the other rows.
        """
        if self._first is None:
            out = call(t, x, sample)
            self._first = (t[:1], _values(x)[:1].detach().clone(), sample[:1], _values(out)[:1].detach().clone())
            return out
        if len(t) <= self.layout.batch:
            return call(t, x, sample)
        self.done = True
        if self.takes == "model":  # a network does not mix its rows
            return not_random(self.name, self.layout.device, lambda: call(t, x, sample))
        return self._with_first_row_again(call, t, x, sample)

    def _with_first_row_again(self, call: Call, t: Tensor, x: Tensor, sample: np.ndarray) -> Tensor:
        """Call with the very first row appended: its value is another if the function mixes rows."""
        assert self._first is not None
        first_t, first_x, first_sample, expected = self._first
        if x.dim() > 2:
            first_x = torch.cat([first_x[None], first_x.new_zeros(len(x) - 1, *first_x.shape)])
        rows = torch.cat([t, first_t]), torch.cat([x, first_x], -2), np.concatenate([sample, first_sample])
        out = not_random(self.name, self.layout.device, lambda: call(*rows))
        if not self._same(_values(out)[-1:], expected):
            alone = call(first_t, first_x, first_sample)
            if not self._same(_values(alone), _values(call(first_t, first_x, first_sample))):
                raise random(self.name)
            raise ValueError(
                f"{self.name}: its value at one state changes with the other states it is called with; make every "
                f"row of y independent, or {SINGLE} to have it lifted from one state to many."
            )
        return out[..., :-1, :]

    def _same(self, found: Tensor, expected: Tensor) -> bool:
        """Whether two values agree up to rounding."""
        slack = torch.finfo(self.layout.dtype).eps ** 0.5
        size = float(expected.nan_to_num(0, 0, 0).abs().max())
        return torch.allclose(found, expected, slack, slack * size, equal_nan=True)


def _values(x: Tensor) -> Tensor:
    """The rows without the tangents behind them."""
    return x if x.dim() == 2 else x[0]
