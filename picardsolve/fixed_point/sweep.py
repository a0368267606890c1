"""What a sweep of an iteration returns to the window."""

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Memory: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True)
class Swept:
    """What a sweep made of a window of W steps of B samples.

    Attributes:
        y: the new states ``Y[b + 1] ... Y[b + W]``, ``(W, B, D)``.
        change: ``Y - X``, ``(W, B, D)``; see ``cautious``.
        residual: root mean square of ``F[n] - X[n + 1]``, ``(W, B)``; None where the sweep does not compute it.
        slope: factor by which a change of ``X[n]`` is taken to change ``Phi_n(X[n])``, ``(W, B)``: the one that delta
            is, where it is a number, or one that was seen; None for 1.
        memory: what the next sweep wants to know of the same steps: tensors ``(W, B, ...)``.
        tangent: whether ``delta`` was the derivative, so that what it misses grows with the square of a change.
        leaps: whether derivatives may have taken states far astray, whose size is then no measure of a change.
        cautious: whether elements of ``change`` may be larger than those of ``Y - X``, in doubt about these.
    """

    y: Tensor
    change: Tensor
    residual: Tensor | None
    slope: Tensor | None = None
    memory: Memory = ()
    tangent: bool = False
    leaps: bool = False
    cautious: bool = False
