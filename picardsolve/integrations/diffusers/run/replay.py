"""The denoiser's calls of a round, stored until the pipeline's own loop reaches their steps."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state import Snapshot, version
from picardsolve.integrations.diffusers.run.batching import Outputs
from picardsolve.integrations.diffusers.run.nested import copied, described
from picardsolve.integrations.diffusers.run.nested import tensors as flat_tensors
from picardsolve.integrations.diffusers.run.recording import ReplayMode, Rerun
from picardsolve.integrations.diffusers.run.window_tensor import WindowTensor


@dataclass
class Call:
    """One stored call, for one step or for a whole window.

    Attributes:
        form: the part of the arguments that must agree exactly between two calls.
        inputs: the tensors in the arguments; tensors that differ between lanes are stacked.
        versions: version counters of inputs and outputs; they show whether the pipeline has written to a tensor.
        varies: for each input, whether it differs between lanes.
        outputs: outputs of the window, or the output for one step.
        first: step of the first lane.
        memory: the denoiser's internal state after the call.
        slots: for each input, its place in the recording of the round; None where it has none.
        made: places of the tensors in the outputs, in the order of `joined`.
        near: for each replayed lane, whether its inputs were found to be within the tolerance.
    """

    form: Any
    inputs: list[Tensor]
    versions: list[int | None]
    varies: list[bool]
    outputs: Any
    first: int = 0
    memory: Snapshot | None = None
    slots: list[int | None] = field(default_factory=list)
    made: list[int] = field(default_factory=list)
    near: list[bool] = field(default_factory=list)

    @staticmethod
    def of(module: Any, args: tuple, kwargs: dict, outputs: Any, first: int = 0, copying: bool = False) -> "Call":
        """Store a call."""
        form, tensors = _described(module, args, kwargs)
        varies = [isinstance(tensor, WindowTensor) for tensor in tensors]
        inputs = [tensor.stack if isinstance(tensor, WindowTensor) else tensor for tensor in tensors]
        if copying or any(tensor.is_inference() for tensor in inputs):
            inputs = [x.clone() if of_lanes else x for x, of_lanes in zip(inputs, varies, strict=True)]
            outputs = outputs.copied() if isinstance(outputs, Outputs) else copied(outputs)
        call = Call(form, inputs, [], varies, outputs, first)
        call.slots = [getattr(tensor, "slot", None) for tensor in tensors]
        call.versions = call._present()
        return call

    def _present(self) -> list[int | None]:
        return list(map(version, self._tensors))

    @cached_property
    def _tensors(self) -> list[Tensor]:
        outputs = self.outputs.tensors if isinstance(self.outputs, Outputs) else flat_tensors(self.outputs)
        return [*self.inputs, *outputs]

    @property
    def intact(self) -> bool:
        """Whether the inputs and outputs are unmodified since the call."""
        return self._present() == self.versions

    def input(self, number: int, lane: int) -> Tensor:
        """An input for one lane."""
        return self.inputs[number][lane] if self.varies[number] else self.inputs[number]

    def output(self, lane: int) -> Any:
        """The output for one lane."""
        return self.outputs.lane(lane) if isinstance(self.outputs, Outputs) else self.outputs

    def compared(self, rerun: Rerun, tolerance: float) -> Tensor | None:
        """Whether the inputs of lanes that are run again are near those that were evaluated, ``(inputs, S)``."""
        verdicts = []
        for then, slot in zip(self.inputs, self.slots, strict=True):
            if slot is not None and slot in rerun.recording.moving:
                now, then = rerun.stack(slot), then[rerun.first : rerun.first + rerun.count]
                if now.is_floating_point() and now.dim() > 2:
                    distance, size = (torch.linalg.vector_norm(x.float().flatten(2), dim=2) for x in (now - then, then))
                    verdicts.append((distance <= tolerance * size).all(1))
                else:
                    verdicts.append((now == then).flatten(1).all(1))
        return torch.stack(verdicts) if verdicts else None

    def agrees(self, number: int, now: Tensor, lane: int, mode: ReplayMode | None) -> bool:
        """Whether an input is known to agree without a look at its values."""
        slot = self.slots[number]
        if now is self.inputs[number]:
            return True
        if mode is None or slot is None or not mode.is_slot(now, slot):
            return False
        return not mode.moves(slot) or self.near[lane - mode.first]


@dataclass
class Replay:
    """Stored calls of the latest round, by their number within a step.

    Attributes:
        tolerance: largest distance of an input from the stored input, relative to the size of the stored input.
        copying: whether inputs are copied; True once a pipeline has written to an input.
        steps: the steps for which stored outputs may be used.
    """

    tolerance: float
    copying: bool = False
    steps: range = range(0)
    _calls: dict[int, Call] = field(default_factory=dict)

    def recall(
        self, step: int, number: int, module: Any, args: tuple, kwargs: dict, mode: ReplayMode | None = None
    ) -> tuple[bool, Any]:
        """Whether a call agrees with the stored call to the tolerance, and the stored output."""
        call = self._calls.get(number)
        if call is None or step not in self.steps:
            return False, None
        form, tensors = _described(module, args, kwargs)
        if form != call.form:
            return False, None
        if not call.intact:
            self.copying = True
            return False, None
        lane = step - call.first
        for k, now in enumerate(tensors):
            if not call.agrees(k, now, lane, mode) and not self._close(now, call.input(k, lane)):
                return False, None
        output = call.output(lane)
        if self.copying or (call.versions and call.versions[0] is None):
            return True, copied(output)
        return True, output if mode is None or not call.made else mode.filled(output, call.made)

    def _close(self, now: Tensor, then: Tensor) -> bool:
        """Whether two tensors are equal, or two states agree to the tolerance in every sample; NaN equals NaN."""
        if not now.is_floating_point() or now.dim() < 2:
            return torch.equal(now, then)
        distance, size = (torch.linalg.vector_norm(x.flatten(1), dim=1) for x in ((now - then).float(), then.float()))
        if bool((distance <= self.tolerance * size).all()):
            return True
        both = now.isnan() & then.isnan()
        return bool(both.any()) and self._close(now.masked_fill(both, 0), then.masked_fill(both, 0))

    def remember(
        self,
        first: int,
        number: int,
        module: Any,
        args: tuple,
        kwargs: dict,
        outputs: Any,
        memory: Snapshot | None = None,
        made: list[int] | None = None,
    ) -> None:
        """Store one output per lane, or one output for all lanes, for the steps from ``first``."""
        self._calls[number] = call = Call.of(module, args, kwargs, outputs, first, self.copying)
        call.memory, call.made = memory, made or []

    def approve(self, rerun: Rerun) -> None:
        """Compare the inputs of all steps that will be replayed with those that were evaluated: waits once."""
        compared = {number: call.compared(rerun, self.tolerance) for number, call in self._calls.items()}
        asked = [verdicts for verdicts in compared.values() if verdicts is not None]
        found = iter(torch.cat(asked).tolist() if asked else [])
        for number, verdicts in compared.items():
            own = [next(found) for _ in range(0 if verdicts is None else len(verdicts))]
            self._calls[number].near = [all(row[k] for row in own) for k in range(rerun.count)]

    def memory(self, number: int) -> Snapshot | None:
        """The denoiser's internal state after a call."""
        return self._calls[number].memory if number in self._calls else None

    def keep(self, steps: range) -> None:
        """Use stored outputs for these steps only; an empty range drops the stored calls."""
        self.steps = steps
        if not steps:
            self._calls = {}


def _described(module: Any, args: tuple, kwargs: dict) -> tuple[Any, list[Tensor]]:
    form, tensors = described((args, kwargs))
    return (id(module), torch.is_grad_enabled(), form), tensors
