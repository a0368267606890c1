"""Which tensors hold the same values, so that calls which share them can be joined; each is compared once."""

from collections import OrderedDict
from dataclasses import dataclass
from itertools import count
from threading import Lock

import torch
from torch import Tensor

_KEPT = 64  # tensors that are remembered


@dataclass(frozen=True)
class _Known:
    tensor: Tensor  # kept, for Python uses the identity of what is gone again
    version: int  # how often it had been written to; -1 where that is not counted
    values: Tensor
    number: int

    def still_holds(self) -> bool:
        """Whether nobody has written to the tensor."""
        if self.version < 0:
            return torch.equal(self.tensor, self.values)
        return self.tensor._version == self.version


class SharedTensors:
    """Gives tensors with the same values the same number.

    A tensor is compared with others when it is first seen, or was written to since; afterwards it is known by its
    identity. Tensors of inference mode do not count what is written to them, and are compared with a copy.
    """

    def __init__(self) -> None:
        self._lock, self._numbers = Lock(), count()
        self._known: OrderedDict[int, _Known] = OrderedDict()

    def number(self, value: Tensor) -> int:
        """A number that only tensors with the same values have."""
        with self._lock:
            known = self._known.pop(id(value), None)
            if known is None or not known.still_holds():
                counted = not value.is_inference()
                known = _Known(
                    value, value._version if counted else -1, value if counted else value.clone(), self._equal(value)
                )
            self._known[id(value)] = known
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
            return known.number

    def _equal(self, value: Tensor) -> int:
        """The number of a known tensor with these values; a new one without such a tensor."""
        for known in self._known.values():
            other = known.values
            alike = (other.shape, other.dtype, other.device) == (value.shape, value.dtype, value.device)
            if alike and known.still_holds() and torch.equal(other, value):
                return known.number
        return next(self._numbers)
