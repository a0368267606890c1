"""The steps of a round shared by ranks that all run the same pipeline.

Every rank has the states and the conditioning of all steps. It evaluates whole lanes, guidance and ControlNets of a
step together, and gets the outputs of the others. So all ranks go on from the same bits.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from picardsolve.distributed import Copied, Job, RankError, crew_of, spread
from picardsolve.integrations.diffusers.run.nested import tensors
from picardsolve.integrations.diffusers.run.window_tensor import WindowTensor

Chunks = list[tuple[Any, int, int]]  # for each call its output, its number of lanes, and how many are not padding


class SharedLanes(Job):
    """The lanes of a denoiser call, shared by the ranks of a mesh.

    Args:
        mesh: see `sampler`.
        modules: whose weights are compared before the first round.

    Attributes:
        workers: how many share them.
    """

    def __init__(self, mesh: Any, modules: list[nn.Module]):
        crew = crew_of(mesh, None, torch.device("cpu"))
        assert crew is not None
        self._crew, self._modules, self.workers = crew, modules, crew.workers
        self._number, self._compared = crew.enlist(self), False

    def __call__(self, lanes: list[int], evaluated: Callable[[list[int]], Chunks], given: Any) -> Chunks:
        """The chunks of all lanes.

        Args:
            lanes: of the call.
            evaluated: makes the chunks of some lanes.
            given: the arguments of the call.

        Raises:
            RankError: a rank was lost, or failed, or has parted ways with the others.
        """
        self._evaluated = evaluated
        alike: dict[str, Any] = {"lanes of a round": lanes}
        reach: list[Any] = []
        if not self._compared:
            stacks = [one.stack if isinstance(one, WindowTensor) else one for one in tensors(given)]
            alike["states or conditioning"] = [stack.detach().as_subclass(torch.Tensor) for stack in stacks]
            reach, self._compared = self._modules, True

        def lead() -> Chunks:
            parts = spread(self._crew, self._number, len(lanes), lambda own: lanes[own])
            return [chunk for part in parts for chunk in part]

        try:
            return self._crew.together(lead, alike, *reach)
        except RankError:
            raise
        except Exception as error:  # to go on one step at a time would leave the other ranks behind
            raise RankError(
                f"The denoiser failed on this rank's steps of a round ({type(error).__name__}: {error}); pass "
                "window=1, or leave mesh out."
            ) from error

    def work(self, part: list[int]) -> Chunks:
        """The chunks of some lanes."""
        return self._evaluated(part)

    def on(self, device: torch.device, copied: Copied) -> Job:
        """Not for devices of one process."""
        raise ValueError("mesh: of ranks.")
