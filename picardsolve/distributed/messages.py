"""Nested values with tensors, sent from one rank to another by torch.distributed.

A message is a pickle in which tensors are replaced by their kinds, in one send of a fixed size where it is short; the
tensors follow as they are, each in a send of its own. A tensor arrives on the receiver's device of the same type.
"""

import io
import pickle
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_HEAD = 2048  # bytes of the first send
_LENGTH = 8  # bytes of it that say how long the pickle is


class Posted:
    """Messages on their way: what is sent is kept until it has left."""

    def __init__(self):
        self._works: list[Any] = []
        self._kept: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._works)

    def send(self, value: Any, rank: int) -> None:
        """Send a value to a rank, without waiting for it."""
        stream = io.BytesIO()
        packer = _Packer(stream)
        packer.dump(value)
        body = stream.getvalue()
        data = len(body).to_bytes(_LENGTH, "little") + body
        head = torch.zeros(_HEAD, dtype=torch.uint8)
        short = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        head[: len(short)] = short[:_HEAD]
        for part in (head, short[_HEAD:], *packer.tensors):
            if part.numel():
                self._works.append(dist.isend(part, rank))
                self._kept.append(part)

    def wait(self) -> None:
        """Wait until everything has left."""
        for work in self._works:
            work.wait()
        self._works, self._kept = [], []


def received(rank: int) -> Any:
    """The next value from a rank, which is waited for as long as the process group allows."""
    head = torch.empty(_HEAD, dtype=torch.uint8)
    dist.recv(head, rank)
    data = head.numpy().tobytes()
    length = int.from_bytes(data[:_LENGTH], "little")
    if length > _HEAD - _LENGTH:
        rest = torch.empty(length + _LENGTH - _HEAD, dtype=torch.uint8)
        dist.recv(rest, rank)
        data += rest.numpy().tobytes()
    return _Unpacker(io.BytesIO(data[_LENGTH : _LENGTH + length]), rank).load()


class _Packer(pickle.Pickler):
    def __init__(self, stream: io.BytesIO):
        super().__init__(stream, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._seen: dict[int, tuple[Any, Tensor]] = {}  # by id, with the tensor, so that the id is not given again

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return None
        if id(obj) not in self._seen:
            plain = obj.detach().as_subclass(Tensor)
            wire = _wire(plain.device.type)
            kind = len(self._seen), plain.dtype, tuple(plain.shape), plain.device.type, wire
            self._seen[id(obj)] = kind, obj
            self.tensors.append(_bytes(plain.to(wire).contiguous()))
        return self._seen[id(obj)][0]


class _Unpacker(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, rank: int):
        super().__init__(stream)
        self._rank, self._seen = rank, []

    def persistent_load(self, pid: Any) -> Tensor:
        number, dtype, shape, device, wire = pid
        if number == len(self._seen):
            tensor = torch.empty(shape, dtype=dtype, device=wire)
            if tensor.numel():
                dist.recv(_bytes(tensor), self._rank)
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
