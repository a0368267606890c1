"""The tensors that a drift has gradients by."""

from torch import Tensor


def leaves(output: Tensor) -> tuple[Tensor, ...]:
    """The leaves of the graph that an output was recorded on: parameters, wherever a function closes over them."""
    found, seen, ahead = [], set(), [output.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)  # pyright: ignore[reportAttributeAccessIssue]: of AccumulateGrad
        ahead += [following for following, _ in node.next_functions]
    return tuple(found)
