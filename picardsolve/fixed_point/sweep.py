"""A sweep: how the states of a window are renewed from what one round computed."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from picardsolve.integrators.step_maps import Steps

Memory: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True)
class Swept:
    """The result of a sweep over a window of W steps of B samples, each state of D numbers.

    Attributes:
        y: the new states ``Y[b + 1] ... Y[b + W]``, ``(W, B, D)``.
        change: ``Y - X``, ``(W, B, D)``; see ``cautious``.
        residual: root mean square of ``F[n] - X[n + 1]``, ``(W, B)``; None where the sweep does not compute it.
        slope: the factor by which a change of ``X[n]`` is taken to change ``Phi_n(X[n])``, ``(W, B)``: the factor of
            ``delta``, where it is a number, or one measured between rounds; None for 1.
        memory: what the next sweep needs of the same steps: tensors ``(W, B, ...)``.
        tangent: ``delta`` was the derivative, so that the error of ``delta`` grows with the square of a change.
        leaps: derivatives may have moved states very far. The size of the new states is then no scale for a change.
        cautious: elements of ``change`` may be larger than those of ``Y - X``, where the sweep doubts these.
        old: ``X[b + 1] ... X[b + W]``, ``(W, B, D)``, filled in by the window; None: ``y - change``.
    """

    y: Tensor
    change: Tensor
    residual: Tensor | None
    slope: Tensor | None = None
    memory: Memory = ()
    tangent: bool = False
    leaps: bool = False
    cautious: bool = False
    old: Tensor | None = None

    @property
    def before(self) -> Tensor:
        """The states that were changed, ``(W, B, D)``."""
        return self.y - self.change if self.old is None else self.old


class Sweep(ABC):
    """What a window asks of an iteration in each round."""

    def directions(self, size: int, rounds: int) -> Tensor | None:
        """The directions ``(P, size)`` to differentiate the steps along in this round; None, the default: none.

        A sweep of more than one step is then given steps with ``directions`` and ``derivatives``.

        Args:
            size: numbers in a state, D.
            rounds: number of rounds before this one.
        """
        return None

    @abstractmethod
    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """New states from old ones.

        Args:
            steps: the window's steps with this round's outputs.
            x: the old states ``X[b] ... X[b + W]``, shape ``(W + 1, B, D)``; not to be written to.
            scratch: ``(W, B, D)`` memory that the change may be returned in.
            memory: the memory of the sweep before, moved to this window's steps; zero for steps that are new, or
                without their rows, see `fitted`; empty at first.
        """


def fitted(memory: Memory, width: int) -> Memory:
    """What is remembered of the first ``width`` steps of a window, zeros for the steps that are new."""
    return tuple(_longer(part, width) if len(part) < width else part[:width] for part in memory)


def _longer(part: Tensor, rows: int) -> Tensor:
    """With zeros behind the rows."""
    return torch.cat([part, part.new_zeros(rows - len(part), *part.shape[1:])])  # pad would write all rows twice
