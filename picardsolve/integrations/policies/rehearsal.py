"""The rehearsal: a policy's own loop and a parallel plan with a small function in the network's place."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Understudy(nn.Module):
    """A smooth function of all that a network is given, called in its place; it costs nothing.

    Args:
        like: a tensor whose dtype and device its parameter has.
    """

    def __init__(self, like: Tensor):
        super().__init__()
        self.gain = nn.Parameter(like.new_tensor(0.5), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``x`` of shape ``(rows, ...)``, then a time and conditions: numbers, or tensors with a leading ``rows``."""
        shift = x.new_zeros(len(x))
        given = pytree.tree_leaves((args, [kwargs[name] for name in sorted(kwargs)]))
        for place, part in enumerate(part for part in given if isinstance(part, Tensor | int | float)):
            part = torch.as_tensor(part).to(x)
            part = part.flatten(1).mean(1) if part.dim() > 1 else part
            shift = shift + torch.sin(part / (place + 1) + place)
        shift = shift.nan_to_num()  # of observations that are broken
        return torch.tanh(self.gain * x + shift.view(-1, *[1] * (x.dim() - 1)))


def rehearsed_to(dtype: torch.dtype) -> float:
    """The tolerance of plans in a rehearsal, whose numbers are about one."""
    return torch.finfo(dtype).eps ** 0.5


def check_alike(
    name: str, own: Callable[[], Tensor], ours: Callable[[], Tensor], generator: torch.Generator | None
) -> None:
    """Refuse a loop whose plans, with the same noise, are other ones.

    Args:
        name: of the loop, for the error.
        own: makes plans by the policy's loop.
        ours: makes the same in parallel, to the tolerance of a rehearsal.
        generator: that both draw from, and which is put back.

    Raises:
        TypeError: the loop fails, or the plans differ by more than rounding.
    """
    state = None if generator is None else generator.get_state()
    made = []
    with torch.no_grad():
        for make in (own, ours):
            try:
                made.append(make())
            except Exception as error:
                raise TypeError(f"policy: {name} cannot be read: {type(error).__name__}: {error}") from error
            finally:
                if generator is not None and state is not None:
                    generator.set_state(state)
    expected, found = made
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise TypeError(
            f"policy: {name} returns {expected.dtype} of shape {tuple(expected.shape)}, {found.dtype} of "
            f"{tuple(found.shape)} was expected; this version of the policy is not known here."
        )
    different = (found - expected).masked_fill(found.isnan() & expected.isnan(), 0)
    off = float(different.abs().max()) / max(1.0, float(expected.nan_to_num().abs().max()))
    if not off <= 10 * rehearsed_to(expected.dtype):
        raise TypeError(
            f"policy: {name} makes other plans than the steps of its scheduler with the same noise (by {off:.1e}, with "
            "a known function in the network's place); this version of the policy is not known here."
        )
