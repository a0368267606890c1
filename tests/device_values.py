"""Where the values of tensors on the simulated device lie: a CPU storage for each of their storages."""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

DEVICE = torch.device("meta")
HOST = torch.device("cpu")


def is_device(x: Tensor) -> bool:
    """Whether a tensor claims to be there."""
    return x.device.type == DEVICE.type


class _Values:
    """The CPU storage of every storage on the device, forgotten with the latter; what is cached survives a device."""

    def __init__(self) -> None:
        self._stored: dict[int, tuple[StorageWeakRef, torch.UntypedStorage]] = {}
        self._next_sweep = 1024

    def of(self, tensor: Tensor) -> Tensor:
        """The values of a device tensor, as a view of its CPU storage."""
        found = self._stored.get(tensor.untyped_storage()._cdata)
        if found is None:
            raise RuntimeError("A tensor on the simulated device was made outside of it and has no values.")
        return _view(found[1], tensor, HOST)

    def keep(self, storage: torch.UntypedStorage, values: torch.UntypedStorage) -> None:
        """The CPU storage of a new storage."""
        self._stored[storage._cdata] = StorageWeakRef(storage), values
        if len(self._stored) > self._next_sweep:
            self._stored = {key: pair for key, pair in self._stored.items() if not pair[0].expired()}
            self._next_sweep = 2 * len(self._stored) + 1024


_VALUES = _Values()


class Call:
    """The tensors of one operation, on both sides."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []  # (argument, its values)
        self._storages: dict[int, torch.UntypedStorage] = {}  # of the values -> of the device

    def inner(self, x: Any) -> Any:
        """The values of an argument."""
        if not isinstance(x, Tensor):
            return x
        values = _VALUES.of(x) if is_device(x) else x
        self._pairs.append((x, values))
        if values is not x:
            self._storages[values.untyped_storage()._cdata] = x.untyped_storage()
        return values

    def reshaped(self) -> None:
        """Give an argument the shape that ``out=``, ``resize_`` or ``unsqueeze_`` gave its values."""
        for x, values in self._pairs:
            if x.shape != values.shape or x.stride() != values.stride():
                x.untyped_storage().resize_(values.untyped_storage().nbytes())
                x.as_strided_(values.shape, values.stride(), values.storage_offset())

    def is_new(self, outputs: Any) -> bool:
        """Whether some output has a storage of its own, or is no tensor."""
        return any(
            not isinstance(x, Tensor) or x.untyped_storage()._cdata not in self._storages
            for x in pytree.tree_leaves(outputs)
        )

    def outer(self, x: Any) -> Any:
        """An output on the device: the argument that it is, a view of one, or a new tensor."""
        if not isinstance(x, Tensor):
            return x
        for argument, values in self._pairs:
            if values is x:
                return argument
        if x.is_conj() or x.is_neg():
            raise NotImplementedError("The simulated device has no conjugate views.")
        if x._is_zerotensor():
            x = torch.zeros_like(x)
        key = x.untyped_storage()._cdata
        if key not in self._storages:
            self._storages[key] = torch.UntypedStorage(x.untyped_storage().nbytes(), device=DEVICE)
            _VALUES.keep(self._storages[key], x.untyped_storage())
        return _view(self._storages[key], x, DEVICE)


def _view(storage: torch.UntypedStorage, like: Tensor, device: torch.device) -> Tensor:
    """A tensor over a storage, with the shape, strides and dtype of another."""
    place = like.storage_offset(), like.shape, like.stride()
    with torch.inference_mode(False):  # a view of a tensor from outside of it has to be like that
        return torch.empty(0, dtype=like.dtype, device=device).set_(storage, *place)  # type: ignore[call-overload]
