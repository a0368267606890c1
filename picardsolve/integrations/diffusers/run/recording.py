"""The loop body of a round as recorded: the operations that lead from the states to the denoiser, and on to the step.

The replays of the accepted steps run the same body. What it computes is known before: from the accepted states in one
go for all of them (`Rerun`), or from the round itself where the states do not matter. `ReplayMode` hands it out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state import version
from picardsolve.integrations.diffusers.run.nested import joined, rebuilt, same_memory
from picardsolve.integrations.diffusers.run.window_tensor import Lanes, LoopMode, find

_CONSTANTS = (int, float, bool, str, type(None), torch.dtype, torch.device, slice, type(...), torch.Size)


STATE = 0  # slot of the states


@dataclass(frozen=True)
class Slot:
    """The place of a value that differs between lanes."""

    number: int


@dataclass(frozen=True)
class Constant:
    """A tensor that is the same for all lanes."""

    tensor: Tensor
    version: int | None

    def is_still(self, value: Any) -> bool:
        """Whether a value is this tensor, not written to since."""
        return isinstance(value, Tensor) and self.version is not None and same_memory(value, self.tensor, self.version)


@dataclass(frozen=True)
class Scaling:
    """``scale_model_input`` of a round, as an operation; ``factors`` are those of its lanes."""

    factors: Tensor | None = field(default=None, compare=False)

    def __call__(self, sample: Any, timestep: Any) -> Any:
        """Scale the lanes of a window tensor."""
        assert self.factors is not None
        lanes, states = sample.lanes, sample.stack
        return lanes.tensor((states * self.factors[lanes.first : lanes.first + lanes.count]).to(states.dtype))


@dataclass
class Operation:
    """One operation of a loop body; ``moves`` says whether its results follow the states."""

    func: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]
    result: Any
    moves: bool


@dataclass
class Recording:
    """The operations on window tensors in one round.

    Attributes:
        operations: in order.
        values: by slot: the lanes' values, stacked or as a list.
        moving: the slots that follow the states.
        usable: False after something that a replay would have to do again, such as writing to a tensor.
    """

    operations: list[Operation] = field(default_factory=list)
    values: list[Tensor | list[Tensor]] = field(default_factory=list)
    moving: set[int] = field(default_factory=set)
    usable: bool = True

    def admit(self, window: Any, moves: bool = False) -> Any:
        """Give a window tensor a slot."""
        window.slot = len(self.values)
        self.values.append(window._stack if window._stack is not None else window._items)
        if moves:
            self.moving.add(window.slot)
        return window

    def note(self, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        """Record an operation."""
        found = find(out)
        if not self.usable or not found:
            return
        slots = find((args, kwargs))
        if any(window.slot is None for window in slots) or any(window.slot is not None for window in found):
            self.usable = False
            return
        moves = any(window.slot in self.moving for window in slots)
        for window in found:
            self.admit(window, moves)
        self.operations.append(Operation(func, _placed(args), _placed(kwargs), _placed(out), moves))

    def admit_all(self, out: Any) -> list[int]:
        """Give every window tensor of a denoiser's output a slot; the slots, in the order of `joined`."""
        found: list[Any] = []
        joined([out], lambda values: found.append(values[0]) or values[0])
        if not all(hasattr(value, "lanes") for value in found):
            return []
        return [self.admit(value).slot for value in found]


@dataclass(frozen=True)
class RoundOutputs:
    """The outputs of a round's steps, in ``slot`` of its recording; they do not follow the states."""

    recording: Recording
    slot: int

    @staticmethod
    def of(output: Any, recording: Recording) -> "RoundOutputs | None":
        """The outputs that a step was given; None where they cannot be known in a replay."""
        slot = getattr(output, "slot", None)
        if slot is None or not recording.usable or slot in recording.moving:
            return None
        return RoundOutputs(recording, slot)


class Rerun:
    """The recorded operations on other states of some lanes, as far as these matter.

    Args:
        recording: of the round.
        first: the first of these lanes.
        states: ``(S, B, ...)`` their states.
    """

    def __init__(self, recording: Recording, first: int, states: Tensor):
        self.recording, self.first, self.count = recording, first, len(states)
        self._lane_of: dict[int, Sequence[Tensor]] = {}
        self._lanes = Lanes(len(states), first=first)
        self.values: dict[int, Any] = {STATE: self._lanes.tensor(states)}
        for operation in recording.operations:
            if operation.moves:
                out = operation.func(*self._filled(operation.args), **self._filled(operation.kwargs))
                self._keep(operation.result, out)

    @property
    def whole(self) -> bool:
        """Whether all these lanes take the branches of the first."""
        return self._lanes.count == self.count

    def stack(self, slot: int) -> Tensor:
        """The values of a slot that follows the states, ``(S, ...)``."""
        return self.values[slot].stack

    def lane(self, slot: int, j: int) -> Tensor:
        """The value of a slot in lane ``j`` of the round."""
        if slot not in self._lane_of:
            values = self.values[slot].items if slot in self.recording.moving else self.recording.values[slot]
            self._lane_of[slot] = values if isinstance(values, list) else values.unbind(0)
        return self._lane_of[slot][j - self.first if slot in self.recording.moving else j]

    def _filled(self, value: Any) -> Any:
        if isinstance(value, Slot):
            if value.number not in self.values:
                self.values[value.number] = self._lanes.tensor(
                    self.recording.values[value.number][self.first : self.first + self.count]
                )
            return self.values[value.number]
        if isinstance(value, Constant):
            return value.tensor
        if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
            return rebuilt(value, [self._filled(part) for part in value])
        return {key: self._filled(part) for key, part in value.items()} if isinstance(value, dict) else value

    def _keep(self, result: Any, out: Any) -> None:
        if isinstance(result, Slot):
            self.values[result.number] = out
        elif isinstance(result, list | tuple):
            for part, value in zip(result, out, strict=True):
                self._keep(part, value)


class ReplayMode(LoopMode):
    """Answers the operations of a replay that were recorded, with the same arguments, in its round.

    Args:
        rerun: the recorded operations on the accepted states.
        lane: of the step that is replayed.
    """

    def __init__(self, rerun: Rerun, lane: int):
        super().__init__()
        self._rerun, self._lane, self._next = rerun, lane, 0
        self._given: dict[int, tuple[Tensor, int | None]] = {}

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Look an operation up, or run it."""
        known = self.answer(func, args, kwargs or {})
        return func(*args, **(kwargs or {})) if known is None else known

    def answer(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The result of the next recorded operation, if this is the same; else None."""
        operations = self._rerun.recording.operations
        for k in range(self._next, len(operations)):  # what a callback did to the states is no part of the body
            operation = operations[k]
            if func == operation.func and self._same(args, operation.args) and self._same(kwargs, operation.kwargs):
                self._next = k + 1
                return self._made(operation.result)
        return None

    def is_slot(self, value: Any, slot: int) -> bool:
        """Whether a value is that of a slot."""
        if slot not in self._given:
            self._given[slot] = (kept := self._rerun.lane(slot, self._lane)), version(kept)
        known, written = self._given[slot]
        if value is known:
            return written is not None and version(value) == written
        return isinstance(value, Tensor) and written is not None and same_memory(value, known, written)

    def moves(self, slot: int) -> bool:
        """Whether the value of a slot follows the states."""
        return slot in self._rerun.recording.moving

    @property
    def first(self) -> int:
        """The first lane that is replayed."""
        return self._rerun.first

    def filled(self, output: Any, slots: list[int]) -> Any:
        """A denoiser's output for this lane with the values of its slots, which are the same in the same memory."""
        left = iter(slots)
        return joined([output], lambda _: self._made(Slot(next(left))))

    def _same(self, value: Any, recorded: Any) -> bool:
        if isinstance(recorded, Slot):
            return self.is_slot(value, recorded.number)
        if isinstance(recorded, Constant):
            return recorded.is_still(value)
        if type(value) is not type(recorded):
            return False
        if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
            return len(value) == len(recorded) and all(map(self._same, value, recorded))
        if isinstance(value, dict):
            return value.keys() == recorded.keys() and all(self._same(value[key], recorded[key]) for key in value)
        return isinstance(value, _CONSTANTS) and value == recorded

    def _made(self, result: Any) -> Any:
        if isinstance(result, Slot):
            self.is_slot(None, result.number)
            return self._given[result.number][0]
        if isinstance(result, list | tuple):
            return rebuilt(result, [self._made(part) for part in result])
        return result


def _placed(value: Any) -> Any:
    """Arguments or a result with slots in the place of window tensors."""
    if isinstance(value, Tensor):
        slot = getattr(value, "slot", None)
        return Constant(value, version(value)) if slot is None else Slot(slot)
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return rebuilt(value, [_placed(part) for part in value])
    return {key: _placed(part) for key, part in value.items()} if isinstance(value, dict) else value
