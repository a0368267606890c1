"""One denoiser call for many lanes: the lanes' arguments become one batch, and the lanes share its outputs.

Row r of lane j is row ``r * W + j`` of the batch. So rows that the denoiser splits into halves or thirds stay together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state import WatchedDenoiser, version
from picardsolve.integrations.diffusers.run.nested import copied, joined, rebuilt, tensors, with_sample
from picardsolve.integrations.diffusers.run.window_tensor import Lanes, WindowTensor, find

_SHARED = ("img_ids", "txt_ids")  # arguments of transformers without a batch dimension
_SHARED_KINDS = ("rotary", "rope")  # parts of the names of other arguments without a batch dimension
# Largest distance between a state's output in a batch and its output alone, relative to the output's size. Rounding
# errors are smaller, also in TF32. Batch norm in training mode, or conditioning in the wrong rows, gives more.
COMPANY = 2e-3

Chunks = list[tuple[Any, int, int]]  # for each call its output, its number of lanes, and how many are not padding


class Sharing(Protocol):
    """Several devices that share the lanes of a call; see `SharedLanes`."""

    workers: int

    def begin(self) -> None:
        """Begin an iteration."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for the user."""
        ...

    def chunks(
        self,
        watched: WatchedDenoiser,
        function: Callable[..., Any],
        lanes: list[int],
        args: tuple,
        kwargs: dict,
        nested: bool,
    ) -> Chunks | None:
        """The outputs for some lanes; None where these arguments cannot be shared."""
        ...


@dataclass
class Batch:
    """How lanes are combined into batches.

    Attributes:
        limit: largest number of rows in a call; None for no limit. A single lane is never split.
        pad: number of lanes in every call, filled up with the last lane; None for no padding.
        shared: devices that share the lanes; None: this one has them all.
        nested: whether the batch may be ``k`` rows for each row of the state, or the second dimension of an argument.
    """

    limit: int | None = None
    pad: int | None = None
    nested: bool = False
    shared: Sharing | None = None
    _repeated: dict[tuple[int, int], tuple[Tensor, int | None, Tensor]] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        """How many devices share a call."""
        return 1 if self.shared is None else self.shared.workers

    def call(
        self,
        function: Callable[..., Any],
        lanes: list[int],
        args: tuple,
        kwargs: dict,
        like: Any = None,
        through: Any = None,
        watched: WatchedDenoiser | None = None,
    ) -> "Outputs":
        """Call a denoiser for the given lanes of its window arguments.

        Args:
            function: the denoiser.
            lanes: their numbers.
            args: arguments by position.
            kwargs: arguments by name.
            like: an output for one lane, if known.
            through: ``through(function, args, kwargs, lanes)`` makes a call for so many lanes.
            watched: whose function it is, for other devices.
        """
        chunks = None
        if self.shared is not None and watched is not None:
            chunks = self.shared.chunks(watched, function, lanes, args, kwargs, self.nested)
        if chunks is None:
            chunks = self.chunks(function, lanes, args, kwargs, through)
        outputs = Outputs(_samples(args, kwargs), like, chunks)
        outputs.lane(0)  # checks the shapes of the denoiser's outputs
        return outputs

    def chunks(
        self, function: Callable[..., Any], lanes: list[int], args: tuple, kwargs: dict, through: Any = None
    ) -> Chunks:
        """The outputs of the calls for some lanes, on this device; see `call`."""
        call, samples, pad = partial(through or directly, function), _samples(args, kwargs), self.pad
        most = max(len(lanes), pad or 1) if self.limit is None else max(1, self.limit // samples)
        even = -(-len(lanes) // -(-len(lanes) // most))
        size, chunks = even if pad is None else min(pad, most), []
        for start in range(0, len(lanes), size):
            chunk = lanes[start : start + size]
            padded = chunk if pad is None else chunk + chunk[-1:] * (size - len(chunk))
            wide = _Widened(padded, samples, self.nested, self._repeated, _device(args, kwargs))
            out = call(wide(args), {key: wide(part, key) for key, part in kwargs.items()}, len(padded))
            chunks.append((out, len(padded), len(chunk)))
        return chunks


def directly(function: Callable[..., Any], args: Any, kwargs: Any, lanes: int) -> Any:
    """The value of a call for so many lanes."""
    return function(*args, **kwargs)


@dataclass
class Outputs:
    """The outputs of a denoiser for many lanes.

    Attributes:
        samples: rows of one lane.
        like: an output of one lane, if known.
        chunks: for each call, its output, its number of lanes, and how many of these are not padding.
    """

    samples: int
    like: Any = None
    chunks: Chunks = field(default_factory=list)

    def __len__(self) -> int:
        return sum(count for _, _, count in self.chunks)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the outputs."""
        return [tensor for out, _, _ in self.chunks for tensor in tensors(out)]

    def copied(self) -> "Outputs":
        """A copy of the outputs in new memory."""
        return Outputs(self.samples, self.like, [(copied(out), width, count) for out, width, count in self.chunks])

    @property
    def evaluated(self) -> int:
        """Number of lanes that the denoiser evaluated, padding included."""
        return sum(width for _, width, _ in self.chunks)

    def lane(self, j: int) -> Any:
        """The output of one lane."""
        for out, width, count in self.chunks:
            if j < count:
                return _part(out, j, width, self.samples, self.like)
            j -= count
        raise IndexError(j)

    def window(self, lanes: Lanes) -> Any:
        """One output whose tensors hold all lanes."""
        if len(self.chunks) == 1:
            out, width, _ = self.chunks[0]
            return _whole(out, width, self.samples, self.like, lanes)
        return joined([self.lane(j) for j in range(lanes.count)], lanes.tensor)


def _samples(args: tuple, kwargs: dict) -> int:
    """Rows of one lane: the rows of the states, or of the times where the states are a list of single states."""
    direct = [value for value in (*args, *kwargs.values()) if isinstance(value, WindowTensor)]
    for windows in (direct, find((args, kwargs))):
        sizes = {dim: [len(w.items[0]) for w in windows if w.items[0].dim() >= dim] for dim in (2, 1)}
        if any(sizes.values()):
            return max(sizes[2] or sizes[1])
    return 1


def _device(args: tuple, kwargs: dict) -> torch.device | None:
    """Where the states are, or the first of all arguments."""
    windows = sorted(find((args, kwargs)), key=lambda window: window.items[0].dim() < 2)
    return windows[0].items[0].device if windows else None


@dataclass
class _Widened:
    """Combines window arguments into arguments for many lanes."""

    lanes: list[int]
    samples: int
    nested: bool
    repeated: dict[tuple[int, int], tuple[Tensor, int | None, Tensor]]
    device: torch.device | None

    def __call__(self, value: Any, name: str = "") -> Any:
        if isinstance(value, WindowTensor):
            stack = value.stack
            if self.lanes != list(range(len(stack))):
                stack = stack[self.lanes[0] : self.lanes[-1] + 1] if _in_a_row(self.lanes) else stack[self.lanes]
            if stack.dim() == 1 or (stack.dim() == 2 and stack.shape[1] == 1 < self.samples):
                # one time for all rows; a single time may stay on the host, where pipelines may have it, many may not
                return stack.flatten().repeat(self.samples).to(self.device, non_blocking=True)
            return stack.transpose(0, 1).flatten(0, 1)
        if isinstance(value, Tensor):
            shared = name in _SHARED or any(word in name for word in _SHARED_KINDS)
            return value if shared or value.dim() == 0 else self._repeat(value)
        if isinstance(value, list) and len(value) == self.samples and not self._are_batches(value):
            return [_item(part, j) for part in value for j in self.lanes]
        if isinstance(value, list | tuple):
            return rebuilt(value, [self(part, name) for part in value])
        if type(value) is dict:
            return {key: self(part, key) for key, part in value.items()}
        return value

    def _are_batches(self, parts: list[Any]) -> bool:
        """Whether a list holds tensors of whole batches, such as feature maps, instead of one entry per sample."""
        return any(
            isinstance(part, Tensor) and part.dim() > 0 and len(_item(part, 0)) == self.samples for part in parts
        )

    def _repeat(self, value: Tensor) -> Tensor:
        """A tensor repeated for every lane; cached, because conditioning is the same object in every round."""
        dim, groups = 0, len(value) // self.samples
        if len(value) != self.samples:
            dim = 1 if value.dim() > 1 and value.shape[1] == self.samples else 0
            if not self.nested or (dim == 0 and (groups == 0 or len(value) % self.samples)):
                return value
        key = id(value), len(self.lanes)
        kept = self.repeated.get(key)
        if kept is None or kept[0] is not value or kept[1] is None or kept[1] != version(value):
            if dim == 1:
                wide = value.repeat_interleave(len(self.lanes), 1)
            else:  # the rows that belong to one row of the state stay together
                wide = value.unflatten(0, (self.samples, groups)).repeat_interleave(len(self.lanes), 0).flatten(0, 1)
            kept = self.repeated[key] = value, version(value), wide
            while len(self.repeated) > 16:
                del self.repeated[next(iter(self.repeated))]
        return kept[2]


def _item(value: Any, j: int) -> Any:
    return value.items[j] if isinstance(value, WindowTensor) else value


def _in_a_row(lanes: list[int]) -> bool:
    return lanes == list(range(lanes[0], lanes[0] + len(lanes)))


def _part(out: Any, j: int, width: int, samples: int, like: Any = None) -> Any:
    """The output of lane ``j`` of ``width``; ``like`` is the output of a single lane, if known."""
    if isinstance(out, Tensor):
        rows = len(like) if isinstance(like, Tensor) and like.dim() else samples
        if out.dim() == 0 or len(out) != width * rows:
            raise RuntimeError(f"given {width * samples} states, the denoiser returned shape {tuple(out.shape)}")
        return out[j::width]
    if isinstance(out, dict):
        return rebuilt(out, {key: _part(out[key], j, width, samples, _at(like, key)) for key in out})
    if isinstance(out, list | tuple):
        one_each = len(out) == width * (len(like) if isinstance(like, list | tuple) else samples)
        if isinstance(out, list) and one_each and (like is None or len(like) != len(out)):
            return out[j::width]
        return rebuilt(out, [_part(value, j, width, samples, _at(like, k)) for k, value in enumerate(out)])
    if isinstance(getattr(out, "sample", None), Tensor):
        return with_sample(out, _part(out.sample, j, width, samples, getattr(like, "sample", None)))
    return out


def _whole(out: Any, width: int, samples: int, like: Any, lanes: Lanes) -> Any:
    """One output for all lanes, with a window tensor in place of each tensor."""
    if isinstance(out, Tensor):
        rows = len(like) if isinstance(like, Tensor) and like.dim() else samples
        return lanes.tensor(out.unflatten(0, (rows, width)).transpose(0, 1)[: lanes.count])
    if isinstance(out, dict):
        return rebuilt(out, {key: _whole(out[key], width, samples, _at(like, key), lanes) for key in out})
    if isinstance(out, tuple):
        return rebuilt(out, [_whole(value, width, samples, _at(like, k), lanes) for k, value in enumerate(out)])
    return joined([_part(out, j, width, samples, like) for j in range(lanes.count)], lanes.tensor)


def _at(like: Any, key: Any) -> Any:
    try:
        return None if like is None else like[key]
    except (KeyError, IndexError, TypeError):
        return None


def with_another_lane(value: Any, plain: Any) -> Any:
    """Window arguments with one more lane, from plain arguments; LookupError if these differ elsewhere."""
    if isinstance(value, WindowTensor):
        if not isinstance(plain, Tensor) or plain.shape != value.items[0].shape:
            raise LookupError
        return Lanes(len(value.items) + 1).tensor([*value.items, plain])
    if isinstance(value, dict) and isinstance(plain, dict) and value.keys() == plain.keys():
        return rebuilt(value, {key: with_another_lane(part, plain[key]) for key, part in value.items()})
    if isinstance(value, list | tuple) and isinstance(plain, list | tuple) and len(value) == len(plain):
        return rebuilt(value, [with_another_lane(part, other) for part, other in zip(value, plain, strict=True)])
    if isinstance(value, Tensor) and isinstance(plain, Tensor):
        if value is plain or torch.equal(value, plain):
            return value
    elif value is plain or (isinstance(value, bool | int | float | str) and value == plain):
        return value
    raise LookupError
