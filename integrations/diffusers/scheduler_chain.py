"""A diffusers scheduler, taken as it is, as a chain for the core's window."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from integrations.diffusers.step_table import StepTable
from picardsolve.integrators.base import Chain, Evaluated, Hold, Index, Steps
from picardsolve.recurrence import rms

Output: TypeAlias = Callable[[int, Tensor], Tensor]  # what to give at a step, in a state
PATCHED = ("set_timesteps", "step", "scale_model_input")


def copy_of(scheduler: Any, timesteps: Tensor) -> Any:
    """The scheduler in its present state; stepping the copy leaves the original alone. Its tables are shared.

    Lists are copied, and so are tensors of states, which some schedulers add to in place.
    """
    copied = object.__new__(type(scheduler))
    for name, value in vars(scheduler).items():
        if name not in PATCHED:
            if isinstance(value, Tensor):
                value = value.clone() if value.dim() > 1 else value
            elif type(value) in (list, dict, set):
                value = value.copy()
            copied.__dict__[name] = value
    copied.__dict__["timesteps"] = timesteps
    return copied


@dataclass
class NoiseTape:
    """The states of the random generators before each step: what makes a step's noise a function of the step.

    The first visit of a step finds the generators where the sequential loop would have left them; every later visit
    is given the same state again.
    """

    generators: Sequence[torch.Generator]
    before: dict[int, list[Tensor]] = field(default_factory=dict)

    def states(self) -> list[Tensor]:
        """The generators' present states."""
        return [generator.get_state() for generator in self.generators]

    def wind(self, states: list[Tensor]) -> None:
        """Put the generators into given states."""
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)

    def forget(self, step: int) -> None:
        """Drop the states of the steps before ``step``."""
        for old in [n for n in self.before if n < step]:
            del self.before[old]


@dataclass
class SchedulerChain(Chain):
    """``Phi_n(x) = scheduler.step(output_n, timesteps[n], x)``; the output is what the pipeline passes to ``step``.

    The scheduler is never told that it works ahead: copies of it take the steps, one after the other, with its own
    history, clipping and noise.

    Attributes:
        scheduler: the pipeline's, standing at the window's first step whenever the window is told.
        timesteps: ``(N,)`` the loop's timesteps.
        shape: of the state, batch first.
        dtype: of the state.
        table: the scheduler's own timesteps, of which a pipeline may iterate a part.
        extra: further arguments of ``step``, by name.
        tape: of the generators that ``step`` may draw from.
        fast: all steps of a window at once, for schedulers that have that.
    """

    scheduler: Any
    timesteps: Tensor
    table: Tensor
    shape: torch.Size
    output_shape: torch.Size
    dtype: torch.dtype
    extra: dict[str, Any]
    tape: NoiseTape
    fast: StepTable | None = None
    _ahead: Any = None
    _ahead_at: int = -1
    _noise: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.length = len(self.timesteps)

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The window's steps, taken by a copy of the scheduler."""
        return _SchedulerSteps(self, int(n[0, 0]), x, outputs)

    def images(self, first: int, x: Tensor, outputs: Tensor) -> Tensor:
        """Steps ``first ...`` of the states ``x``, with the given outputs."""
        if self.fast is not None:
            noise = self._noise_of(self.fast, first, len(x), x)
            return self.fast.step(slice(first, first + len(x)), outputs, x, noise)
        return self._walk(self.scheduler, first, x[0], [lambda n, y, out=out: out for out in outputs], x)

    def path(self, first: int, start: Tensor, outputs: Tensor) -> Tensor:
        """Steps ``first ...`` one after the other from ``start``, with the given outputs."""
        held: list[Output] = [lambda n, y, out=out: out for out in outputs]
        if self.fast is not None:
            return self._fast_path(self.fast, first, start, held)
        return self._walk(self.scheduler, first, start, held)

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """Go on behind the window with the last output, or towards the last predicted sample."""
        first, held = int(n[0, 0]), [self._held(hold, int(source.step[0, 0]), source)] * len(n)
        if self.fast is not None:
            return self._fast_path(self.fast, first, start, held)
        if first != self._ahead_at:  # after a divergence: not worth walking the window again
            return start.expand(len(n), *start.shape)
        return self._walk(self._ahead, first, start, held)

    def _walk(self, scheduler: Any, first: int, y: Tensor, outputs: list[Output], x: Tensor | None = None) -> Tensor:
        """Steps of a copy of ``scheduler``: one after the other from ``y``, or each from its own state of ``x``."""
        ahead, images = copy_of(scheduler, self.table), []
        present = self.tape.states()
        for j, output in enumerate(outputs):
            y = y if x is None else x[j]
            y = self._step(ahead, first + j, output(first + j, y), y)
            images.append(y)
        self._ahead, self._ahead_at = ahead, first + len(outputs)
        self.tape.wind(present)
        return torch.stack(images)

    def _fast_path(self, fast: StepTable, first: int, y: Tensor, outputs: list[Output]) -> Tensor:
        states, noise = [], self._noise_of(fast, first, len(outputs), y)
        for j, output in enumerate(outputs):
            at = slice(first + j, first + j + 1)
            drawn = None if noise is None else noise[j : j + 1]
            y = fast.step(at, output(first + j, y)[None], y[None], drawn)[0]
            states.append(y)
        return torch.stack(states)

    def _noise_of(self, fast: StepTable, first: int, count: int, like: Tensor) -> Tensor | None:
        """The noise that the scheduler will draw in steps ``first ...``, drawn once for each."""
        tape = self.tape
        if not bool(fast.noisy.any()):
            return None
        present = tape.states()
        generators = list(tape.generators) if len(tape.generators) > 1 else tape.generators[0]
        for n in range(first, first + count):
            if n in self._noise:
                continue
            tape.wind(tape.before.setdefault(n, present))
            self._noise[n] = torch.zeros(self.shape, dtype=self.dtype, device=like.device)
            if bool(fast.noisy[n]):
                self._noise[n] = randn_tensor(tuple(self.shape), generators, like.device, self.dtype)
            tape.before.setdefault(n + 1, tape.states())
        tape.wind(present)
        return torch.stack([self._noise[n].flatten(1) for n in range(first, first + count)]).to(like.dtype)

    def forget(self, step: int) -> None:
        """Drop what was kept for the steps before ``step``."""
        self._noise = {n: noise for n, noise in self._noise.items() if n >= step}
        self.tape.forget(step)

    def increments(self, n: Index, sample: Index) -> Tensor:
        """None: the scheduler draws its own noise."""
        return torch.zeros(len(n), 0)

    def _step(self, scheduler: Any, n: int, output: Tensor, x: Tensor) -> Tensor:
        tape = self.tape
        tape.wind(tape.before.setdefault(n, tape.states()))
        stepped = type(scheduler).step(
            scheduler,
            output.reshape(self.output_shape).to(self.dtype),
            self.timesteps[n],
            x.reshape(self.shape).to(self.dtype),
            **self.extra,
            return_dict=False,
        )[0]
        if n + 1 not in tape.before:
            tape.before[n + 1] = tape.states()
        return stepped.reshape(len(x), -1).to(x.dtype)

    def _held(self, hold: Hold, step: int, source: Evaluated) -> Output:
        """The output to give at a later step."""
        levels = self._levels() if hold == "sample" else None
        if levels is None or source.output.shape != source.state.shape:
            return lambda n, y: source.output
        alpha, sigma = levels
        kind = self.scheduler.config.prediction_type
        a, s = alpha[step], sigma[step]
        if kind == "epsilon":
            sample = (source.state - s * source.output) / a
            return lambda n, y: (y - alpha[n] * sample) / sigma[n]
        if kind == "v_prediction":
            sample = a * source.state - s * source.output
            return lambda n, y: (alpha[n] * y - sample) / sigma[n]
        return lambda n, y: source.output

    def _levels(self) -> tuple[Tensor, Tensor] | None:
        """Signal and noise at every step, where the state is variance preserving and the scheduler has a table."""
        table, prediction = (
            getattr(self.scheduler, "alphas_cumprod", None),
            getattr(getattr(self.scheduler, "config", None), "prediction_type", None),
        )
        if table is None or prediction is None or float(getattr(self.scheduler, "init_noise_sigma", 0)) != 1:
            return None
        index = self.timesteps.long().clamp(0, len(table) - 1).to(table.device)
        alpha_bar = table[index].to(self.timesteps.device)
        return alpha_bar.sqrt(), (1 - alpha_bar).clamp(min=1e-12).sqrt()


@dataclass(frozen=True)
class _SchedulerSteps(Steps):
    chain: SchedulerChain
    first: int
    x: Tensor
    outputs: Tensor

    def images(self) -> Tensor:
        return self.chain.images(self.first, self.x, self.outputs)

    def frozen(self, x: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        y = self.chain.path(self.first, x[0], self.outputs)
        return y, torch.sub(y, x[1:], out=scratch), None

    def noise_scale(self) -> Tensor | None:
        """The size of the states: the only scale that every scheduler has."""
        return rms(self.x)
