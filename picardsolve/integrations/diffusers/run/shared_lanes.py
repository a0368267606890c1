"""The steps of a round shared by several devices: whole lanes, so that guidance and batches of a step stay together.

A device gets the states of its lanes, and whatever else differs between lanes. All that the lanes have in common, such
as conditioning, it has itself: a rank from its own run of the pipeline, another device of this process from here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from picardsolve.distributed import Copied, Crew, Job, Marks, spread
from picardsolve.integrations.diffusers.mutable_state import Snapshot, WatchedDenoiser
from picardsolve.integrations.diffusers.run.batching import COMPANY, Batch, Chunks
from picardsolve.integrations.diffusers.run.nested import distance, moved, tensors
from picardsolve.integrations.diffusers.run.window_tensor import Lanes, WindowTensor, find

# Where arguments that differ between lanes stand, what stands there for some lanes, how many, and `Batch.nested`.
Part = tuple[list[int], list[Tensor], int, bool]


@dataclass(frozen=True)
class Asked:
    """A call of a denoiser, as the pipeline makes it on this rank.

    Attributes:
        module: the denoiser.
        function: what is called.
        leaves: the arguments, as a list.
        structure: of the arguments.
    """

    module: nn.Module
    function: Callable[..., Any]
    leaves: list[Any]
    structure: Any

    @staticmethod
    def of(module: nn.Module, function: Callable[..., Any], args: tuple, kwargs: dict) -> "Asked":
        """The call with these arguments."""
        return Asked(module, function, *pytree.tree_flatten((args, kwargs)))

    @property
    def owner(self) -> Any:
        """What has the weights: the module, or the function that it stands for."""
        return getattr(self.module, "function", self.module)

    def chunks(self, batch: Batch, function: Callable[..., Any], leaves: Sequence[Any], part: Part) -> Chunks:
        """The outputs of a function for the lanes of a part; ``leaves``: what the lanes have in common, and others."""
        places, stacks, count, batch.nested = part
        lanes, filled = Lanes(count), list(leaves)
        for place, stack in zip(places, stacks, strict=True):
            filled[place] = lanes.tensor(stack)
        args, kwargs = pytree.tree_unflatten(filled, self.structure)
        return batch.chunks(function, list(range(count)), args, kwargs)


class SharedLanes(Job):
    """The lanes of denoiser calls, shared by the workers of a crew.

    Args:
        crew_at: the crew for states on a device.
        limit: largest number of rows in a call, on each device; None for no limit.
        pad: number of lanes in every call of all devices together; None for no padding.

    Attributes:
        workers: how many there are.
        asked: the call at hand.
        marks: of its denoiser, by which copies see that it has changed.
    """

    asked: Asked
    marks: Marks

    def __init__(self, crew_at: Callable[[torch.device], Any], limit: int | None, pad: int | None):
        self._crew_at, self.workers = crew_at, crew_at(torch.device("cpu")).workers
        self._limit, self._pad = limit, None if pad is None else -(-pad // self.workers)
        self._batch, self._number, self._copied = self.batch(), 0, False
        self._crew: Crew | None = None
        self._watched: WatchedDenoiser | None = None
        self._seen: dict[nn.Module, tuple[Snapshot, Marks]] = {}
        self._shares: list[int] = []

    def batch(self) -> Batch:
        """How one device combines lanes."""
        return Batch(self._limit, self._pad)

    def begin(self) -> None:
        """Begin an iteration: a step's lane is on one device in all its calls, those of ControlNets included."""
        self._shares = []

    def stands(self, module: nn.Module, function: Callable[..., Any], args: tuple, kwargs: dict) -> Crew:
        """Let a call be the one at hand; who shares it."""
        self.asked = Asked.of(module, function, args, kwargs)
        given = [one.items[0] if type(one) is WindowTensor else one for one in tensors((args, kwargs))]
        home = max(given, key=torch.Tensor.dim).device if given else torch.device("cpu")
        crew = self._crew_at(home)
        if crew is not self._crew:
            self._crew, self._number = crew, crew.enlist(self)
        return crew

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for the user about how lanes were shared."""
        return () if self._crew is None else self._crew.notes

    def chunks(
        self,
        watched: WatchedDenoiser,
        function: Callable[..., Any],
        lanes: list[int],
        args: tuple,
        kwargs: dict,
        nested: bool,
    ) -> Chunks | None:
        """The outputs for some lanes; None where arguments are in containers that torch does not know.

        Raises:
            picardsolve.distributed.RankError: a rank was lost, or failed.
        """
        crew, leaves = self.stands(watched.module, function, args, kwargs), self.asked.leaves
        places = [k for k, leaf in enumerate(leaves) if type(leaf) is WindowTensor]
        if len(places) != len(find((args, kwargs))):
            return None
        self._watched = watched
        if self._copied:
            self._look()
        if sum(self._shares) != len(lanes):
            self._shares = crew.shares(len(lanes))

        def part(own: slice) -> Part:
            mine = lanes[own]
            return places, [leaves[k].stack[mine] for k in places], len(mine), nested

        found = spread(crew, self._number, len(lanes), part, shares=self._shares)
        return [chunk for chunks in found for chunk in chunks]

    def work(self, part: Part) -> Chunks:
        """The outputs for some lanes, from this process's own denoiser."""
        return self.asked.chunks(self._batch, self.asked.function, self.asked.leaves, part)

    def on(self, device: torch.device, copied: Copied) -> Job:
        """The same by a copy of the denoiser."""
        self._copied = True
        self._look()
        return LanesElsewhere(self, device, copied)

    def _look(self) -> None:
        """See whether the denoiser is as it was when it was last copied."""
        watched = self._watched
        assert watched is not None
        seen = self._seen.get(watched.module)
        if seen is None or not watched.same_as(seen[0]):
            seen = self._seen[watched.module] = watched.now, Marks(self.asked.owner)
        self.marks = seen[1]


class LanesElsewhere(Job):
    """The same on another device of this process, by a copy of the denoiser there."""

    def __init__(self, here: SharedLanes, device: torch.device, copied: Copied):
        self._here, self._device, self._copied, self._batch = here, device, copied, here.batch()

    def work(self, part: Part) -> Chunks:
        """The outputs for some lanes."""
        asked = self._here.asked
        leaves = [leaf if type(leaf) is WindowTensor else self._to(leaf) for leaf in asked.leaves]
        owner = self._copied(asked.owner, self._here.marks, lambda copy: self._check(copy, asked, leaves, part))
        return asked.chunks(self._batch, _called(owner), leaves, part)

    def on(self, device: torch.device, copied: Copied) -> Job:
        """The same on one more device."""
        return LanesElsewhere(self._here, device, copied)

    def _to(self, leaf: Any) -> Any:
        """What lanes have in common, on this device; a single number may stay on the host."""
        return leaf.to(self._device) if isinstance(leaf, Tensor) and (leaf.dim() or leaf.is_cuda) else leaf

    def _check(self, copy: Any, asked: Asked, leaves: list[Any], part: Part) -> None:
        """Compare a copy that was just made with what it is a copy of, at one lane.

        Raises:
            RuntimeError: their outputs are not the same.
        """
        places, stacks, _, nested = part
        own = places, [stack[:1] for stack in stacks], 1, nested
        home = [asked.leaves[place].items[0].device for place in places]
        there = places, [stack[:1].to(device) for stack, device in zip(stacks, home, strict=True)], 1, nested
        ((found, _, _),) = asked.chunks(self._here.batch(), _called(copy), leaves, own)
        ((expected, _, _),) = asked.chunks(self._here.batch(), asked.function, asked.leaves, there)
        far = distance(moved(found, home[0]), moved(expected, home[0]))
        if not far <= COMPANY:
            raise RuntimeError(
                f"its copy of {type(asked.module).__name__} gives outputs that differ by {far:.1g} of their size"
            )


def _called(owner: Any) -> Callable[..., Any]:
    """What of a copy is called in the place of the original forward."""
    return owner.forward if isinstance(owner, nn.Module) else owner
