"""The tensors in reach: compared by version, by address and by value, in few operations for all of them."""

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state.kinds import Kind

_WHOLE = 1 << 11  # elements up to which all of a tensor's values are compared
_SAMPLED = 128  # elements that are compared of a larger tensor
_KEPT = 1 << 24  # elements up to which a larger tensor is copied, to be restored
_PART = 1 << 14  # bytes that are compared at once: a copy of more would be made in memory that is far away
_WHOLE_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_VERSION = attrgetter("_version")


class TensorState:
    """A tensor as it was. Its values are copied, and looked at, together with those of others: see `Tensors`.

    Attributes:
        obj: the tensor.
        version: how often it had been written to; None where torch does not count that.
        pointer: where its values were; 0 where that is unknown.
        form: type, device, shape and layout.
        readable: whether it has values that can be read.
        in_a_row: whether they lie in a row, so that a view of them shows later changes.
    """

    def __init__(self, obj: Tensor):
        self.obj = obj
        self.version, self.pointer = version(obj), _pointer(obj)
        self.form = obj.dtype, obj.device, obj.shape, obj.layout
        self.in_a_row = self.readable = False
        self._kept: tuple[Tensor, int, int] | None = None
        self._clone: Tensor | None = None
        if self.pointer and not obj.is_meta and not obj.is_quantized and obj.layout == torch.strided:
            self.readable = True
            as_stored = not (obj.is_conj() or obj.is_neg()) and obj.element_size() in _WHOLE_NUMBERS
            self.in_a_row = obj.is_contiguous() and as_stored
            if _WHOLE < obj.numel() <= _KEPT and not isinstance(obj, torch.nn.Parameter):
                self._clone = obj.detach().reshape(-1).clone()

    def bits(self) -> Tensor:
        """The present values, of a large tensor some of them, as whole numbers."""
        flat = self.obj.detach()
        flat = flat.view(-1) if self.in_a_row else flat.resolve_conj().resolve_neg().reshape(-1)
        flat = flat if flat.numel() <= _WHOLE else flat[:: flat.numel() // _SAMPLED]
        if flat.element_size() not in _WHOLE_NUMBERS:  # complex numbers of double precision
            flat = torch.view_as_real(flat.contiguous()).flatten()
        return flat.view(_WHOLE_NUMBERS[flat.element_size()])

    def keep(self, bits: Tensor, start: int, end: int) -> None:
        """Keep a copy of the bits, which is a part of a longer one."""
        self._kept = bits, start, end

    @property
    def held(self) -> Tensor | None:
        """A copy of its values, of a large tensor of some of them."""
        if self._kept is None:
            return None
        bits, start, end = self._kept
        return bits[start:end].view(self.form[0])

    @property
    def whole(self) -> Tensor | None:
        """A copy of all its values; None of a large parameter, and of what is too large to be kept."""
        return self.held if self.form[2].numel() <= _WHOLE else self._clone

    def same_as(self, now: "TensorState") -> bool:
        """Whether the tensor, or the one in its place, has the same values.

        A large tensor that nobody was seen to write to is judged by a sample; so is a large one that was replaced.
        """
        held, held_now = self.held, now.held
        if self.form != now.form or (held is None) != (held_now is None):
            return False
        if held is None or held_now is None:
            return self.version == now.version or self.obj is not now.obj
        if not equal(held, held_now):
            return False
        if held.numel() == self.obj.numel() or self.obj is not now.obj or self.version == now.version:
            return True
        return self.whole is not None and now.whole is not None and equal(self.whole, now.whole)


class Tensors:
    """All tensors of a snapshot: their values are read in few operations, those on a device with one wait."""

    def __init__(self, states: list[TensorState]):
        self._counted = [state.obj for state in states if state.version is not None]
        self._versions = [state.version for state in states if state.version is not None]
        self._stored = [state.obj for state in states if state.pointer]
        self._pointers = [state.pointer for state in states if state.pointer]
        readable = [state for state in states if state.readable]
        self._on_host = [_OnHost(group) for group in _alike(state for state in readable if _on_host(state))]
        self._others = [_Others(group) for group in _alike(state for state in readable if not _on_host(state))]

    @property
    def unchanged(self) -> bool:
        """Whether no tensor was seen to be written to or moved, and the values that are looked at are the same."""
        return (
            list(map(_VERSION, self._counted)) == self._versions
            and list(map(Tensor.data_ptr, self._stored)) == self._pointers
            and all(group.unchanged for group in self._on_host)
            and self._others_unchanged()
        )

    def _others_unchanged(self) -> bool:
        differences: dict[torch.device, list[Tensor]] = {}
        for group in self._others:
            differences.setdefault(group.then.device, []).append(group.differs())
        return not any(bool(torch.stack(found).any()) for found in differences.values())


def _on_host(state: TensorState) -> bool:
    return state.in_a_row and state.obj.device.type == "cpu"


def _alike(states: Iterable[TensorState]) -> list[list[TensorState]]:
    """Groups of tensors whose values one operation can read: in a row, as whole numbers with the same bits."""
    groups: dict[Any, list[TensorState]] = {}
    for state in states:
        form = state.obj.element_size(), state.obj.device, state.obj.numel() <= _WHOLE
        groups.setdefault(form, []).append(state)
    return list(groups.values())


def _keep(states: list[TensorState], views: list[Any], joined: Tensor) -> None:
    """Let each tensor have its part of a copy of what is looked at."""
    start = 0
    for state, view in zip(states, views, strict=True):
        state.keep(joined, start, start + len(view))
        start += len(view)


class _OnHost:
    """Tensors on the host, which numpy reads faster than torch.

    Small ones are joined as bytes, which takes a fifth of the time; those of large ones do not lie side by side.
    """

    def __init__(self, states: list[TensorState]):
        views = [state.bits().numpy() for state in states]
        joined = np.concatenate(views)
        _keep(states, views, torch.from_numpy(joined))
        side_by_side = all(view.flags.c_contiguous for view in views)
        self._read: Callable[[list[Any]], bytes] = b"".join if side_by_side else _joined
        self._parts: list[tuple[list[Any], bytes]] = []
        part, size = [], 0
        for view in views:
            part.append(view.data if side_by_side else view)
            size += view.nbytes
            if size >= _PART or view is views[-1]:
                self._parts.append((part, self._read(part)))
                part, size = [], 0

    @property
    def unchanged(self) -> bool:
        return all(self._read(views) == then for views, then in self._parts)


def _joined(views: list[Any]) -> bytes:
    return np.concatenate(views).tobytes()


class _Others:
    """Tensors on a device, and those whose values do not lie in a row.

    Attributes:
        then: the values that are looked at.
    """

    def __init__(self, states: list[TensorState]):
        self._views = [state.bits() for state in states]
        # values that do not lie in a row are copied to be read: the view shows no later change
        self._copied = [(k, state) for k, state in enumerate(states) if not state.in_a_row]
        self.then = torch.cat(self._views)
        _keep(states, self._views, self.then)

    def differs(self) -> Tensor:
        """Whether a value is another one, as a tensor on the device of the values."""
        for k, state in self._copied:
            self._views[k] = state.bits()
        return (torch.cat(self._views) != self.then).any()


def _put_values(obj: Tensor, held: TensorState) -> bool:
    """Put the values back, if a copy was kept."""
    now = TensorState(obj)
    Tensors([now])
    if held.same_as(now):
        return True
    if held.whole is None or now.form != held.form:
        return False
    with torch.no_grad():
        obj.data.copy_(held.whole.reshape(obj.shape))
    return True


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape and the same elements; NaN is equal to NaN."""
    if torch.equal(a, b):
        return True
    return a.shape == b.shape and a.is_floating_point() and bool(((a == b) | (a.isnan() & b.isnan())).all())


def version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None where torch does not count that, as in inference mode."""
    try:
        return None if tensor.is_inference() else tensor._version
    except RuntimeError:
        return None


def _pointer(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError, TypeError):
        return 0


# A look at the whole snapshot asks `Tensors`, not the single tensor.
TENSOR = Kind(TensorState, live=lambda *_: (), put_all=_put_values, same=TensorState.same_as)
