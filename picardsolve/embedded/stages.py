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
    def looks(self) -> Tensor:
        """What the pair looks at once all slopes are there, ``(m + 2, R, D)``."""


class Buffered(Stages):
    """In one buffer for all steps: two operations a stage, whatever the size."""

    def __init__(self, coefficients: Coefficients):
        self._coefficients, self._products = coefficients, torch.empty(0)

    def begin(self, y: Tensor, slope: Tensor, h: Tensor) -> None:
        """Lengths times slopes are what is kept."""
        if self._products.shape[1:] != y.shape:
            self._products = y.new_empty(self._coefficients.looks.shape[1], *y.shape)
            self._flat = self._products.view(len(self._products), -1)
        self._y, self._start, self._h = y, y.reshape(-1), h
        self.put(0, slope)

    def state(self, i: int) -> Tensor:
        """One matrix-vector product over the buffer."""
        row = self._coefficients.rows[i - 1]
        return torch.addmv(self._start, self._flat[:i].t(), row).view(self._y.shape)

    def put(self, i: int, slope: Tensor) -> None:
        """Into the buffer."""
        torch.mul(slope, self._h, out=self._products[i])

    def looks(self) -> Tensor:
        """One product of matrices."""
        return (self._coefficients.looks @ self._flat).view(-1, *self._y.shape)


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
    def looks(self) -> Tensor:
        """Without a graph."""
        products = (torch.stack(self._slopes).detach() * self._h).flatten(1)
        return (self._coefficients.looks @ products).view(-1, *self._y.shape)
