"""Batches of samples that users solve at once: drifts, initial states, spans, and what is right at their ends.

* "network": one hidden layer of tanh, ``y' = W2 tanh(W1 y + b)``, the same for all samples, from 0 to 2. Entries of W1
  have the deviation ``2 / sqrt(d)``, of W2 ``2 / sqrt(hidden)``, of b and y0 1. States move by 1.5 to 4 in a component
  (root mean square over the components), and small changes of y0 grow by 10 to 30 times.
* "lotka_volterra": prey and predators, with four rates and a span by sample: 1.5, 1, 3, 1, each times 0.7 to 1.3; both
  begin with 0.5 to 2; spans 3 to 10, which is one to four turns.

A batch is the first samples of 2048. The loss is half the sum of the squares of the last states.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import cast

import equations as eq
import numpy as np
import torch
from torch import Tensor
from torchdiffeq import odeint

HIDDEN = {2: 50, 8: 64, 32: 64, 64: 128, 784: 256}
SIZES = tuple(HIDDEN)
LARGEST = 2048
BATCHES = (1, 16, 128, 512, LARGEST)
POWERS = tuple(2**k for k in range(12))  # batches that there is a reference of
KEPT = Path(tempfile.gettempdir()) / "picardsolve_batches"  # references, made once on a machine
VERSION = 1  # of the equations and constants here; raise it when they change
PIECE = 64  # samples that a reference is made of at once

Function = Callable[..., Tensor]


def loss(end: Tensor) -> Tensor:
    """Of the last states."""
    return (end**2).sum() / 2


@dataclass(frozen=True)
class Posed:
    """An initial-value problem with leaves of its own.

    Attributes:
        y0: ``(B, d)``.
        own: what each sample holds: tensors ``(B, ...)``, passed to the drift behind t and y.
        shared: parameters that the drift closes over.
        spans: ``(B,)`` float64: each sample is solved from 0 to its own.
        function: ``f(t, y, *own)``, for any leading dimensions.
    """

    y0: Tensor
    own: tuple[Tensor, ...]
    shared: tuple[Tensor, ...]
    spans: Tensor
    function: Function

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return (self.y0, *self.own, *self.shared)

    @property
    def together(self) -> bool:
        """Whether all spans are the same."""
        return bool((self.spans == self.spans[0]).all())

    def rescaled(self, f: Function) -> tuple[Function, Tensor]:
        """A drift ``(t, y)`` of the whole batch as one system, and its two times; from 0 to 1 where spans differ."""
        ends = self.spans.new_tensor([0.0, 1.0])
        if self.together:
            return (lambda t, y: f(t, y, *self.own)), ends * self.spans[0]
        spans = self.spans.to(self.y0.dtype)[:, None]
        return (lambda t, y: spans * f(t * spans, y, *self.own)), ends


@dataclass(frozen=True)
class Truth:
    """What is right.

    Attributes:
        end: ``(B, d)`` float64, the last states.
        gradients: of the loss, by the leaves of `Posed`.
        accuracy: by how much a reference at ten times the tolerance differs, relative to ``1 + |y|``.
    """

    end: Tensor
    gradients: tuple[Tensor, ...]
    accuracy: float

    @staticmethod
    def of(parts: Sequence["Truth"], by_sample: int) -> "Truth":
        """Of pieces of a batch, where so many leaves are by sample, and the others are shared."""
        columns = zip(*(part.gradients for part in parts), strict=True)
        gradients = [torch.cat(c) if i < by_sample else torch.stack(c).sum(0) for i, c in enumerate(columns)]
        end, accuracy = torch.cat([part.end for part in parts]), max(part.accuracy for part in parts)
        return Truth(end, tuple(gradients), accuracy)

    def error(self, end: Tensor) -> tuple[float, float]:
        """Relative to ``1 + |y|``: of the component that is furthest off, and the root of the mean square."""
        away = (end.detach().double() - self.end).abs() / (1 + self.end.abs())
        return finite(away.max()), finite((away**2).mean().sqrt())

    def gradient_error(self, found: Sequence[Tensor]) -> float:
        """Relative to the largest entry of a sample, where the first dimension is samples; otherwise of a parameter."""
        worst = [0.0]
        for right, g in zip(self.gradients, found, strict=True):
            rows = len(right) if len(right) == len(self.end) else 1
            away, size = (x.reshape(rows, -1).abs().amax(1) for x in (g.detach().double() - right, right))
            worst.append(finite((away / size).max()))
        return max(worst)


def finite(value: Tensor) -> float:
    return float(value) if bool(torch.isfinite(value)) else math.inf


@dataclass(frozen=True)
class Case:
    """A batch.

    Attributes:
        drift: its name.
        size: numbers of a sample.
        batch: samples.
        dtype: of states and parameters.
    """

    drift: str
    size: int
    batch: int
    dtype: torch.dtype = torch.float64

    @property
    def hidden(self) -> int:
        return HIDDEN[self.size] if self.drift == "network" else 0

    @property
    def name(self) -> str:
        return f"{self.drift} d={self.size} B={self.batch}"

    def posed(self, gradients: bool = False, samples: slice = slice(None)) -> Posed:
        """With new leaves, of some of the samples."""
        y0, own, shared, spans = DRIFTS[self.drift](self.size)
        rows = slice(*samples.indices(self.batch))
        y0, *own = (self._leaf(part[rows], gradients) for part in (y0, *own))
        shared = tuple(self._leaf(part, gradients) for part in shared)
        return Posed(y0, tuple(own), shared, spans[rows], FUNCTIONS[self.drift](*shared))

    def _leaf(self, part: Tensor, gradients: bool) -> Tensor:
        return part.to(self.dtype, copy=True).requires_grad_(gradients)

    @cached_property
    def truth(self) -> Truth:
        """At 1e-14, in pieces of the batch that are kept on the disk."""
        edges = [0, *(power for power in POWERS if power <= self.batch)]
        return Truth.of([self._kept(*pair) for pair in pairwise(edges)], 1 + len(self.posed().own))

    def _kept(self, low: int, high: int) -> Truth:
        """Of samples ``low`` to ``high``."""
        path = KEPT / f"{VERSION}_{self.drift}_{self.size}_{low}_{high}.pt"
        if not path.exists():
            exact = Case(self.drift, self.size, high)
            pieces = [slice(at, min(at + PIECE, high)) for at in range(low, high, PIECE)]
            made = Truth.of([reference(exact.posed(True, piece)) for piece in pieces], 1 + len(exact.posed().own))
            KEPT.mkdir(exist_ok=True)
            torch.save((made.end, made.gradients, made.accuracy), path)
        return Truth(*torch.load(path))


def reference(posed: Posed) -> Truth:
    """What is right, by torchdiffeq's method of order 8."""
    f, ts = posed.rescaled(posed.function)
    given = {"method": "dopri8", "options": {"step_t": ts[1:]}}  # what it interpolates is good to 1e-9 only

    def at(tolerance: float) -> Tensor:
        return cast(Tensor, odeint(f, posed.y0, ts, rtol=tolerance, atol=tolerance, **given))[-1]

    end = at(1e-14)
    with torch.no_grad():
        looser = at(1e-13)
        accuracy = float(((looser - end).abs() / (1 + end.abs())).max())
    return Truth(end.detach(), torch.autograd.grad(loss(end), posed.leaves), accuracy)


# ---- drifts


def network(size: int) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
    """y0 of all samples, what each holds, what all share, and spans."""
    hidden = HIDDEN[size]
    first = 2 * eq.normal(1, hidden, size) / math.sqrt(size)
    second = 2 * eq.normal(3, size, hidden) / math.sqrt(hidden)
    spans = torch.full((LARGEST,), 2.0, dtype=torch.float64)
    return eq.normal(4, LARGEST, size), (), (first, eq.normal(2, hidden), second), spans


def lotka_volterra(size: int) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
    """The same of prey and predators."""
    drawn = np.random.RandomState(5)
    rates = np.array([1.5, 1, 3, 1]) * drawn.uniform(0.7, 1.3, (LARGEST, 4))
    y0, spans = drawn.uniform(0.5, 2, (LARGEST, 2)), drawn.uniform(3, 10, LARGEST)
    return eq.constant(y0), (eq.constant(rates),), (), eq.constant(spans)


def network_function(first: Tensor, bias: Tensor, second: Tensor) -> Function:
    return lambda t, y: torch.tanh(y @ first.T + bias) @ second.T


def lotka_volterra_function() -> Function:
    def f(t: Tensor, y: Tensor, rates: Tensor) -> Tensor:
        (prey, predators), (a, b, c, d) = y.unbind(-1), rates.unbind(-1)
        return torch.stack([(a - b * predators) * prey, (d * prey - c) * predators], -1)

    return f


DRIFTS = {"network": network, "lotka_volterra": lotka_volterra}
FUNCTIONS = {"network": network_function, "lotka_volterra": lotka_volterra_function}


def cases(drifts: Sequence[str], sizes: Sequence[int], batches: Sequence[int], dtype: torch.dtype) -> list[Case]:
    """All that there are: Lotka and Volterra's have two numbers."""
    pairs = [(drift, size) for drift in drifts for size in sizes if drift == "network" or size == 2]
    return [Case(*pair, batch, dtype) for pair in pairs for batch in batches]
