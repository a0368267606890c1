"""Whether a tensor is what it was."""

import torch
from torch import Tensor


def equal(a: Tensor, b: Tensor) -> bool:
    """Equal in shape and in every element; NaN is equal to NaN."""
    if torch.equal(a, b):
        return True
    return a.shape == b.shape and a.is_floating_point() and bool(((a == b) | (a.isnan() & b.isnan())).all())


def version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None in inference mode, where torch does not count."""
    return None if tensor.is_inference() else tensor._version
