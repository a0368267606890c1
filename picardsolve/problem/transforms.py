"""What torch's transforms of functions hand to a solve: it works on numbers, and cannot see through them."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

FORWARD = (
    "gradient: solutions have no forward-mode derivatives (torch.func.jvp, jacfwd, hessian, forward_ad); take those of "
    "reverse mode (torch.func.vjp, jacrev, or backward), or solve for the tangent along with the state."
)
ALL_TOGETHER = "solve all samples together with batch_dims=1, and differentiate by torch.autograd.grad or backward."


def transforming() -> bool:
    """Whether a function runs inside `torch.func.vmap`, `grad`, `jvp` or another transform."""
    return torch._C._are_functorch_transforms_active()


def is_transformed(value: Any) -> bool:
    """Whether a value is a tensor that stands for many, or for one with derivatives, inside a transform."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # pyright: ignore
    return isinstance(value, Tensor) and wrapped(value)


def check_untransformed(*values: Any) -> None:
    """Refuse to work inside a transform, and tensors with forward-mode tangents.

    Raises:
        RuntimeError: a transform is active, or a tensor has a tangent.
    """
    if transforming():
        raise RuntimeError(
            "torch.func: a solve cannot be transformed by vmap, grad, jacrev and the like, but picardsolve.odeint can; "
            f"or {ALL_TOGETHER}"
        )
    for leaf in pytree.tree_leaves(values):
        if isinstance(leaf, Tensor):
            check_no_tangent(leaf)


def check_no_tangent(tensor: Tensor) -> None:
    """Refuse a tensor with a forward-mode tangent, which would be lost.

    Raises:
        RuntimeError: it has one.
    """
    if forward_ad.unpack_dual(tensor).tangent is not None:
        raise RuntimeError(FORWARD)
