"""The states of a round as the pipeline received them."""

from dataclasses import dataclass

from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state import version
from picardsolve.integrations.diffusers.run.recording import Recording
from picardsolve.integrations.diffusers.run.window_tensor import WindowTensor


@dataclass(frozen=True)
class Handed:
    """The states of the next round, as the pipeline received them.

    Attributes:
        carried: all states.
        version: their version at that time; None where torch counts none.
        state: the first of them.
        recording: takes what the loop body makes of them.
    """

    carried: WindowTensor
    version: int | None
    state: Tensor
    recording: Recording

    def intact(self, sample: Tensor) -> bool:
        """Whether the pipeline returns these states, unmodified."""
        return self.version is not None and sample is self.carried and version(self.carried.stack) == self.version
