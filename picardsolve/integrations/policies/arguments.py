"""Checks of what a policy is given."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve import Iteration, Newton
from picardsolve.extend import check_count, check_positive_integer, check_type

_FORMS = "pass a number such as 0, a list of numbers, or a mask with one boolean for each robot"


def check_shape(shape: object) -> None:
    """Refuse what is not a tuple of positive integers."""
    if not isinstance(shape, tuple) or not shape:
        raise TypeError(f"shape: expected a tuple such as (16, 4), horizon first, got {shape!r}.")
    for size in shape:
        check_positive_integer("shape", size)


def check_executed(executed: object, horizon: int) -> None:
    """Refuse fewer actions than one, or more than a plan has."""
    check_positive_integer("executed", executed)
    if isinstance(executed, int) and executed > horizon:
        raise ValueError(
            f"executed: expected at most {horizon}, for a plan has no more actions, got {executed}; pass how many are "
            f"executed before the next plan is made, or a shape with a longer horizon than {horizon}."
        )


def check_seed(seed: object) -> None:
    """Refuse what is not an integer from 0 to 2**64 - 1."""
    if isinstance(seed, torch.Generator):
        raise TypeError("seed: expected an integer >= 0, got a Generator; pass generator= to reset.")
    if isinstance(seed, list | tuple | slice | Tensor):
        raise TypeError(f"seed: expected an integer >= 0, got {seed!r}; pass robots= to reset for some robots only.")
    check_count("seed", seed)
    if isinstance(seed, int) and seed >= 2**64:
        raise ValueError(f"seed: expected an integer below 2**64, got {seed}.")


def check_states(name: str, states: object, shape: tuple[int, ...]) -> None:
    """Refuse what is not a tensor of plans."""
    if not isinstance(states, Tensor):
        raise TypeError(f"{name}: expected a tensor of shape {shape}, got {type(states).__name__}.")
    if states.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, one plan for each observation, got {tuple(states.shape)}.")


def check_held(held: object, shape: tuple[int, ...]) -> None:
    """Refuse what is not a mask and values of plans."""
    if not isinstance(held, tuple) or len(held) != 2:
        raise TypeError(f"held: expected a tuple of a mask and values, of shape {shape} both, got {held!r}.")
    mask, values = held
    check_states("held", mask, shape)
    check_states("held", values, shape)
    if mask.dtype != torch.bool:
        raise TypeError(f"held: expected a mask of booleans, got {mask.dtype}; pass mask.bool().")


def check_iteration(iteration: object) -> None:
    """Refuse what is not an iteration, or needs derivatives of the model."""
    if iteration is not None:
        check_type("iteration", iteration, Iteration, "picardsolve.Secant()")
    if isinstance(iteration, Newton):
        raise TypeError("iteration: Newton needs derivatives of the model, which are not taken here; pass Secant().")


def batch_of(observation: Any) -> tuple[int, torch.device]:
    """The number of observations, and their device."""
    leaves = pytree.tree_leaves(observation)
    if not leaves or not all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves):
        raise TypeError(
            f"observation: expected tensors with a leading dimension of plans, got {type(observation).__name__}; pass "
            "torch.as_tensor(...)[None] for a single plan."
        )
    sizes = sorted({len(leaf) for leaf in leaves})
    if len(sizes) > 1 or not sizes[0]:
        raise ValueError(f"observation: expected one leading dimension, at least 1, in every tensor, got {sizes}.")
    devices = sorted({str(leaf.device) for leaf in leaves})
    if len(devices) > 1:
        raise ValueError(f"observation: expected tensors on one device, got {', '.join(devices)}; move them to one.")
    return sizes[0], leaves[0].device


def numbers_of(robots: Any, batch: int | None) -> list[int]:
    """The numbers of some robots, in order.

    Args:
        robots: a number, several numbers, or a mask, as a list, a tensor or an array.
        batch: the number of robots; None before the first plan.

    Raises:
        TypeError: ``robots`` is something else.
        ValueError: there is no such robot, or a mask has another length.
    """
    try:
        given = torch.as_tensor(robots)
    except (TypeError, ValueError, RuntimeError):
        given = None
    if given is not None and given.shape == (0,):
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
