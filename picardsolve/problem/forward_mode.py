"""Forward-mode derivatives in several threads."""

from collections.abc import Callable
from threading import RLock
from typing import Any

import torch

_ONE = RLock()


def jvp(function: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """`torch.func.jvp`, one thread at a time: torch counts its nesting in a variable that all threads share.

    Two threads in it at once get other numbers without an error.
    """
    with _ONE:
        value, derivative = torch.func.jvp(function, primals, tangents)  # pyright: ignore[reportAssignmentType]
        return value, derivative
