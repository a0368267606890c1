"""Steps of a diffusers scheduler by copies of it: exact for every scheduler, one step at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state import equal, independent
from picardsolve.integrations.diffusers.scheduler.noise_tape import NoiseTape

OutputAt: TypeAlias = Callable[[int, Tensor], Tensor]  # the output that a step is given, from its number and its state
PATCHED = ("set_timesteps", "step", "scale_model_input", "__deepcopy__")


def copy_of(scheduler: Any, timesteps: Tensor) -> Any:
    """The scheduler in its present state; steps of the copy change nothing in the original.

    Raises:
        TypeError: the scheduler keeps something that cannot be copied.
    """
    copied = object.__new__(type(scheduler))
    memo = {id(scheduler): copied}
    for name, value in vars(scheduler).items():
        if name not in PATCHED and name != "timesteps":
            copied.__dict__[name] = independent(value, memo)
    copied.__dict__["timesteps"] = timesteps
    return copied


@dataclass
class CopiedSteps:
    """The scheduler's own steps, taken ahead of it.

    Attributes:
        timesteps: ``(N,)`` the loop's timesteps.
        own: the scheduler's own timesteps; a pipeline may iterate a part of them.
        shape: of the state, batch first.
        output_shape: of ``model_output``.
        dtype: of the state.
        output_dtype: of the output.
        extra: further arguments of ``step``, by name.
        tape: of the generators that ``step`` may draw from.
        form: the shape in which ``step`` gets its time.
        ties: rows of the batch that the loop overwrites with other rows before the next step, and these other rows.
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
        """Steps ``first ...``, each from its own state of ``x``, with the given outputs; ``(W, B, D)``."""
        return self._take(scheduler, first, [lambda n, y, out=out: out for out in outputs], x[0], x)

    def path(self, scheduler: Any, first: int, start: Tensor, given: list[OutputAt]) -> Tensor:
        """Steps ``first ...`` one after the other from ``start``, ``(B, D)``."""
        return self._take(scheduler, first, given, start, None)

    def go_on(self, first: int, start: Tensor, given: list[OutputAt]) -> Tensor:
        """Further steps after the latest ones; copies of ``start`` where the latest ones ended elsewhere."""
        if first != self.ahead_at:  # after a divergence: the window's steps are not worth taking again
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
        """Rows ``(B, ...)`` as the loop will leave them."""
        if self.ties is not None:
            rows = rows.clone()
            rows[self.ties[0]] = rows[self.ties[1]]
        return rows

    def note_ties(self, handed: Tensor, found: Tensor) -> bool:
        """Whether the loop's only change of a state is that rows were overwritten with other rows.

        Guidance on a doubled batch does that.
        """
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
