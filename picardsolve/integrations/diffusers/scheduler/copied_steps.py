"""Steps taken by copies of a diffusers scheduler: exact for every scheduler, one step at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state import equal, independent
from picardsolve.integrations.diffusers.scheduler.noise_tape import NoiseTape

OutputAt: TypeAlias = Callable[[int, Tensor], Tensor]  # output of a step, from the step's number and state
PATCHED = ("set_timesteps", "step", "scale_model_input", "__deepcopy__")


def copy_of(scheduler: Any, timesteps: Tensor) -> Any:
    """A copy of the scheduler, whose steps leave the original unchanged; TypeError if it cannot be copied."""
    copied = object.__new__(type(scheduler))
    memo = {id(scheduler): copied}
    for name, value in vars(scheduler).items():
        if name not in PATCHED and name != "timesteps":
            copied.__dict__[name] = independent(value, memo)
    copied.__dict__["timesteps"] = timesteps
    return copied


@dataclass
class CopiedSteps:
    """The scheduler's own steps, taken ahead by copies.

    Attributes:
        timesteps: ``(N,)``, the loop's timesteps.
        own: the scheduler's own timesteps; a pipeline may iterate a part of them.
        shape: shape of the state, batch first.
        output_shape: shape of ``model_output``.
        dtype: dtype of the state.
        output_dtype: dtype of the output.
        extra: further keyword arguments of ``step``.
        tape: states of the generators that ``step`` may draw from.
        form: shape of the timestep that ``step`` gets.
        ties: rows of the batch that the loop overwrites before the next step, and the rows that it copies there.
        ahead: the copy that took the latest steps.
        ahead_at: the step at which that copy stands.
    """

    timesteps: Tensor
    own: Tensor
    shape: torch.Size
    output_shape: torch.Size
    dtype: torch.dtype
    output_dtype: torch.dtype
    extra: dict[str, Any]
    tape: NoiseTape
    form: tuple[int, ...] = ()
    ties: tuple[list[int], list[int]] | None = None
    ahead: Any = None
    ahead_at: int = -1

    def images(self, scheduler: Any, first: int, x: Tensor, outputs: Tensor) -> Tensor:
        """Steps ``first ...``, each from its own state in ``x``, with the given outputs; ``(W, B, D)``."""
        return self._take(scheduler, first, [lambda n, y, out=out: out for out in outputs], x[0], x)

    def path(self, scheduler: Any, first: int, start: Tensor, given: list[OutputAt]) -> Tensor:
        """Steps ``first ...`` one after the other from ``start``, ``(B, D)``."""
        return self._take(scheduler, first, given, start, None)

    def go_on(self, first: int, start: Tensor, given: list[OutputAt]) -> Tensor:
        """Further steps after the latest ones; copies of ``start`` where the latest steps ended elsewhere."""
        if first != self.ahead_at:  # after a divergence, where taking the window's steps again gains nothing
            return start.expand(len(given), *start.shape)
        return self._take(self.ahead, first, given, start, None)

    def _take(self, scheduler: Any, first: int, given: list[OutputAt], y: Tensor, x: Tensor | None) -> Tensor:
        ahead, taken = copy_of(scheduler, self.own), []
        with self.tape.ahead():
            for j, output in enumerate(given):
                y = y if x is None else x[j]
                y = self._step(ahead, first + j, output(first + j, y), y)
                taken.append(y)
        self.ahead, self.ahead_at = ahead, first + len(given)
        return torch.stack(taken)

    def _step(self, scheduler: Any, n: int, output: Tensor, x: Tensor) -> Tensor:
        self.tape.start(n)
        stepped = type(scheduler).step(
            scheduler,
            output.reshape(self.output_shape).to(self.output_dtype),
            self.timesteps[n].expand(self.form),
            x.reshape(self.shape).to(self.dtype),
            **self.extra,
            return_dict=False,
        )[0]
        self.tape.end(n)
        return self.tied(stepped.reshape(len(x), -1).to(x.dtype))

    def tied(self, rows: Tensor) -> Tensor:
        """Rows ``(B, ...)`` after the loop has overwritten the tied rows."""
        if self.ties is not None:
            rows = rows.clone()
            rows[self.ties[0]] = rows[self.ties[1]]
        return rows

    def note_ties(self, handed: Tensor, found: Tensor) -> bool:
        """Whether the loop changed a state only by copying rows over others, as guidance on a doubled batch does."""
        if equal(self.tied(handed), found):
            return True
        if handed.shape != found.shape:
            return False
        same = [equal(before, now) for before, now in zip(handed, found, strict=True)]
        kept = [row for row, unchanged in enumerate(same) if unchanged]
        rows = [row for row, unchanged in enumerate(same) if not unchanged]
        sources = [next((other for other in kept if equal(found[row], found[other])), None) for row in rows]
        if None in sources:
            return False
        self.ties = rows, [source for source in sources if source is not None]
        return True
