"""Which calls may be merged at all, the modes of torch that they must share, and the end of their work on a GPU."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor as _is_wrapped  # type: ignore[import]

_ORDINARY = Tensor, nn.Parameter


def merges(tensors: Sequence[Tensor]) -> bool:
    """Whether a call may be merged with others.

    Not where gradients are recorded, which would tie the graphs of requests together, and not within `torch.func` or
    with tensors of other classes, which mean something in their own thread only.
    """
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        return False
    return all(type(tensor) in _ORDINARY and not _is_wrapped(tensor) for tensor in tensors)


def modes(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """The modes of torch in which a call is made."""
    kinds = sorted({tensor.device.type for tensor in tensors})
    cast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds if kind != "meta"]
    streams = [torch.cuda.current_stream(tensor.device).cuda_stream for tensor in tensors if tensor.is_cuda]
    return torch.is_inference_mode_enabled(), *cast, *dict.fromkeys(streams)


def finish(parts: Sequence[Any]) -> None:
    """Wait until the GPU, if the arguments of a call lie on one, has done what it was given."""
    device = next((part.device for part in parts if isinstance(part, Tensor) and part.is_cuda), None)
    if device is not None:
        torch.cuda.current_stream(device).synchronize()
