"""The stages of a step: slopes come in, states go out; with or without a graph."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from picardsolve.embedded.pair import Coefficients


class Stages(ABC):
    """Slopes of one step of R samples, and the states that follow from them.

    Attributes:
        recorded: whether there is a graph.
    """

    recorded: bool = False

    @abstractmethod
    def begin(self, y: Tensor, slope: Tensor, h: Tensor) -> None:
        """Begin a step from states ``(R, D)`` with slopes ``(R, D)``, of lengths ``(R, 1)``."""

    @abstractmethod
    def state(self, i: int) -> Tensor:
        """The state of stage i from the slopes of all stages before it, ``(R, D)``."""

    @abstractmethod
    def put(self, i: int, slope: Tensor) -> None:
        """Take the slope of stage i."""

    @abstractmethod
    def combined(self, rows: Tensor) -> Tensor:
        """Sums of the lengths times all slopes, by coefficients ``(k, s)``: ``(k, R, D)``, without a graph."""


class Buffered(Stages):
    """In one buffer for all steps: two operations a stage, whatever the size."""

    def __init__(self, coefficients: Coefficients):
        self._rows, self._stages = coefficients.rows, coefficients.errors.shape[1]
        self._shape = torch.Size()

    def begin(self, y: Tensor, slope: Tensor, h: Tensor) -> None:
        """Lengths times slopes are what is kept."""
        if self._shape != y.shape:
            self._shape = y.shape
            products = y.new_empty(self._stages, *y.shape)
            self._flat, self._places = products.view(self._stages, -1), products.unbind(0)
            self._before = [self._flat[:i].t() for i in range(self._stages)]
        self._start, self._h = y.reshape(-1), h
        self.put(0, slope)

    def state(self, i: int) -> Tensor:
        """One matrix-vector product over the buffer."""
        return torch.addmv(self._start, self._before[i], self._rows[i - 1]).view(self._shape)

    def put(self, i: int, slope: Tensor) -> None:
        """Into the buffer."""
        torch.mul(slope, self._h, out=self._places[i])

    def combined(self, rows: Tensor) -> Tensor:
        """One product of matrices."""
        return (rows @ self._flat).view(-1, *self._shape)


class Recorded(Stages):
    """As a graph that autograd and `torch.func` can differentiate as often as they like."""

    recorded = True

    def __init__(self, coefficients: Coefficients):
        self._coefficients = coefficients

    def begin(self, y: Tensor, slope: Tensor, h: Tensor) -> None:
        """Nothing is written over."""
        self._y, self._h, self._slopes = y, h, [slope]

    def state(self, i: int) -> Tensor:
        """A product, recorded; lengths are constants."""
        slopes = torch.stack(self._slopes[:i]).flatten(1)
        return self._y + self._h * (self._coefficients.rows[i - 1] @ slopes).view(self._y.shape)

    def put(self, i: int, slope: Tensor) -> None:
        """Append it."""
        self._slopes.append(slope)

    @torch.no_grad()
    def combined(self, rows: Tensor) -> Tensor:
        """Without a graph."""
        products = (torch.stack(self._slopes).detach() * self._h).flatten(1)
        return (rows @ products).view(-1, *self._y.shape)
