"""A diffusers scheduler, unchanged, as a chain for the core's window."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from picardsolve.extend import Chain, Evaluated, Hold, Index, Steps, Visit, rms
from picardsolve.integrations.diffusers.scheduler.closed_form import closed_form
from picardsolve.integrations.diffusers.scheduler.copied_steps import CopiedSteps, OutputAt
from picardsolve.integrations.diffusers.scheduler.noise_tape import State, same
from picardsolve.integrations.diffusers.scheduler.probe import LAGS, Probe, probe_of, scaled_ahead
from picardsolve.integrations.diffusers.scheduler.table import SchedulerTable

WIDE = (torch.float32, torch.float64)  # types of states that are kept as they are
_TABLE_ERROR = 1e-4  # largest distance between a table's step and the scheduler's, relative to its size
_ROUNDING = 16  # distance between the two, in units of single precision, that is rounding
# Average distance in half precision, in units of it, where the scheduler rounds its result only, as the table does. Of
# those that round every operation, coefficients included, the table would lead away over many steps.
_HALF_ROUNDING = 0.25


@dataclass
class SchedulerChain(Chain):
    """``Phi_n(x) = scheduler.step(output_n, timesteps[n], x)``; the output is what the pipeline passes to ``step``.

    The pipeline's own scheduler takes no step ahead. A table takes these steps where the step is linear. Elsewhere
    copies of the scheduler take them.

    Attributes:
        scheduler: the pipeline's scheduler, in its state at the window's first step.
        copies: copies of the scheduler, which take steps ahead.
        use_table: whether a table may be used; its rounding differs from the scheduler's in the last bits.
        probe: measures the table; None where a closed form is known.
        agrees: whether the table's latest step that was compared differed from the scheduler's by rounding only.
        at: the latest step of the loop that is known of.
        joined: how many of the latest steps started from the results of the steps before them.
    """

    scheduler: Any
    copies: CopiedSteps
    use_table: bool
    probe: Probe | None = field(init=False, default=None)
    agrees: bool = field(init=False, default=False)
    at: int = field(init=False, default=-1)
    joined: int = field(init=False, default=0)
    _closed: SchedulerTable | None = field(init=False, default=None)
    _noise: dict[int, Tensor] = field(init=False, default_factory=dict)
    _past: list[Visit] = field(init=False, default_factory=list)  # latest accepted steps, for tables with memory
    _tail: tuple[int, list[Visit]] = field(init=False, default=(-1, []))  # the window's end, and its latest steps

    def __post_init__(self):
        copies = self.copies
        self.length = len(copies.timesteps)
        if copies.output_shape == copies.shape:
            self._closed = closed_form(self.scheduler, copies.timesteps, copies.extra)
        if self._closed is None:
            self.probe = probe_of(self.scheduler, copies.timesteps, copies.own, copies.extra)
        self._levels = _signal_and_noise(self.scheduler, copies.timesteps)

    # ---- for the window

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The window's steps; their noise scale is the size of the states, the only scale that every scheduler has."""
        return _SchedulerSteps(self, int(n[0, 0]), x, outputs, noise_scale=rms(x))

    def images(self, first: int, x: Tensor, outputs: Tensor) -> Tensor:
        """Steps ``first ...``, each from its own state in ``x``, with the given outputs."""
        table = self._table(first + len(x))
        if table is None:
            return self.copies.images(self.scheduler, first, x, outputs)
        self._note_tail(first, x, outputs)
        return self._rounded(table.images(first, x, outputs, self._noise_of(table, first, len(x), x), self._past))

    def path(self, first: int, x: Tensor, outputs: Tensor) -> Tensor:
        """Steps ``first ...`` one after the other from ``x[0]``, with the given outputs; ``x`` is near the path."""
        table, count = self._table(first + len(outputs)), len(outputs)
        if table is None:
            return self.copies.path(self.scheduler, first, x[0], [lambda n, y, out=out: out for out in outputs])
        half = None if self.copies.dtype in WIDE else self.copies.dtype
        path = table.path(first, x, outputs, self._noise_of(table, first, count, x), self._past, half)
        self._note_tail(first, torch.cat([x[:1], path[:-1]]), outputs)
        return path

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """Extrapolate beyond the window with the last output, or towards the last predicted sample."""
        first, count = int(n[0, 0]), len(n)
        held, weights = self._held(hold, first, count, int(source.step[0, 0]), source)
        table = self._table(first + count)
        if table is None:
            return self.copies.go_on(first, start, [_output(held, *pair) for pair in weights])
        end, past = self._tail
        if end != first:  # after a divergence
            past = [(start, source.output)] * table.lags
        past = past[len(past) - table.lags :] if len(past) > table.lags else past
        drawn = self._noise_of(table, first, count, start)
        guess = table.path_of_one(first, start, held, weights, drawn, past)
        if guess is None:  # clipped by the step's own state
            starts, outputs = (part.expand(count, *start.shape) for part in (start, source.output))
            return table.path(first, starts, outputs, drawn, past)
        return guess

    # ---- for the pipeline's loop

    def meet(self, step: int, joined: bool) -> None:
        """Record that the loop has reached ``step``; ``joined`` says that it starts where the step before ended."""
        if step != self.at + 1:  # steps were taken that nothing is known of
            self._past, self.joined = [], 0
        self.joined = self.joined + 1 if joined else 0
        self.at = step

    def stand(self, step: int, scheduler: Any, states: State) -> None:
        """Use these states of the scheduler and the random generators, as they are before ``step``."""
        self.scheduler = scheduler
        if not self.copies.tape.found(step, states):
            self._noise.clear()

    def check(self, step: int, x: Tensor, output: Tensor, image: Tensor, dtype: torch.dtype) -> None:
        """Disable a table whose step from ``x`` differs from ``image``, which the scheduler returned in ``dtype``."""
        table = self._table(step + 1)
        if table is not None:
            noise = self._noise_of(table, step, 1, x)
            ours = self._rounded(table.images(step, x[None], output[None], noise, self._past)[0])
            parts = (ours - (image := self.copies.tied(image))).abs(), image.abs()
            error, size, mean, average = torch.stack(
                [f(part) for f in (torch.max, torch.mean) for part in parts]
            ).tolist()
            if dtype in WIDE:
                self.use_table = error <= _TABLE_ERROR * size
                # schedulers compute their coefficients in single precision, whatever the states are
                self.agrees = self.use_table and error <= _ROUNDING * torch.finfo(torch.float32).eps * size
            else:
                eps = torch.finfo(dtype).eps
                self.use_table = self.agrees = error <= eps * size and mean <= _HALF_ROUNDING * eps * average

    def foresees(self, step: int) -> bool:
        """Whether a table gives all steps from ``step`` on as the scheduler would take them."""
        return self.agrees and self.copies.ties is None and self._table(self.length) is not None

    def noise_foreseen(self, step: int) -> bool:
        """Whether the random generators are where they were foreseen to be before ``step``."""
        table, tape = self._table(self.length), self.copies.tape
        return table is None or not table.noisy[step] or same(tape.states(), tape.before[step])

    def pass_noise(self, step: int) -> None:
        """Put the random generators forward over the noise of ``step``, which was drawn before."""
        table, tape = self._table(self.length), self.copies.tape
        if table is not None and table.noisy[step]:
            tape.wind(tape.before[step + 1])

    def take(self, x: Tensor, output: Tensor) -> None:
        """Record that an accepted step was taken from ``x``, ``(B, ...)``."""
        if self.probe is None or not self.use_table:
            return
        kept = self.probe.table.lags if self.probe.complete else LAGS  # the probe decides later how many are needed
        if kept:
            x, output = (part.flatten(1) for part in (x, output))
            visit = (x, output) if x.dtype == output.dtype and x.dtype in WIDE else (x.float(), output.float())
            self._past = [*self._past, visit][-kept:]

    def drop_before(self, step: int) -> None:
        """Delete the noise of the steps before ``step``."""
        self._noise = {n: noise for n, noise in self._noise.items() if n >= step}
        self.copies.tape.drop_before(step)

    def whole_table(self) -> SchedulerTable | None:
        """The table of all steps; None where it is not known."""
        return self._table(self.length)

    def scales(self, first: int, count: int, like: Tensor) -> Tensor | None:
        """Factors of ``scale_model_input`` at steps ``first ...``, ``(count, 1, ...)``; None where unknown."""
        if self.probe is None or not self.use_table or not self.probe.reach(first + count):
            return None
        dtype = like.dtype if like.dtype in WIDE else torch.float32
        factors = torch.from_numpy(self.probe.scales[first : first + count]).to(like.device, dtype)
        return factors.reshape(-1, *[1] * like.dim())

    def scaled(self, first: int, inputs: list[Tensor]) -> list[Tensor]:
        """``scale_model_input`` at steps ``first ...`` by copies of the scheduler, which is at step first - 1."""
        copies = self.copies
        return [
            scaled_ahead(self.probe, self.scheduler, copies.own, first + j, j + 1, x, copies.timesteps[first + j])
            for j, x in enumerate(inputs)
        ]

    # ---- tables, noise, extrapolation

    def _table(self, end: int) -> SchedulerTable | None:
        """The table, valid for the steps before ``end``; None without one."""
        if not self.use_table:
            return None
        if self.probe is None:
            return self._closed
        return self.probe.table if self.probe.reach(end) and self._knows_past(self.probe) else None

    def _knows_past(self, probe: Probe) -> bool:
        """Whether the latest steps are known that the table needs."""
        table = probe.table
        if table.on_path and (self.copies.ties is not None or self.joined <= min(self.at - 1, probe.remembered)):
            return False
        return len(self._past) >= min(table.lags, self.at)

    def _rounded(self, states: Tensor) -> Tensor:
        """States in the precision of the scheduler's, where that is less."""
        return states if self.copies.dtype in WIDE else states.to(self.copies.dtype).to(states.dtype)

    def _note_tail(self, first: int, x: Tensor, outputs: Tensor) -> None:
        if self.probe is not None:
            visits = [*self._past, *zip(x[-LAGS:], outputs[-LAGS:], strict=True)]
            self._tail = first + len(x), visits[-LAGS:]

    def _noise_of(self, table: SchedulerTable, first: int, count: int, like: Tensor) -> Tensor | None:
        """The noise that the scheduler will draw in steps ``first ...``; each step's noise is drawn once."""
        if not table.noisy[first : first + count].any():
            return None
        missing = [n for n in range(first, first + count) if n not in self._noise]
        if missing:
            dtype = table.noise_dtype or self.copies.output_dtype
            drawn = self._drawn(table, missing, dtype).to(like.device, non_blocking=True)  # in one copy for all steps
            self._noise.update(zip(missing, drawn.unbind(0), strict=True))
        rows = [self.copies.tied(self._noise[n]) for n in range(first, first + count)]
        return torch.stack(rows).to(like.dtype)

    def _drawn(self, table: SchedulerTable, steps: list[int], dtype: torch.dtype) -> Tensor:
        """What the scheduler will draw in some steps, ``(S, B, D)``, where its generators are."""
        copies, tape, drawn = self.copies, self.copies.tape, []
        generators = list(tape.generators) if len(tape.generators) > 1 else tape.generators[0]
        where = tape.generators[0].device
        with tape.ahead():
            for n in steps:
                tape.start(n)
                make = torch.zeros if not table.noisy[n] else partial(randn_tensor, generator=generators)
                drawn.append(make(tuple(copies.shape), device=where, dtype=dtype).flatten(1))
                tape.end(n)
        return torch.stack(drawn)

    def _held(
        self, hold: Hold, first: int, count: int, step: int, source: Evaluated
    ) -> tuple[Tensor, list[tuple[float, float]]]:
        """What is held fixed of the evaluation ``source`` at ``step``, and how outputs are made of state and it."""
        at = range(first, first + count)
        if hold == "sample" and self._levels is not None and source.output.shape == source.state.shape:
            alpha, sigma = self._levels
            kind, a, s = self.scheduler.config.prediction_type, alpha[step], sigma[step]
            if kind == "epsilon":
                return (source.state - s * source.output) / a, [(1 / sigma[n], -alpha[n] / sigma[n]) for n in at]
            if kind == "v_prediction":
                return a * source.state - s * source.output, [(alpha[n] / sigma[n], -1 / sigma[n]) for n in at]
        return source.output, [(0.0, 1.0)] * count


def _output(held: Tensor, own: float, given: float) -> OutputAt:
    return lambda n, y: held if own == 0 else own * y + given * held


def _signal_and_noise(scheduler: Any, timesteps: Tensor) -> tuple[list[float], list[float]] | None:
    """Signal and noise at every step; None unless the process is variance preserving with a tabulated schedule."""
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
        y = self.chain.path(self.first, x[:-1], self.outputs)
        return y, torch.sub(y, x[1:], out=scratch), None

    def passed(self, change: Tensor) -> Tensor:
        return self.chain.images(self.first, self.x + change, self.outputs) - self.images()
