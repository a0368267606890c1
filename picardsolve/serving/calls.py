"""One call of a model as lanes that may share a call with those of others: what must agree, joining, dividing.

A call has ``rows``, the leading dimension of its states. Rows that must stay together (a batch, the halves of guidance)
are a lane: row r of lane j is row ``r * lanes + j``. Calls are joined lane by lane.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device)
_COMPANY = 2e-3  # largest distance of an output in company from that alone, relative to its size: TF32 makes less


@dataclass(frozen=True)
class Form:
    """What must agree between calls that are joined, but for the values of what they share.

    Attributes:
        function: what is called.
        structure: of the arguments.
        leaves: of each argument its kind, type and shape; of what is no tensor its value.
        block: rows of a lane.
    """

    function: Callable[..., Any]
    structure: pytree.TreeSpec
    leaves: tuple[Any, ...]
    block: int


@dataclass(frozen=True)
class Outputs:
    """What came of some lanes of a call, as a list, its structure, and how many lanes it is of."""

    leaves: list[Any]
    structure: pytree.TreeSpec
    lanes: int


@dataclass(eq=False)
class Call:
    """A call that waits for its outputs.

    Attributes:
        function: what is called.
        args: its arguments by position.
        kwargs: its arguments by name.
        form: see `Form`.
        agrees: what must agree beside the form: the values of what is shared, and the modes of torch.
        parts: the arguments as a list.
        lanes: how many lanes the call has.
        taken: lanes whose outputs are known.
        outputs: those of the lanes so far.
        error: what the call raised.
        wake: is set when something has happened to the call.
    """

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    form: Form
    agrees: tuple[Any, ...]
    parts: list[Any]
    lanes: int
    taken: int = 0
    outputs: list[Outputs] = field(default_factory=list)
    error: BaseException | None = None
    wake: Event = field(default_factory=Event)

    @property
    def done(self) -> bool:
        """Whether nothing is left to evaluate."""
        return self.error is not None or self.taken == self.lanes

    def joins(self, other: "Call") -> bool:
        """Whether both may be evaluated in one call."""
        return self.agrees == other.agrees and self.form == other.form

    def result(self) -> Any:
        """The outputs; or raises the error."""
        if self.error is not None:
            raise self.error
        first, block = self.outputs[0], self.form.block
        if len(self.outputs) == 1:
            return pytree.tree_unflatten(first.leaves, first.structure)
        columns, widths = zip(*(out.leaves for out in self.outputs), strict=True), [out.lanes for out in self.outputs]
        return pytree.tree_unflatten([_beside(list(column), widths, block) for column in columns], first.structure)


@dataclass(frozen=True)
class Piece:
    """Lanes ``start`` to ``end`` of a call."""

    call: Call
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def rows(self) -> int:
        """Rows of the lanes."""
        return len(self) * self.call.form.block


def evaluated(pieces: Sequence[Piece]) -> list[Outputs]:
    """The outputs of pieces of calls that join, from one call of their function.

    Raises:
        ValueError: the function does not return a row for each row.
        Exception: what the function raises.
    """
    call = pieces[0].call
    if len(pieces) == 1 and len(pieces[0]) == call.lanes:
        leaves, structure = pytree.tree_flatten(call.function(*call.args, **call.kwargs))
        return [Outputs(leaves, structure, call.lanes)]
    args, kwargs = pytree.tree_unflatten([_joined(pieces, k) for k in range(len(call.parts))], call.form.structure)
    leaves, structure = pytree.tree_flatten(call.function(*args, **kwargs))
    lanes, at, out = sum(map(len, pieces)), 0, []
    for piece in pieces:
        part = [_divided(leaf, call.form.block, lanes, at, len(piece)) for leaf in leaves]
        out.append(Outputs(part, structure, len(piece)))
        at += len(piece)
    return out


def distance(found: list[Any], expected: list[Any]) -> float:
    """How far outputs are from others, over how far rounding may take them: at most 1 where they are the same."""
    far = 0.0
    for one, other in zip(map(_tensor, found), map(_tensor, expected), strict=True):
        if one is None or other is None:
            continue
        if one.shape != other.shape:
            return float("inf")
        if not other.is_floating_point():
            far = max(far, 0.0 if torch.equal(one, other) else float("inf"))
            continue
        change, size = (torch.linalg.vector_norm(part.double().nan_to_num()) for part in (one - other, other))
        slack = max(_COMPANY, 2 * torch.finfo(other.dtype).eps)
        far = max(far, float(change / (slack * size).clamp(min=1e-30)))
    return far


def described(value: Any, rows: int) -> Any:
    """What must agree of an argument between calls that are joined, but for the values of what they share."""
    if not isinstance(value, Tensor):
        return (type(value), value) if isinstance(value, _PLAIN) else id(value)
    kind = kind_of(value, rows)
    return kind, value.dtype, value.device, tuple(value.shape[kind == "rows" :]) if kind != "spread" else ()


def kind_of(value: Tensor, rows: int) -> str:
    """Whether a tensor has a row for each row of states, one for all of them ("spread"), or is "shared" by calls."""
    if value.dim() and len(value) == rows:
        return "rows"
    return "spread" if value.dim() == 0 or value.shape == (1,) else "shared"


def _joined(pieces: Sequence[Piece], k: int) -> Any:
    """Argument ``k`` of the pieces' call."""
    first = pieces[0].call
    value, described_as = first.parts[k], first.form.leaves[k]
    if not isinstance(value, Tensor) or described_as[0] == "shared":
        return value
    block, parts = first.form.block, []
    for piece in pieces:
        own = piece.call.parts[k]
        if described_as[0] == "rows":
            parts.append(own.unflatten(0, (block, piece.call.lanes))[:, piece.start : piece.end])
        else:  # one time for all rows; it may lie on the host
            device = next(part.device for part in piece.call.parts if isinstance(part, Tensor) and part.dim())
            parts.append(own.reshape(1, 1).to(device, non_blocking=True).expand(block, len(piece)))
    return torch.cat(parts, 1).flatten(0, 1)


def _divided(leaf: Any, block: int, lanes: int, start: int, count: int) -> Any:
    """The part of an output for some lanes, in memory of its own: whoever gets it may write to it."""
    value = _tensor(leaf)
    if value is None:
        return leaf
    if value.dim() == 0 or len(value) != block * lanes:
        raise ValueError(f"given {block * lanes} states at once, the model returned shape {tuple(value.shape)}")
    return _with(leaf, value.unflatten(0, (block, lanes))[:, start : start + count].flatten(0, 1).clone())


def _beside(parts: list[Any], widths: list[int], block: int) -> Any:
    """One output from those of pieces of one call."""
    values = [value for value in map(_tensor, parts) if value is not None]
    if not values:
        return parts[0]
    views = [value.unflatten(0, (block, count)) for value, count in zip(values, widths, strict=True)]
    return _with(parts[0], torch.cat(views, 1).flatten(0, 1))


def _tensor(leaf: Any) -> Tensor | None:
    """A tensor, or that of an object which has it as ``sample``."""
    value = getattr(leaf, "sample", None) if not isinstance(leaf, Tensor) else leaf
    return value if isinstance(value, Tensor) else None


def _with(leaf: Any, value: Tensor) -> Any:
    if isinstance(leaf, Tensor):
        return value
    changed = copy.copy(leaf)
    object.__setattr__(changed, "sample", value)
    return changed
