"""What is in reach of a denoiser is seen to change, whatever it is that changes, and put back."""

import random
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from picardsolve.integrations.diffusers.mutable_state import Snapshot, random_generators
from picardsolve.integrations.diffusers.mutable_state.denoisers import WatchedDenoiser

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool]


class Slotted:
    __slots__ = ("count", "last")

    def __init__(self):
        self.count, self.last = 0, [1.0]


def closure() -> Any:
    calls = 0

    def call() -> int:
        nonlocal calls
        calls += 1
        return calls

    return call


def network() -> Any:
    """A module that holds one of everything, at some depth."""
    net: Any = nn.Sequential(nn.Linear(3, 70), nn.Sequential(nn.Linear(70, 40), nn.Linear(40, 40), nn.BatchNorm1d(4)))
    net.numbers = {"a": 1, "deep": {"list": [1, 2, [3]], "none": {}}, "strided": torch.arange(12.0).reshape(3, 4).T}
    net.many = deque([1, 2], maxlen=3)
    net.members = {1, 2}
    net.pair = [[1, 2], [3]]
    net.helper = SimpleNamespace(count=0, inner=SimpleNamespace(total=0.5, log=[]))
    net.slotted = Slotted()
    net.call = closure()
    net.ordered = OrderedDict(x=1, y=2)
    net.array = np.arange(3.0)
    net.bytes = bytearray(b"ab")
    net.buffer = array("d", [1.0])
    net.own = [torch.Generator(), random.Random(0), np.random.default_rng(0), np.random.RandomState(0)]
    net.variable = ContextVar("variable")
    net.variable.set(0)
    net.tensors = [torch.ones(5, dtype=dtype) for dtype in DTYPES] + [torch.zeros(3000), torch.zeros(0)]
    return net


def counted(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.logical_not_() if tensor.dtype == torch.bool else tensor.add_(1)


def uncounted(tensor: Tensor, k: int = 0) -> None:
    """Past the version counter, and one element only."""
    flat = tensor.data.view(-1) if tensor.is_contiguous() else tensor.data[0]
    k %= len(flat)
    flat[k] = ~flat[k] if tensor.dtype == torch.bool else flat[k] + 1


def moved(tensor: Tensor) -> None:
    tensor.data = tensor.data + 1


def weight(net: nn.Module, k: int) -> Tensor:
    weights = list(net.parameters())
    return weights[k % len(weights)]


def buffer(net: nn.Module, k: int) -> Tensor:
    buffers = list(net.buffers())
    return buffers[k % len(buffers)]


CHANGES: dict[str, Callable[[Any, int], Any]] = {
    "attribute": lambda net, k: setattr(net[k % 2], "training", k),
    "attribute added": lambda net, k: setattr(net[1][k % 3], f"new{k}", k),
    "attribute deleted": lambda net, k: delattr(net[1][k % 3], "training"),
    "attributes exchanged": lambda net, _: vars(net).update(numbers=net.members, members=net.numbers),
    "module": lambda net, k: setattr(net[1], str(k % 2), nn.Linear(40, 40)),
    "hook": lambda net, k: net[1][k % 3].register_forward_hook(lambda *_: None),
    "hooks replaced": lambda net, k: setattr(net[1][k % 3], "_forward_hooks", OrderedDict(a=k)),
    "weight": lambda net, k: counted(weight(net, k)),
    "element of a weight": lambda net, k: counted(net[0].weight.detach().view(-1)[k:][:1]),
    "element of a large weight": lambda net, k: counted(net[1][0].weight.detach().view(-1)[k:][:1]),
    "weight by data": lambda net, k: weight(net, k).data.add_(1),
    "weight's data": lambda net, k: moved(weight(net, k)),
    "buffer": lambda net, k: counted(buffer(net, k)),
    "buffer by data": lambda net, k: uncounted(buffer(net, k), k),
    "tensor": lambda net, k: counted(net.tensors[k % (len(DTYPES) + 1)]),
    "tensor by data": lambda net, k: uncounted(net.tensors[k % len(DTYPES)], k),
    "tensor by numpy": lambda net, k: net.tensors[k % 2].numpy().__setitem__(k % 5, 7.0),
    "tensor replaced": lambda net, k: net.tensors.__setitem__(k % len(net.tensors), torch.full((2,), 3.0)),
    "tensor not in a row": lambda net, _: uncounted(net.numbers["strided"]),
    "dict": lambda net, k: net.numbers["deep"].update(none=k),
    "dict added to": lambda net, k: net.numbers["deep"]["none"].update(x=k),
    "dict's order": lambda net, _: net.numbers.update(a=net.numbers.pop("a")),
    "list": lambda net, k: net.numbers["deep"]["list"][2].append(k),
    "empty list": lambda net, k: net.helper.inner.log.append(k),
    "from one list to the next": lambda net, k: net.pair[k % 2].append(net.pair[1 - k % 2].pop(0)),
    "deque": lambda net, k: net.many.append(k),
    "set": lambda net, k: net.members.add(k + 3),
    "nested object": lambda net, k: setattr(net.helper.inner, "total", k),
    "slot": lambda net, k: setattr(net.slotted, "count", k),
    "list in a slot": lambda net, k: net.slotted.last.append(k),
    "variable of a function": lambda net, _: net.call(),
    "variable of a context": lambda net, k: net.variable.set(k),
    "array": lambda net, k: net.array.__setitem__(k % 3, 7.0),
    "bytes": lambda net, k: net.bytes.append(k),
    "numbers": lambda net, k: net.buffer.append(k),
    "torch's generator": lambda net, k: torch.rand(k, generator=net.own[0]),
    "python's generator": lambda net, _: net.own[1].random(),
    "python's normal": lambda net, _: net.own[1].gauss(0, 1),
    "numpy's generator": lambda net, k: net.own[2].random(k),
    "numpy's state": lambda net, k: net.own[3].random(k),
    "numpy's normals": lambda net, k: net.own[3].randn(k),
}
DRAWS: list[Callable[[int], Any]] = [
    torch.rand,
    np.random.rand,
    np.random.randn,
    lambda k: [random.random() for _ in range(k)],
    lambda k: [random.gauss(0, 1) for _ in range(k)],
]
SAME_CONTENT = ("dict's order",)  # seen by a look; a comparison finds the same content


@pytest.mark.parametrize("change", CHANGES)
@settings(max_examples=12)
@given(k=st.integers(2, 40), odd=st.booleans(), twice=st.booleans())
def test_a_change_is_seen_and_put_back(change, k, odd, twice):
    net = network()
    if odd:  # numpy keeps a second normal number: the next one is given without another draw
        net.own[3].randn()
    then = Snapshot({"net": net})
    assert then.unchanged
    assert not then.changes(then.retaken())
    for _ in range(1 + twice):  # looks before do not hide it
        assert then.current() is then
    CHANGES[change](net, k)
    assert not then.unchanged
    assert then.changes(then.retaken()) or change in SAME_CONTENT
    now = then.current()
    assert now is not then
    assert now.unchanged
    if then.restore():
        assert not then.changes(then.retaken())
        assert not then.retaken().changes(then)
    else:
        assert "weight" in change  # large ones are not copied


@settings(max_examples=60)
@given(draws=st.lists(st.tuples(st.sampled_from(range(len(DRAWS))), st.integers(1, 3)), max_size=6))
def test_every_draw_from_the_process_is_seen(draws):
    then = Snapshot(random_generators())
    for number, count in draws:
        assert then.unchanged
        DRAWS[number](count)
        assert not then.unchanged
        assert then.changes(then.retaken())
        assert then.restore()
        assert not then.changes(then.retaken())
        then = then.current()
        DRAWS[number](count)  # the next look begins elsewhere, with or without a second normal number
        then = then.current()
    assert then.unchanged


@settings(max_examples=40)
@given(change=st.sampled_from(sorted(CHANGES)), k=st.integers(2, 40))
def test_a_change_between_calls_is_not_taken_for_one_that_a_call_makes(change, k):
    net = network()
    watched = WatchedDenoiser(net)
    watched.begin()
    assert watched.end() is None
    after = watched.now
    assert watched.same_as(after)
    CHANGES[change](net, k)
    assert not watched.same_as(after) or change in SAME_CONTENT
    watched.asked()
    watched.begin()
    assert watched.end() is None
    watched.begin()
    CHANGES[change](net, k + 1)
    assert watched.end() is not None or change in SAME_CONTENT


def test_a_look_reads_one_number_of_all_tensors_that_are_compared_by_torch():
    """As those on a device are: here, those whose values do not lie in a row."""
    strided = [torch.ones(3, 4, dtype=dtype).T for dtype in DTYPES] + [torch.ones(80, 90).T]
    then = Snapshot({"strided": strided})
    with _Reads() as reads:
        assert then.unchanged
    assert reads.names == ["aten::_local_scalar_dense"]
    strided[0].data[0, 0] = 2
    assert not then.unchanged


class _Reads(TorchDispatchMode):
    """The operations for whose result the host waits."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero"):
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))
