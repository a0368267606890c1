"""Numbers of steps and samples: on the host, which decides by them, and on the device, which reads tables by them."""

from typing import cast

import numpy as np
import torch
from torch import Tensor


class DeviceIndex(np.ndarray):
    """An int64 array on the host that keeps its copy on a device, so that all who read it there share one copy."""

    _copy: Tensor | None

    def __array_finalize__(self, source: object) -> None:
        self._copy = None  # a part of an index, or a result of arithmetic, is another index

    def on(self, device: torch.device) -> Tensor:
        """The copy on the device."""
        if self._copy is None or self._copy.device != device:
            self._copy = torch.from_numpy(np.asarray(self)).to(device, non_blocking=True)
        return self._copy

    def keep(self, copy: Tensor) -> None:
        """Take a tensor of the same numbers for the copy."""
        self._copy = copy


def on_device(numbers: np.ndarray, device: torch.device) -> Tensor:
    """A host array as a tensor on a device; the copy that an index keeps, if it is one."""
    kept = getattr(numbers, "on", None)
    return torch.from_numpy(numbers).to(device, non_blocking=True) if kept is None else kept(device)


def in_front(numbers: np.ndarray) -> np.ndarray:
    """The numbers with a dimension in front of theirs, and with the copy that an index keeps."""
    shown, copy = numbers[None], getattr(numbers, "_copy", None)
    if copy is not None:
        cast(DeviceIndex, shown).keep(copy.unsqueeze(0))
    return shown


def send(device: torch.device, *indices: DeviceIndex) -> None:
    """Copy several indices to a device at once."""
    if device.type == "cpu" or not indices:  # on the CPU no copy is made
        return
    together = torch.from_numpy(np.concatenate([np.asarray(index).ravel() for index in indices])).to(
        device, non_blocking=True
    )
    for index, part in zip(indices, together.split([index.size for index in indices]), strict=True):
        index.keep(part.view(index.shape))
