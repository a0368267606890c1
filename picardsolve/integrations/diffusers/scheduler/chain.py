"""A diffusers scheduler, taken as it is, as a chain for the core's window."""

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from picardsolve.extend import Chain, Evaluated, Hold, Index, Steps, rms
from picardsolve.integrations.diffusers.scheduler.closed_form import closed_form
from picardsolve.integrations.diffusers.scheduler.copied_steps import Held, Walk
from picardsolve.integrations.diffusers.scheduler.noise_tape import State
from picardsolve.integrations.diffusers.scheduler.probe import LAGS, Probe, probe_of
from picardsolve.integrations.diffusers.scheduler.table import SchedulerTable

Visit = tuple[Tensor, Tensor]  # the state and the output at one step

_TABLE_ERROR = 1e-4  # a table whose step is further from the scheduler's own, relative to its size, is dropped


@dataclass
class SchedulerChain(Chain):
    """``Phi_n(x) = scheduler.step(output_n, timesteps[n], x)``; the output is what the pipeline passes to ``step``.

    The scheduler is never told that it works ahead. Its steps are taken by a table where a step is a linear map, and
    by copies of the scheduler elsewhere.

    Attributes:
        scheduler: the pipeline's, in the state it has at the window's first step.
        walk: copies of it, stepped ahead.
        use_table: whether rounding in the last bits is allowed; a table differs from the scheduler by that.
    """

    scheduler: Any
    walk: Walk
    use_table: bool
    probe: Probe | None = field(init=False, default=None)
    _closed: SchedulerTable | None = field(init=False, default=None)
    _noise: dict[int, Tensor] = field(init=False, default_factory=dict)
    _past: list[Visit] = field(init=False, default_factory=list)  # the latest accepted steps, as tables need them
    _tail: tuple[int, list[Visit]] = field(init=False, default=(-1, []))  # the same of the window, and where it ends

    def __post_init__(self):
        walk = self.walk
        self.length = len(walk.timesteps)
        if walk.output_shape == walk.shape:
            self._closed = closed_form(self.scheduler, walk.timesteps, walk.extra)
        if self._closed is None:
            self.probe = probe_of(self.scheduler, walk.timesteps, walk.table, walk.extra)
        self._levels = _signal_and_noise(self.scheduler, walk.timesteps)

    # ---- what the window asks for

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The window's steps."""
        return _SchedulerSteps(
            self, int(n[0, 0]), x, outputs, noise_scale=rms(x)
        )  # the only scale that every scheduler has

    def images(self, first: int, x: Tensor, outputs: Tensor) -> Tensor:
        """Steps ``first ...`` of the states ``x``, with the given outputs."""
        table = self._table(first + len(x))
        if table is None:
            return self.walk.images(self.scheduler, first, x, outputs)
        self._note_tail(table, first, x, outputs)
        return table.images(first, x, outputs, self._noise_of(table, first, len(x), x), self._past)

    def path(self, first: int, start: Tensor, outputs: Tensor) -> Tensor:
        """Steps ``first ...`` one after the other from ``start``, with the given outputs."""
        held: list[Held] = [lambda n, y, out=out: out for out in outputs]
        table = self._table(first + len(held))
        if table is None:
            return self.walk.path(self.scheduler, first, start, held)
        noise = self._noise_of(table, first, len(held), start)
        path = table.path(first, start, held, noise, self._past)
        self._note_tail(table, first, torch.cat([start[None], path[:-1]]), outputs)
        return path

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """Go on behind the window with the last output, or towards the last predicted sample."""
        first, held = int(n[0, 0]), [self._held(hold, int(source.step[0, 0]), source)] * len(n)
        table = self._table(first + len(held))
        if table is None:
            return self.walk.go_on(first, start, held)
        end, past = self._tail
        if end != first:  # after a divergence
            past = [(start, source.output)] * table.lags
        past = past[len(past) - table.lags :] if len(past) > table.lags else past
        if hold == "output" or self._levels is None:
            guess = table.held(first, len(n), start, source.output, past)
            if guess is not None:
                return guess
        return table.path(first, start, held, self._noise_of(table, first, len(held), start), past)

    # ---- what the pipeline's loop tells it

    def stand(self, step: int, scheduler: Any, states: State) -> None:
        """The loop has reached ``step``, with the scheduler and the random generators in these states."""
        self.scheduler = scheduler
        if not self.walk.tape.found(step, states):
            self._noise.clear()

    def check(self, step: int, x: Tensor, output: Tensor, image: Tensor) -> None:
        """Drop a table that does not lead from ``x`` to ``image`` in ``step``, as the scheduler really did."""
        table = self._table(step + 1)
        if table is not None:
            noise = self._noise_of(table, step, 1, x)
            ours, image = table.images(step, x[None], output[None], noise, self._past)[0], self.walk.tied(image)
            self.use_table = bool((ours - image).abs().max() <= _TABLE_ERROR * image.abs().max())

    def take(self, step: int, x: Tensor, output: Tensor) -> None:
        """The scheduler has really taken ``step`` from ``x``."""
        if self.probe is not None and self.use_table:  # how much of it is needed shows later
            self._past = [*self._past, (x, output)][-LAGS:]

    def forget(self, step: int) -> None:
        """Drop what was kept for the steps before ``step``."""
        self._noise = {n: noise for n, noise in self._noise.items() if n >= step}
        self.walk.tape.forget(step)

    def held_slopes(self) -> Tensor | None:
        """By how much each step scales a change of its state with the output held fixed, ``(N,)`` float64.

        Where nothing of a predicted sample is clipped. None where it is not known.
        """
        table = self._table(self.length)
        if table is None:
            return None
        return torch.from_numpy(table.x[:, 0] + (0 if table.clip is None else table.clip.q * table.clip.c))

    # ---- how

    def _table(self, end: int) -> SchedulerTable | None:
        """The table, good for the steps before ``end``."""
        if not self.use_table:
            return None
        if self.probe is None:
            return self._closed
        return self.probe.table if self.probe.reach(end) else None

    def _note_tail(self, table: SchedulerTable, first: int, x: Tensor, outputs: Tensor) -> None:
        if self.probe is not None:
            visits = [*self._past, *zip(x[-LAGS:], outputs[-LAGS:], strict=True)]
            self._tail = first + len(x), visits[-LAGS:]

    def _noise_of(self, table: SchedulerTable, first: int, count: int, like: Tensor) -> Tensor | None:
        """The noise that the scheduler will draw in steps ``first ...``, drawn once for each."""
        if not table.noisy[first : first + count].any():
            return None
        walk, tape = self.walk, self.walk.tape
        dtype = table.noise_dtype or walk.output_dtype
        generators = list(tape.generators) if len(tape.generators) > 1 else tape.generators[0]
        with tape.ahead():
            for n in range(first, first + count):
                if n in self._noise:
                    continue
                tape.start(n)
                self._noise[n] = torch.zeros(walk.shape, dtype=dtype, device=like.device)
                if table.noisy[n]:
                    self._noise[n] = randn_tensor(tuple(walk.shape), generators, like.device, dtype)
                tape.end(n)
        noise = [walk.tied(self._noise[n].flatten(1)) for n in range(first, first + count)]
        return torch.stack(noise).to(like.dtype)

    def _held(self, hold: Hold, step: int, source: Evaluated) -> Held:
        """The output to give at a later step."""
        if hold != "sample" or self._levels is None or source.output.shape != source.state.shape:
            return lambda n, y: source.output
        alpha, sigma = self._levels
        kind, a, s = self.scheduler.config.prediction_type, alpha[step], sigma[step]
        if kind == "epsilon":
            sample = (source.state - s * source.output) / a
            return lambda n, y: (y - alpha[n] * sample) / sigma[n]
        if kind == "v_prediction":
            sample = a * source.state - s * source.output
            return lambda n, y: (alpha[n] * y - sample) / sigma[n]
        return lambda n, y: source.output


def _signal_and_noise(scheduler: Any, timesteps: Tensor) -> tuple[list[float], list[float]] | None:
    """Signal and noise at every step, where the state is variance preserving and the scheduler has a table."""
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    prediction = getattr(getattr(scheduler, "config", None), "prediction_type", None)
    if cumulative is None or prediction is None or float(getattr(scheduler, "init_noise_sigma", 0)) != 1:
        return None
    index = timesteps.long().clamp(0, len(cumulative) - 1).to(cumulative.device)
    alpha_bar = cumulative[index].double().cpu()
    return alpha_bar.sqrt().tolist(), (1 - alpha_bar).clamp(min=1e-12).sqrt().tolist()


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

    def passed(self, change: Tensor) -> Tensor:
        moved = self.chain.images(self.first, self.x + change, self.outputs).clone()
        return moved - self.images()
