"""The denoiser's calls of a round, remembered until the pipeline's own loop reaches their steps."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state import Snapshot, version
from picardsolve.integrations.diffusers.run.batching import Outputs
from picardsolve.integrations.diffusers.run.nested import copied, described
from picardsolve.integrations.diffusers.run.nested import tensors as flat_tensors
from picardsolve.integrations.diffusers.run.window_tensor import WindowTensor


@dataclass
class Call:
    """One call, for one step or for a whole window.

    Attributes:
        form: what must agree exactly between two calls.
        inputs: its tensors; those that differ between lanes are stacked.
        versions: of the inputs and the outputs, since a pipeline may write to them afterwards.
        varies: which of the inputs differ between lanes.
        outputs: of the window, or the output for one step.
        first: the step of the first lane.
        memory: what the denoiser remembered after the call.
    """

    form: Any
    inputs: list[Tensor]
    versions: list[int | None]
    varies: list[bool]
    outputs: Any
    first: int = 0
    memory: Snapshot | None = None

    @staticmethod
    def of(module: Any, args: tuple, kwargs: dict, outputs: Any, first: int = 0, copying: bool = False) -> "Call":
        """Remember a call."""
        form, tensors = _described(module, args, kwargs)
        varies = [isinstance(tensor, WindowTensor) for tensor in tensors]
        inputs = [tensor.stack if isinstance(tensor, WindowTensor) else tensor for tensor in tensors]
        if copying or any(tensor.is_inference() for tensor in inputs):
            inputs = [x.clone() if of_lanes else x for x, of_lanes in zip(inputs, varies, strict=True)]
            outputs = outputs.copied() if isinstance(outputs, Outputs) else copied(outputs)
        call = Call(form, inputs, [], varies, outputs, first)
        call.versions = call._present()
        return call

    def _present(self) -> list[int | None]:
        outputs = self.outputs.tensors if isinstance(self.outputs, Outputs) else flat_tensors(self.outputs)
        return [version(x) for x in (*self.inputs, *outputs)]

    @property
    def intact(self) -> bool:
        """Whether nobody has written to its inputs and outputs."""
        return self._present() == self.versions

    def input(self, number: int, lane: int) -> Tensor:
        """An input for one lane."""
        return self.inputs[number][lane] if self.varies[number] else self.inputs[number]

    def output(self, lane: int) -> Any:
        """The output for one lane."""
        return self.outputs.lane(lane) if isinstance(self.outputs, Outputs) else self.outputs


@dataclass
class Replay:
    """Remembered calls of the latest round, by their number within a step.

    Attributes:
        tolerance: largest distance of an input from the remembered one, relative to its size.
        copying: whether inputs are copied: once a pipeline has written to them.
        steps: the steps for which remembered outputs may be used.
    """

    tolerance: float
    copying: bool = False
    steps: range = range(0)
    _calls: dict[int, Call] = field(default_factory=dict)

    def recall(self, step: int, number: int, module: Any, args: tuple, kwargs: dict) -> tuple[bool, Any]:
        """Whether a call is the remembered one, to the tolerance; and its output."""
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
            then = call.inputs[k]
            if now is not then and not self._close(now, call.input(k, lane)):
                return False, None
        output = call.output(lane)
        return True, copied(output) if self.copying or (call.versions and call.versions[0] is None) else output

    def _close(self, now: Tensor, then: Tensor) -> bool:
        """Whether two tensors are equal, or two states agree to tolerance in every sample; NaN is equal to NaN."""
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
    ) -> None:
        """Keep the outputs of a batched call, or the output of one call for all lanes, for the steps from ``first``."""
        self._calls[number] = call = Call.of(module, args, kwargs, outputs, first, self.copying)
        call.memory = memory

    def memory(self, number: int) -> Snapshot | None:
        """The denoiser's memory after a call."""
        return self._calls[number].memory if number in self._calls else None

    def keep(self, steps: range) -> None:
        """Use remembered outputs for these steps only; without steps, drop the calls."""
        self.steps = steps
        if not steps:
            self._calls = {}


def _described(module: Any, args: tuple, kwargs: dict) -> tuple[Any, list[Tensor]]:
    form, tensors = described((args, kwargs))
    return (id(module), torch.is_grad_enabled(), form), tensors
