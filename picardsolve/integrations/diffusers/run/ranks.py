"""A pass of a pipeline's loop on the ranks of a mesh: rank 0 decides, the others follow.

Rank 0 runs the loop as one process does (`Leading`). The other ranks run their own pipeline one step after the other
(`Following`), without a window: where it calls the denoiser they evaluate the lanes that rank 0 sends them, until rank
0 tells the output of this very step; where it steps they take the state that rank 0 tells. So every rank ends with rank
0's state, no rank but that one decides anything, and no last bit and no clock can let ranks part ways.

    rank 0                                                     another rank
    forward:  its own arguments compared, the first time  <->  the same
              lanes of a share                             ->  work
                                                          <-   outputs
              output of the step, from there or stored     ->  what forward returns
    step:     the state                                    ->  what step returns, after its own
    end:      the report                                   ->
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from picardsolve.distributed import MeshCrew, RankError
from picardsolve.integrations.diffusers.mutable_state import Watch
from picardsolve.integrations.diffusers.report import Report
from picardsolve.integrations.diffusers.run.denoiser_calls import wants_gradient
from picardsolve.integrations.diffusers.run.loop import Loop
from picardsolve.integrations.diffusers.run.nested import joined, tensors
from picardsolve.integrations.diffusers.run.shared_lanes import SharedLanes
from picardsolve.integrations.diffusers.run.stepped import state_of, with_state
from picardsolve.integrations.diffusers.run.window_tensor import WindowTensor, WithoutLoopMode

# Errors of a loop that cannot carry a window of states; it then runs again, one step at a time.
UNFIT = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)


class LoopUnfit(RankError, RuntimeError):
    """The loop of rank 0 failed on a window of states, where one step at a time may work."""


class Ranks:
    """The ranks that share one pass of a loop.

    Args:
        crew: the ranks.
        settings: what all must have alike.
        modules: whose code and weights all must have alike; empty where these were compared.
    """

    def __init__(self, crew: MeshCrew, settings: Mapping[str, Any], modules: list[nn.Module]):
        self.crew, self._settings, self._modules = crew, settings, modules
        self.begun = False

    def begin(self, args: tuple, kwargs: dict) -> None:
        """Compare what ranks run with, at the first call of the loop."""
        if not self.begun:
            self.begun = True
            given = [tensor.detach() for tensor in tensors((args, kwargs))]
            self.crew.begin({**self._settings, "states or conditioning": given}, *self._modules)


class Leading:
    """The loop of rank 0; see `Loop` for its attributes and methods."""

    def __init__(self, loop: Loop, ranks: Ranks):
        self._loop, self._ranks, self._crew = loop, ranks, ranks.crew
        self.report, self.watch = loop.report, loop.watch

    def __iter__(self) -> Iterator[Tensor]:
        yield from self._loop

    @property
    def carrying(self) -> bool:
        """Whether the pipeline has a window of states at the moment."""
        return self._loop.carrying

    def forward(self, module: nn.Module, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Answer a call of a denoiser."""
        if self._loop.busy:  # a part of it that is a module of the pipeline, too
            return original(*args, **kwargs)
        self._ranks.begin(args, kwargs)
        output = self._loop.forward(module, original, args, kwargs)
        self._crew.tell(("output", _alone(output)), last=False)
        return output

    def scale_model_input(self, real: Callable, sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Scale the states of a round."""
        return self._loop.scale_model_input(real, sample, timestep, *args, **kwargs)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take a step."""
        stepped = self._loop.step(*args, **kwargs)
        if self._ranks.begun:
            self._crew.tell(("state", _alone(state_of(stepped))), last=False)
        return stepped

    def close(self) -> None:
        """Make all window tensors plain."""
        self._loop.close()

    def end(self, error: BaseException | None = None) -> None:
        """Be done, or give up for all ranks."""
        if not self._ranks.begun:
            return
        if error is None:
            self._crew.tell(("end", self.report))
        elif self.carrying and isinstance(error, UNFIT):
            self._crew.tell(("unfit", f"{type(error).__name__}: {error}"))
        else:
            self._crew.fail(error)


class Following:
    """The loop of another rank; see `Loop` for its attributes and methods."""

    def __init__(self, timesteps: Tensor, step: Any, shared: SharedLanes, ranks: Ranks):
        self.report, self.watch, self.carrying = Report(steps=len(timesteps)), Watch(), False
        self._timesteps, self._step, self._shared, self._ranks = timesteps, step, shared, ranks
        self._over = self._busy = False

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._timesteps)

    def forward(self, module: nn.Module, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """The output that rank 0 has for this step; this rank's own where a gradient goes through it."""
        if self._busy:
            return original(*args, **kwargs)
        self._shared.stands(module, original, args, kwargs)
        if not self._ranks.begun:
            self._over = True  # unless the ranks are alike
            self._ranks.begin(args, kwargs)
            self._over = False
        output = self._told("output")
        if torch.is_grad_enabled() and wants_gradient(((*args, *module.parameters()), kwargs)):
            self._busy = True
            output = original(*args, **kwargs)
            self._busy = False
        return output

    def scale_model_input(self, real: Callable, sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Scale a state."""
        return real(sample, timestep, *args, **kwargs)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take the real step, which draws noise and counts as it always does, to the state that rank 0 has."""
        stepped = self._step(*args, **kwargs)
        if not self._ranks.begun:
            return stepped
        state = self._told("state")
        self.report.state = state
        self.report.taken += 1
        if getattr(state_of(stepped), "requires_grad", False):
            return stepped
        return with_state(stepped, state)

    def close(self) -> None:
        """There are no window tensors."""

    def end(self, error: BaseException | None = None) -> None:
        """Wait for the end of rank 0's loop, whose report becomes this one's."""
        if self._over or not self._ranks.begun:
            return
        self._over = True
        if error is not None:
            self._ranks.crew.leave(error)
            return
        kind, value = self._served()
        while kind not in ("end", "unfit"):  # this rank has left its loop early
            kind, value = self._served()
        if kind == "end":
            vars(self.report).update(vars(value))

    def _told(self, expected: str) -> Any:
        kind, value = self._served()
        if kind == expected:
            return value
        self._over = kind in ("end", "unfit")
        if kind == "unfit":
            self.carrying = True
            raise LoopUnfit(f"Rank 0's loop failed on a window of states ({value}).")
        raise RankError(f"Rank 0 has another loop than this rank: its next {kind} came for the {expected} here.")

    def _served(self) -> Any:
        """What rank 0 tells next; until then lanes are evaluated."""
        before, self._over, self._busy = self._over, True, True  # if this raises, rank 0 knows, or is gone
        with torch.no_grad(), WithoutLoopMode():
            told = self._ranks.crew.serve()
        self._over, self._busy = before, False
        return told


def _alone(value: Any) -> Any:
    """The first lane of an output, or of a state."""
    return joined([value], lambda found: _first(found[0]))


def _first(tensor: Tensor) -> Tensor:
    return (tensor.items[0] if type(tensor) is WindowTensor else tensor).detach()
