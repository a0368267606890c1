"""Steps of a diffusers scheduler taken by copies of it: exact for every scheduler, one step at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state import independent
from picardsolve.integrations.diffusers.scheduler.noise_tape import NoiseTape

Held: TypeAlias = Callable[[int, Tensor], Tensor]  # the output to give at a step, in a state
PATCHED = ("set_timesteps", "step", "scale_model_input", "__deepcopy__")


def copy_of(scheduler: Any, timesteps: Tensor) -> Any:
    """The scheduler in its present state; stepping the copy leaves the original alone, whatever it keeps.

    Raises:
        TypeError: it keeps what cannot be copied.
    """
    copied = object.__new__(type(scheduler))
    memo = {id(scheduler): copied}
    for name, value in vars(scheduler).items():
        if name not in PATCHED and name != "timesteps":
            copied.__dict__[name] = independent(value, memo)
    copied.__dict__["timesteps"] = timesteps
    return copied


@dataclass
class Walk:
    """The scheduler's own steps, ahead of it.

    Attributes:
        timesteps: ``(N,)`` the loop's timesteps.
        table: the scheduler's own timesteps, of which a pipeline may iterate a part.
        shape: of the state, batch first.
        output_shape: of what ``step`` is given as ``model_output``.
        dtype: of the state.
        output_dtype: of the output.
        extra: further arguments of ``step``, by name.
        tape: of the generators that ``step`` may draw from.
        form: the shape in which ``step`` is given its time.
        ties: rows of the batch that the loop overwrites with others before the next step, and those others.
        ahead: the copy that took the latest steps, standing at step ``ahead_at``.
    """

    timesteps: Tensor
    table: Tensor
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

    def path(self, scheduler: Any, first: int, start: Tensor, held: list[Held]) -> Tensor:
        """Steps ``first ...`` one after the other from ``start``, ``(B, D)``."""
        return self._take(scheduler, first, held, start, None)

    def go_on(self, first: int, start: Tensor, held: list[Held]) -> Tensor:
        """Further steps behind the latest ones; copies of ``start`` where the latest ones ended elsewhere."""
        if first != self.ahead_at:  # after a divergence: not worth walking the window again
            return start.expand(len(held), *start.shape)
        return self._take(self.ahead, first, held, start, None)

    def _take(self, scheduler: Any, first: int, held: list[Held], y: Tensor, x: Tensor | None) -> Tensor:
        ahead, taken = copy_of(scheduler, self.table), []
        with self.tape.ahead():
            for j, output in enumerate(held):
                y = y if x is None else x[j]
                y = self._step(ahead, first + j, output(first + j, y), y)
                taken.append(y)
        self.ahead, self.ahead_at = ahead, first + len(held)
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
        """Rows as the loop will leave them, ``(B, ...)``."""
        if self.ties is not None:
            rows = rows.clone()
            rows[self.ties[0]] = rows[self.ties[1]]
        return rows
