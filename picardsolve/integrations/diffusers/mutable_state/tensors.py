"""The tensors in reach: compared by version, by address and by value, in few operations for all of them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state.kinds import Kind

_WHOLE = 1 << 11  # elements up to which all of a tensor's values are compared
_SAMPLED = 128  # elements that are compared of a larger tensor
_KEPT = 1 << 24  # elements up to which a larger tensor is copied, to be restored
_WHOLE_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class TensorState:
    """A tensor as it was. Its values are copied, and looked at, together with those of others: see `Tensors`.

    Attributes:
        obj: the tensor.
        version: how often it had been written to; None where torch does not count that.
        pointer: where its values were; 0 where that is unknown.
        form: type, device, shape and layout.
        readable: whether it has values that can be read.
        in_a_row: whether they lie in a row, so that a view of them shows later changes.
        held: a copy of its values, of a large tensor of some of them.
        whole: a copy of all its values; None of a large parameter, and of what is too large to be kept.
    """

    def __init__(self, obj: Tensor):
        self.obj = obj
        self.held: Tensor | None = None
        self.whole: Tensor | None = None
        self.version, self.pointer = version(obj), _pointer(obj)
        self.form = obj.dtype, obj.device, obj.shape, obj.layout
        self.in_a_row = self.readable = False
        if self.pointer and not obj.is_meta and not obj.is_quantized and obj.layout == torch.strided:
            self.readable = True
            as_stored = not (obj.is_conj() or obj.is_neg()) and obj.element_size() in _WHOLE_NUMBERS
            self.in_a_row = obj.is_contiguous() and as_stored
            if _WHOLE < obj.numel() <= _KEPT and not isinstance(obj, torch.nn.Parameter):
                self.whole = obj.detach().reshape(-1).clone()

    def bits(self) -> Tensor:
        """The present values, of a large tensor some of them, as whole numbers."""
        flat = self.obj.detach().resolve_conj().resolve_neg().reshape(-1)
        flat = flat if flat.numel() <= _WHOLE else flat[:: flat.numel() // _SAMPLED]
        if flat.element_size() not in _WHOLE_NUMBERS:  # complex numbers of double precision
            flat = torch.view_as_real(flat.contiguous()).flatten()
        return flat.view(_WHOLE_NUMBERS[flat.element_size()])

    def same_as(self, now: "TensorState") -> bool:
        """Whether the tensor, or the one in its place, has the same values.

        A large tensor that nobody was seen to write to is judged by a sample; so is a large one that was replaced.
        """
        if self.form != now.form or (self.held is None) != (now.held is None):
            return False
        if self.held is None or now.held is None:
            return self.version == now.version or self.obj is not now.obj
        if not equal(self.held, now.held):
            return False
        if self.held.numel() == self.obj.numel() or self.obj is not now.obj or self.version == now.version:
            return True
        return self.whole is not None and now.whole is not None and equal(self.whole, now.whole)


class Tensors:
    """All tensors of a snapshot: their values are read in few operations."""

    def __init__(self, states: list[TensorState]):
        self._counted = [state.obj for state in states if state.version is not None]
        self._versions = [state.version for state in states if state.version is not None]
        self._stored = [state.obj for state in states if state.pointer]
        self._pointers = [state.pointer for state in states if state.pointer]
        groups: dict[Any, list[TensorState]] = {}
        for state in states:
            if state.readable:  # torch.cat is fast where all lie in a row
                form = state.obj.element_size(), state.obj.device, state.obj.numel() <= _WHOLE
                groups.setdefault(form, []).append(state)
        self._groups = [_Group(group) for group in groups.values()]

    @property
    def unchanged(self) -> bool:
        """Whether no tensor was seen to be written to or moved, and the values that are looked at are the same."""
        return (
            [tensor._version for tensor in self._counted] == self._versions
            and [tensor.data_ptr() for tensor in self._stored] == self._pointers
            and all(group.unchanged for group in self._groups)
        )


class _Group:
    """Tensors whose values are read in one operation, as whole numbers with the same bits."""

    def __init__(self, states: list[TensorState]):
        self._views = [state.bits() for state in states]
        # values that do not lie in a row are copied to be read: the view shows no later change
        self._copied = [(k, state) for k, state in enumerate(states) if not state.in_a_row]
        joined = torch.cat(self._views)
        for state, part in zip(states, joined.split([view.numel() for view in self._views]), strict=True):
            state.held = held = part.view(state.form[0])
            if held.numel() == state.obj.numel():
                state.whole = held
        self._on_host = joined.device.type == "cpu"  # where numpy reads many small pieces faster than torch
        self._then: Any = joined.numpy() if self._on_host else joined
        self._arrays = [view.numpy() for view in self._views] if self._on_host else []

    @property
    def unchanged(self) -> bool:
        for k, state in self._copied:
            self._views[k] = state.bits()
            if self._on_host:
                self._arrays[k] = self._views[k].numpy()
        if self._on_host:
            return bool((np.concatenate(self._arrays) == self._then).all())
        return torch.equal(torch.cat(self._views), self._then)


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
TENSOR = Kind(TensorState, live=lambda _: (), put_all=_put_values, same=TensorState.same_as)
