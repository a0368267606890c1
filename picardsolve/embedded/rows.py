"""What the parts of a solve ask for, one after the other: generators that yield rows and are sent the drift there."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from torch import Tensor

Result = TypeVar("Result")


@dataclass(frozen=True)
class Rows:
    """Where the drift is asked for.

    Attributes:
        t: ``(R,)`` times.
        y: ``(R, D)`` states.
        sample: ``(R,)`` whose.
        recorded: whether the values are part of the solution, and its gradients.
    """

    t: Tensor
    y: Tensor
    sample: np.ndarray
    recorded: bool = False


Asks: TypeAlias = Generator[Rows, Tensor, Result]  # asks for rows, gets the drift there, and returns something
