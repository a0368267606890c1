"""The tensors that a drift has gradients by."""

import torch
from torch import Tensor


def recordable(tensor: Tensor) -> Tensor:
    """A tensor that autograd may save: a copy of one that was made in inference mode, outside of which it may not."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def leaves(output: Tensor) -> tuple[Tensor, ...]:
    """The leaves of the graph that an output was recorded on: parameters, wherever a function closes over them."""
    found, seen, ahead = [], set(), [output.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of AccumulateGrad
        if leaf is not None and not leaf.is_inference():  # which gets no gradient in torch, either
            found.append(leaf)
        ahead += [following for following, _ in node.next_functions]
    return tuple(found)
