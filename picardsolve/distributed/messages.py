"""Nested values with tensors, sent from one rank to another by torch.distributed.

A message is a pickle in which tensors are replaced by their kinds, followed by the bytes of small tensors. It is one
send where it is as long as the message before it in the same direction, or a little longer, as in round after round;
what is beyond that is a second one. Large tensors, and those that a backend sends from the GPU, are a send each. A
tensor arrives on the receiver's device of the same type.
"""

import io
import pickle
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_SHORT, _LONG = 2048, 2**17  # bytes of the first send, at least and at most
_SMALL = 2**16  # bytes of a tensor that goes with the pickle
_LENGTHS = 16  # bytes that say how long the message and its pickle are


class Mail:
    """Messages to and from other ranks; what is sent is kept until it has left."""

    def __init__(self):
        self._works: list[Any] = []
        self._kept: list[Tensor] = []
        self._sent: dict[int, int] = {}  # how long the first send of the next message is, by rank
        self._got: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._works)

    def afresh(self) -> None:
        """Wait no more for what was sent."""
        self._left, self._works = (self._works, self._kept), []
        self._kept = []

    def send(self, value: Any, rank: int) -> None:
        """Send a value to a rank, without waiting for it."""
        stream = io.BytesIO()
        packer = _Packer(stream)
        packer.dump(value)
        body, small = stream.getvalue(), [_bytes(tensor).numpy().tobytes() for tensor in packer.small]
        length = _LENGTHS + len(body) + sum(map(len, small))
        first = self._sent.get(rank, _SHORT)
        self._sent[rank] = _first(length)
        data = torch.empty(max(length, first), dtype=torch.uint8)
        lengths = length.to_bytes(8, "little") + len(body).to_bytes(8, "little")
        data[:length] = torch.frombuffer(bytearray(b"".join([lengths, body, *small])), dtype=torch.uint8)
        for part in (data[:first], data[first:], *map(_bytes, packer.large)):
            if part.numel():
                self._works.append(dist.isend(part, rank))
                self._kept.append(part)

    def wait(self) -> None:
        """Wait until everything has left."""
        for work in self._works:
            work.wait()
        self._works, self._kept = [], []

    def received(self, rank: int) -> Any:
        """The next value from a rank, which is waited for as long as the process group allows."""
        data = torch.empty(self._got.get(rank, _SHORT), dtype=torch.uint8)
        dist.recv(data, rank)
        length, pickled = (int.from_bytes(data[k : k + 8].numpy().tobytes(), "little") for k in (0, 8))
        self._got[rank] = _first(length)
        if length > len(data):
            rest = torch.empty(length - len(data), dtype=torch.uint8)
            dist.recv(rest, rank)
            data = torch.cat([data, rest])
        end = _LENGTHS + pickled
        return _Unpacker(io.BytesIO(data[_LENGTHS:end].numpy().tobytes()), rank, data[end:length]).load()


def _first(length: int) -> int:
    """The first send of the message after one of a length."""
    return min(max(1 << (length - 1).bit_length(), _SHORT), _LONG)


class _Packer(pickle.Pickler):
    def __init__(self, stream: io.BytesIO):
        super().__init__(stream, pickle.HIGHEST_PROTOCOL)
        self.small: list[Tensor] = []
        self.large: list[Tensor] = []
        self._seen: dict[int, tuple[Any, Tensor]] = {}  # by id, with the tensor, so that the id is not given again

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return None
        if id(obj) not in self._seen:
            plain = obj.detach().as_subclass(Tensor)
            wire = _wire(plain.device.type)
            small = wire == "cpu" and plain.numel() * plain.element_size() <= _SMALL
            kind = len(self._seen), plain.dtype, tuple(plain.shape), plain.device.type, wire, small
            self._seen[id(obj)] = kind, obj
            (self.small if small else self.large).append(plain.to(wire).contiguous())
        return self._seen[id(obj)][0]


class _Unpacker(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, rank: int, small: Tensor):
        super().__init__(stream)
        self._rank, self._small, self._seen = rank, small, []

    def persistent_load(self, pid: Any) -> Tensor:
        number, dtype, shape, device, wire, small = pid
        if number == len(self._seen):
            tensor = torch.empty(shape, dtype=dtype, device=wire)
            target = _bytes(tensor)
            if small:
                target.copy_(self._small[: len(target)])
                self._small = self._small[len(target) :]
            elif tensor.numel():
                dist.recv(target, self._rank)
            self._seen.append(tensor.to(device))
        return self._seen[number]


def _bytes(tensor: Tensor) -> Tensor:
    """The same memory as bytes, which every backend sends."""
    flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return flat.reshape(-1).view(torch.uint8)


def _wire(device: str) -> str:
    """The type of device that tensors of a type of device are sent from: gloo sends from the CPU only."""
    backends = dict(pair.split(":") for pair in dist.get_backend_config().split(",") if ":" in pair)
    return device if backends.get(device, "gloo") != "gloo" else "cpu"
