"""Products of matrices that keep their precision where the user has switched autocast on, for the network perhaps."""

from contextlib import AbstractContextManager, nullcontext

import torch

_KNOWN = ("cpu", "cuda", "mps", "xpu")  # torch.is_autocast_enabled refuses names of other devices


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which operations on a device return the dtype that they are given."""
    if device.type in _KNOWN and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
