"""A device without hardware: its tensors say that they are on "meta", compute on the CPU, and everything is counted.

Inside ``with SimulatedDevice() as device:`` a tensor on `DEVICE` is a tensor of torch, no subclass, so that autograd,
`torch.func` and modules take it for what it says. Its values lie in the CPU storage that belongs to its storage: views
alias as they do on a GPU. What a GPU refuses is refused: operations on tensors of two devices, and `numpy()`.

What is counted, and where, is a `Tally`.

Not simulated: streams, memory, pinned memory, autocast, generators of the device, complex conjugate views.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from device_values import DEVICE, HOST, Call, is_device
from tally import Tally, place_of_call
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_Function = TypeVar("_Function", bound=Callable[..., Any])

_ALLOCATE = ("aten::empty", "aten::new_empty", "aten::_efficientzerotensor", "aten::resize_", "aten::set_")
_READ = ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero")
_WAIT = (
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::_linalg_check_errors",
)
_INDEX = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
# beside the pointwise ones, what takes one number of the host among tensors of the device
_TAKES_NUMBERS = ("aten::fill_", "aten::fill", "aten::masked_fill", "aten::masked_fill_", "aten::index_fill_")
_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, Tensor.new_tensor)


class SimulatedDevice:
    """A context in which `DEVICE` computes; one at a time.

    Attributes:
        tally: what was counted outside of the user's functions.
        user: what was counted inside of `apart`.
    """

    def __init__(self) -> None:
        self.tally, self.user = Tally(), Tally()
        self._open = ExitStack()
        self._apart = 0

    def __enter__(self) -> "SimulatedDevice":
        self._open.enter_context(_Dispatch(self))
        self._open.enter_context(_FromData())
        return self

    def __exit__(self, *exception: Any) -> None:
        self._open.close()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Count what happens inside as the user's."""
        self._apart += 1
        try:
            yield
        finally:
            self._apart -= 1

    def counted_apart(self, function: _Function) -> _Function:
        """The function, counted as the user's."""

        def called(*args: Any, **kwargs: Any) -> Any:
            with self.apart():
                return function(*args, **kwargs)

        return called  # type: ignore[return-value]

    def count(self, *kinds: str) -> None:
        """One event of each of the kinds."""
        place = place_of_call()
        tally = self.user if self._apart else self.tally
        for kind in kinds:
            tally[kind, place] += 1

    # ---- one operation

    def run(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation of torch, on the device if one of its tensors is there or if it is to make one there."""
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_device = any(is_device(x) for x in tensors)
        asked = kwargs.get("device")
        target = on_device if asked is None else torch.device(asked).type == DEVICE.type
        name = operator._schema.name
        if not (on_device or target) or name.startswith("prims::"):  # torch's own, for the shape of a zero tangent
            return operator(*args, **kwargs)
        if target and kwargs.get("generator") is not None:
            raise RuntimeError(f"Expected a generator of the device: {name} got one of the host.")
        self.count("operation")
        if name in ("aten::_to_copy", "aten::copy_"):
            moved = self._transfer(name, args, kwargs, target)
        else:
            moved = False
            self._check_devices(operator, name, args, kwargs, tensors)
            self._count_waits(name, args)
        if asked is not None:
            kwargs = kwargs | {"device": HOST}
        return self._computed(operator, name, args, kwargs, target, moved)

    def _transfer(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], target: bool) -> bool:
        """Count a copy; whether it goes from one device to the other."""
        source = args[1] if name == "aten::copy_" else args[0]
        target = is_device(args[0]) if name == "aten::copy_" else target
        if is_device(source) == target:
            return False
        if not target:
            self.count("copy to the host", "wait")
        else:
            without_wait = kwargs.get("non_blocking", False) or (name == "aten::copy_" and any(args[2:]))
            self.count("copy to the device", *(() if without_wait else ("blocking copy",)))
        return True

    def _check_devices(self, operator: Any, name: str, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        """Raise where a GPU would; count the copies of indices that lie on the host."""
        indices = [x for x in args[1] if x is not None] if name in _INDEX else []
        if indices and is_device(args[0]):
            for _ in (x for x in indices if not is_device(x)):
                self.count("copy to the device", "blocking copy")
            tensors = [args[0], *args[2:3]]
        host = [x for x in tensors if isinstance(x, Tensor) and not is_device(x)]
        numbers = torch.Tag.pointwise in operator.tags or name in _TAKES_NUMBERS or name in _INDEX
        mixed = [
            x for x in host if x.dim() or not numbers or any(x is each for each in _written(operator, args, kwargs))
        ]
        if len(host) < len(tensors) and mixed:
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {name} got tensors of shapes "
                f"{[tuple(x.shape) for x in mixed]} on the host."
            )

    def _count_waits(self, name: str, args: tuple[Any, ...]) -> None:
        if name in _READ:
            self.count("copy to the host", "wait")
        elif name in _WAIT or (name == "aten::repeat_interleave" and len(args) == 1):
            self.count("wait")
        elif name in _INDEX:
            masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
            fills = name != "aten::index" and len(masks) == len(args[1]) == 1 and args[2].numel() == 1
            if masks and not fills:  # a fill of one number by a mask is a masked_fill
                self.count("wait")

    def _computed(self, operator: Any, name: str, args: Any, kwargs: Any, target: bool, moved: bool) -> Any:
        """The operation on the CPU; its results where they belong, those that are views with their base's storage."""
        call = Call()
        inner, keywords = pytree.tree_map(call.inner, (args, kwargs))
        outputs = operator(*inner, **keywords)
        call.reshaped()
        written = operator._schema.is_mutable and torch.Tag.inplace_view not in operator.tags
        if not moved and not name.startswith(_ALLOCATE) and name not in _READ and (written or call.is_new(outputs)):
            self.count("kernel")
        if not target:
            return outputs
        return pytree.tree_map(call.outer, outputs)


class _Dispatch(TorchDispatchMode):
    """Hands every operation to the device."""

    def __init__(self, device: SimulatedDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled():  # where composite operations arrive whole
            with self:
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        return self._device.run(func, args, kwargs or {})


class _FromData(TorchFunctionMode):
    """`torch.tensor` and its kind make "meta" tensors without values: here they are made on the host and copied."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _FROM_DATA:
            return func(*args, **kwargs)
        asked = kwargs.get("device")
        if asked is None and func is Tensor.new_tensor:
            asked = args[0].device
        args = pytree.tree_map(_number, args) if isinstance(args[-1], list | tuple) else args
        if isinstance(args[-1], Tensor) or asked is None or torch.device(asked).type != DEVICE.type:
            return func(*args, **kwargs)
        return func(*args, **kwargs | {"device": HOST}).to(DEVICE)


def _number(x: Any) -> Any:
    """A number that lies on the device, read."""
    return x.item() if isinstance(x, Tensor) and is_device(x) and not x.dim() else x


def _written(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation writes to."""
    names = [each.name for each in operator._schema.arguments if each.alias_info and each.alias_info.is_write]
    return [kwargs[name] if name in kwargs else args[0] for name in names]


def agree(scenario: Callable[[torch.device], Any], rtol: float = 1e-9, atol: float = 1e-9) -> Any:
    """Hold the results of a scenario on the device against the host's, which are returned; tensors are on the device.

    Raises:
        AssertionError: they differ.
    """
    expected = scenario(HOST)
    with SimulatedDevice():
        found = scenario(DEVICE)
        for here, there in zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True):
            if isinstance(here, Tensor):
                assert there.device == DEVICE
                torch.testing.assert_close(there.cpu(), here, rtol=rtol, atol=atol, equal_nan=True)
            else:
                assert there == here
    return expected
