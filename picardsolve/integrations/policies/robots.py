"""Which robots of a batch are meant."""

from typing import Any

import torch

_FORMS = "pass a number such as 0, a list of numbers, or a mask with one boolean for each robot"


def numbers_of(robots: Any, batch: int | None) -> list[int]:
    """The numbers of robots, in order.

    Args:
        robots: a number, several of them, or a mask, as a list, a tensor or an array.
        batch: how many there are; None where no plan has been made yet.

    Raises:
        TypeError: they are given as something else.
        ValueError: there is no such robot, or a mask has another length.
    """
    try:
        given = torch.as_tensor(robots)
    except (TypeError, ValueError, RuntimeError):
        given = None
    if given is not None and given.shape == (0,):  # whose episodes have ended: none
        return []
    if given is None or given.dim() > 1 or given.dtype.is_floating_point or given.dtype.is_complex:
        raise TypeError(f"robots: expected numbers of robots of a batch, or a mask, got {robots!r}; {_FORMS}.")
    if given.dtype == torch.bool:
        if given.dim() == 0 or batch not in (None, len(given)):
            raise ValueError(f"robots: expected one boolean for each of {batch or 'all'} robots, got {robots!r}.")
        return given.nonzero().flatten().tolist()
    numbers = sorted(set(given.reshape(-1).tolist()))
    most = torch.iinfo(torch.int64).max if batch is None else batch
    if numbers and not (numbers[0] >= 0 and numbers[-1] < most):
        there = "from 0" if batch is None else f"from 0 to {batch - 1}, as the last plan had them"
        raise ValueError(f"robots: expected numbers {there}, got {robots!r}; {_FORMS}.")
    return numbers
