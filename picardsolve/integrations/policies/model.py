"""The model of a policy at rows of plans, on one device or on several."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.distributed import Copied, Crew, Job, crew_of, spread
from picardsolve.extend import Index

Outcome = TypeVar("Outcome")


class PlanModel(Job):
    """``model(x, t, observation)`` at rows, which several devices may share.

    Args:
        model: see `ParallelPolicy`.
        shape: of a plan.
        mesh: see `ParallelPolicy`.
        devices: see `ParallelPolicy`.
    """

    def __init__(self, model: Callable[..., Any], shape: tuple[int, ...], mesh: Any = None, devices: Any = None):
        self._model, self._shape, self._mesh, self._devices = model, shape, mesh, devices
        self._crew: Crew | None = None
        self._home: torch.device | None = None
        self._number, self._compared = 0, False

    def stands(self, home: torch.device) -> None:
        """Let states be on the device ``home`` from now on."""
        if home != self._home:
            self._crew, self._home = crew_of(self._mesh, self._devices, home), home
            self._number = 0 if self._crew is None else self._crew.enlist(self)

    @property
    def shared(self) -> bool:
        """Whether rows are shared by several devices or ranks."""
        return self._crew is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user about how rows were shared."""
        return () if self._crew is None else tuple(self._crew.notes)

    def together(self, lead: Callable[[], Outcome], settings: Mapping[str, Any]) -> Outcome:
        """What ``lead`` returns, on every rank; the weights of ranks are compared the first time."""
        if self._crew is None:
            return lead()
        reach, self._compared = () if self._compared else (self._model,), True
        return self._crew.together(lead, settings, *reach)

    def __call__(self, observation: Any, batch: int, x: Tensor, t: Tensor, sample: Index | None) -> Tensor:
        """The outputs for states ``(R, D)`` at timesteps ``(R,)`` of plans ``(R,)`` of a batch; None: one of each."""
        if sample is None:
            return self.work((x, t, observation))
        of = torch.from_numpy(sample)

        def row(leaf: Tensor) -> Tensor:
            return leaf.expand(len(of), *leaf.shape[1:]) if batch == 1 else leaf.index_select(0, of.to(leaf.device))

        rows = pytree.tree_map(row, observation)
        if self._crew is None:
            return self.work((x, t, rows))

        def part(own: slice) -> tuple[Tensor, Tensor, Any]:
            return x[own], t[own], pytree.tree_map(lambda leaf: leaf[own], rows)

        return torch.cat(spread(self._crew, self._number, len(t), part))

    def work(self, part: tuple[Tensor, Tensor, Any]) -> Tensor:
        """The outputs of some rows, with their observations."""
        x, t, observation = part
        out = self._model(x.view(-1, *self._shape), t, observation)
        out = getattr(out, "sample", out)
        if not isinstance(out, Tensor) or out.shape != (len(t), *self._shape):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"model: expected to return shape {(len(t), *self._shape)} for {len(t)} rows, got {shape}; return "
                "one prediction for each row of x."
            )
        return out.reshape(len(t), -1).to(x.dtype)

    def on(self, device: torch.device, copied: Copied) -> "PlanModel":
        """The same model on another device."""
        return PlanModel(copied(self._model), self._shape)
