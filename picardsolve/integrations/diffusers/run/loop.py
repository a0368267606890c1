"""One pass of a pipeline's own loop, with a window of its states travelling through it.

The scheduler's timesteps are iterated as ever, one step each. An iteration is one of three things:

* a round: the loop body runs once on window tensors, each denoiser call is batched over the window, and the core's
  window is told what came out (it sweeps, tests, slides and guesses);
* a replay: an accepted step; the loop body runs on plain tensors, the denoiser's output is the remembered one, and the
  scheduler takes its step for real, with its own history and noise;
* a plain step, where there is nothing to batch, or where a remembered output does not fit (a miss).

So whatever else the pipeline does in its loop is done by the pipeline, in order, on the real states.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn

from picardsolve.extend import Pace, Window
from picardsolve.integrations.diffusers.mutable_state import (
    MemoryLost,
    Snapshot,
    Watch,
    equal,
    random_generators,
    version,
)
from picardsolve.integrations.diffusers.options import WIDE, FirstStep, Numerics, flat
from picardsolve.integrations.diffusers.predicted_gain import GainPrediction
from picardsolve.integrations.diffusers.report import Report
from picardsolve.integrations.diffusers.run.batching import Batch
from picardsolve.integrations.diffusers.run.denoiser_calls import Answers
from picardsolve.integrations.diffusers.run.replay import Replay
from picardsolve.integrations.diffusers.run.window_tensor import (
    LaneMode,
    Lanes,
    WindowTensor,
    find,
    pick,
    without_lane_mode,
)
from picardsolve.integrations.diffusers.scheduler.chain import SchedulerChain
from picardsolve.integrations.diffusers.scheduler.copied_steps import copy_of
from picardsolve.integrations.diffusers.scheduler.noise_tape import NoiseTape, State, same
from picardsolve.integrations.diffusers.scheduler.probe import scaled_ahead
from picardsolve.integrations.diffusers.window_limit import WindowLimit

# What steps ahead of a scheduler raise that cannot be taken ahead of it.
_UNFIT = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
_SLACK = 4.0  # inputs of a replay may be this many tolerances from those of its round: the sweep moved them once more
_FIRST = 8  # steps in the first window of those that are tried
_CHECKED = 2  # rounds in which a scheduler's table is compared to its step, and then every eighth


class Loop:
    """One pass over ``timesteps``: told of every denoiser call and every step, it decides what each iteration is.

    Attributes:
        report: filled while it goes on.
        carrying: whether a window of states is in the pipeline's hands.
    """

    def __init__(
        self,
        scheduler: Any,
        step: Any,
        own: Tensor,
        timesteps: Tensor,
        numerics: Numerics,
        batch: Batch,
        why: str | None,
        join: Callable[["Loop"], None] = lambda loop: None,
    ):
        self.report = Report(steps=len(timesteps), tolerance=numerics.tolerance, sequential=why)
        self._scheduler, self._real_step, self._own, self._timesteps = scheduler, step, own, timesteps
        self.carrying, self._join = False, join
        self._names = [] if why is not None else list(inspect.signature(step).parameters)
        self._numerics = numerics
        self._answers = Answers(batch, Replay(_SLACK * numerics.tolerance), self.report)
        widest = numerics.widest(len(timesteps))
        self._pace = Pace(widest, min(_FIRST, widest)) if numerics.window == "auto" else None
        self._limit = WindowLimit(len(timesteps), widest)
        self._prediction = GainPrediction(len(timesteps))
        self._window: Window | None = None
        self._lanes: Lanes | None = None  # those that travel now, or will in the next iteration
        self._handed: _Handed | None = None
        self._settled: Snapshot | None = None  # the scheduler's state before the latest steps ahead of it
        self._i = self._stepped = 0

    # ---- one iteration after the other

    def __iter__(self) -> Iterator[Tensor]:
        start = perf_counter()
        for i in range(len(self._timesteps)):
            self._i, self._stepped = i, 0
            self._join(self)
            yield from self._iteration()
            self.report.seconds = perf_counter() - start
        if self._window is not None:
            self.report.held_slopes = self._chain.held_slopes()

    def _iteration(self) -> Iterator[Tensor]:
        lanes, t = self._lanes, self._timesteps[self._i]
        replaying = self._window is not None and self._i < int(self._window.begin[0])
        self._answers.begin(self._i, lanes, replaying)
        if lanes is None:
            yield t
            return
        self.carrying = True
        with LaneMode():
            yield lanes.tensor(self._timesteps[self._i : self._i + lanes.count])
        self.carrying = False
        if self._lanes is lanes:  # the pipeline took no step
            self.close()
            self._handed = None

    def close(self) -> None:
        """Leave no window tensor behind."""
        if self._lanes is not None:
            self._lanes.close()
            self._lanes = None

    @property
    def _cold(self) -> bool:
        """Whether a step taken alone is to be timed again: one takes longer the first time."""
        return self._i == 0 and not self._answers.warm

    @property
    def watch(self) -> Watch:
        """Over the memory of its denoisers."""
        return self._answers.watch

    @property
    def _chain(self) -> SchedulerChain:
        assert self._window is not None
        chain = self._window.chain
        assert isinstance(chain, SchedulerChain)
        return chain

    # ---- what the pipeline calls

    def forward(self, module: nn.Module, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Answer a call of a denoiser."""
        with without_lane_mode():
            return self._answers.answer(module, original, args, kwargs)

    def scale_model_input(self, real: Callable, sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Scale every lane as the scheduler will when it gets there."""
        first = real(pick(sample, 0), pick(timestep, 0), *args, **kwargs)
        if not isinstance(sample, WindowTensor):
            return first
        if first is sample.items[0] or self._window is None:
            return sample if first is sample.items[0] else first
        chain, items = self._chain, [first]
        factors = None if chain.probe is None or not chain.use_table else chain.probe.scales
        if factors is not None and chain.probe is not None and chain.probe.reach(self._i + sample.lanes.count):
            column = torch.from_numpy(factors[self._i : self._i + sample.lanes.count]).to(first.device, first.dtype)
            return sample.lanes.tensor(sample.stack * column.reshape(-1, *[1] * first.dim()))

        def scaled() -> Tensor:
            for j, item in enumerate(sample.items[1:], 1):
                n = self._i + j
                items.append(scaled_ahead(chain.probe, self._scheduler, self._own, n, j, item, self._timesteps[n]))
            return sample.lanes.tensor(items)

        return self._aside(scaled, first)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take the step for real; if this is a round, let the window answer to it."""
        self._stepped += 1
        if self._stepped > 1 and self.report.sequential is None:
            self.report.sequential = "the pipeline steps several states in one iteration"
        if self.report.sequential is not None:
            self._window = None
            stepped = self._real_step(*pick(args, 0), **pick(kwargs, 0))
            self.report.state = _previous(stepped)
            self._answers.end(self.report.state)
            self.close()
            return self._timed(stepped)
        extra = {**dict(zip(self._names, args, strict=False)), **kwargs}
        output, timestep, sample = (extra.pop(name) for name in ("model_output", "timestep", "sample"))
        if self._answers.replaying:
            return self._replay(output, timestep, sample, extra)
        return self._timed(self._round(output, timestep, sample, extra))

    def _timed(self, stepped: Any) -> Any:
        """Note what this iteration took, but for what this window does with it."""
        answers = self._answers
        if answers.started is not None and self._stepped == 1:
            self.report.round_seconds.append((answers.evaluated, answers.seconds))
            if answers.lanes is None and answers.warm:
                self.report.single_seconds.append(answers.seconds)
            self._prediction.note(
                *(self._i, answers.started, answers.seconds),
                *(answers.evaluated, answers.warm, self.report.single),
            )
            self.report.predicted_gain = self._prediction.gain
        return stepped

    # ---- a replay

    def _replay(self, output: Tensor, timestep: Any, sample: Tensor, extra: dict[str, Any]) -> Any:
        stepped = self._real_step(output, timestep, sample, **extra)
        window, state = self._window, _previous(stepped)
        assert window is not None
        self.report.state = state
        self._chain.take(self._i, flat(sample), flat(output))
        if self._answers.missed:
            self._limit.set_back()
            if self._i + 1 < len(self._timesteps):
                window.restart(self._i + 1, flat(state))
        else:
            self._limit.success()
        if self._i + 1 != int(window.begin[0]):  # another replay follows: nothing is computed ahead
            return stepped
        return self._aside(lambda: self._next(stepped, state), stepped)

    # ---- a round

    def _round(self, output: Tensor, timestep: Any, sample: Tensor, extra: dict[str, Any]) -> Any:
        """Take the first step for real, and tell the window what the denoiser made of all of them."""
        lanes, self._lanes = self._lanes, None
        count = 1 if lanes is None else lanes.count
        if find(extra):
            count, extra = 1, pick(extra, 0)
            self.report.note("The scheduler's step is given more than the state and the output of the loop.")
        handed, self._handed = self._handed, None
        intact = handed is not None and handed.intact(sample)
        outputs, samples = _stack(output, count), _stack(sample, count)
        first, timestep = pick(sample, 0), pick(timestep, 0)
        if self._window is not None and first.shape != self._chain.walk.shape:
            self.report.sequential = "the states change their shape in the loop"
        before = self._copy()
        tape = NoiseTape.of(extra.get("generator"), first.device)
        states = tape.states()
        stepped = self._real_step(pick(output, 0), timestep, first, **extra)
        if lanes is not None:
            lanes.close()
        self.report.state = state = _previous(stepped)
        self._answers.end(state)
        if self.report.sequential is not None:
            return stepped
        drew = not same(states, tape.states())

        def ahead() -> Any:
            if self._window is None:
                given = FirstStep(outputs[0], timestep, first, state, extra, tape, drew)
                self._window = self._begin(before, given)
            if handed is not None and not equal(handed.state, first) and not self._ties(handed.state, first):
                self.report.note("The states were changed after the scheduler's step: no window reaches over that.")
                self._limit.set_back()
            elif count == 1 < self._answers.evaluated:
                self._limit.set_back()
            if self._limit.pausing:
                self._limit.step()
                return stepped
            if self._answers.renewed:  # what earlier rounds found out is of another denoiser
                self._window.restart(self._i, flat(first))
            self._tell(before, states, outputs, samples, state, intact and samples.dtype in WIDE)
            return self._next(stepped, state)

        return self._aside(ahead, stepped)

    def _copy(self) -> Any:
        """The scheduler as it stands before its step; None, and a reason in the report, where it cannot be copied."""
        try:
            return copy_of(self._scheduler, self._own)
        except TypeError as error:
            name = type(self._scheduler).__name__
            self.report.sequential = f"{name} keeps what its steps ahead would share with the real ones ({error})"
            return None

    def _aside(self, work: Callable[[], Any], otherwise: Any) -> Any:
        """What is made of steps taken ahead by copies of the scheduler.

        If those fail, or move what the scheduler itself remembers, all is put back and the run goes on one step at a
        time: then ``otherwise``.
        """
        if self._settled is None:
            self._settled = Snapshot({type(self._scheduler).__name__: self._scheduler, **random_generators()})
        self._settled = settled = self._settled.current()
        try:
            made, changes = work(), []
        except _UNFIT as error:
            made, why = None, f"the scheduler's steps cannot be taken ahead ({error})"
        else:
            why = None
        if not settled.unchanged:
            changes = settled.changes(settled.retaken())
            if changes and why is None:
                why = f"a step that a copy of the scheduler takes ahead changes {settled.reach.path(changes[0])}"
            if changes and not settled.restore():
                raise MemoryLost(f"{why}, which cannot be put back; call the pipeline itself.")
        if why is None:
            return made
        self.report.sequential = why
        self.close()
        self._handed = None
        return otherwise

    def _begin(self, scheduler: Any, step: FirstStep) -> Window:
        report, numerics = self.report, self._numerics
        report.samples = len(step.sample)
        report.tolerance = numerics.settled_tolerance(step.state.dtype, report)
        self._answers.replay.tolerance = _SLACK * report.tolerance
        return numerics.open(scheduler, step, self._timesteps, self._own, report.tolerance)

    def _tell(
        self,
        before: Any,
        states: State,
        outputs: Tensor,
        samples: Tensor,
        state: Tensor,
        intact: bool,
    ) -> None:
        window, i, chain = self._window, self._i, self._chain
        assert window is not None
        if int(window.begin[0]) != i:
            window.restart(i, flat(samples[0]))
        if len(samples) == 1:
            window.ask()
        chain.walk.dtype, chain.walk.output_dtype = samples.dtype, outputs.dtype
        chain.stand(i, before, states)
        window.narrow(len(samples))
        x, out = flat(samples[0]), flat(outputs, 2)
        if len(window.history) < _CHECKED or len(window.history) % 8 == 0:
            chain.check(i, x, out[0], flat(state))
        window.correct(x[None] if intact else flat(samples, 2))
        window.tell(out.flatten(0, 1))
        chain.take(i, x, out[0])
        begin = int(window.begin[0])
        self._limit.round(len(samples), begin - i)
        self._answers.replay.keep(range(i + 1, begin))
        chain.forget(i + 1)
        self.report.history = window.history
        if self._pace is not None and self._answers.started is not None and not self._cold:
            whole = perf_counter() - self._answers.started
            self._pace.note(len(samples), begin - i, self._answers.seconds if len(samples) == 1 else whole)
            if self._pace.settled and self._pace.width == 1:
                self.report.sequential = "a wider window would be slower here"

    def _ties(self, handed: Tensor, found: Tensor) -> bool:
        """Whether the loop's only change was to overwrite rows with other rows, as guidance on a doubled batch does."""
        walk = self._chain.walk
        if equal(walk.tied(handed), found):
            return True
        if handed.shape != found.shape:
            return False
        same = [equal(before, now) for before, now in zip(handed, found, strict=True)]
        kept = [row for row, unchanged in enumerate(same) if unchanged]
        rows = [row for row, unchanged in enumerate(same) if not unchanged]
        sources = [next((other for other in kept if equal(found[row], found[other])), None) for row in rows]
        if None in sources:
            return False
        walk.ties = rows, [source for source in sources if source is not None]
        return True

    # ---- what the pipeline gets

    def _next(self, stepped: Any, state: Tensor) -> Any:
        """The step's return value, carrying the window's states if the next iteration is a round."""
        window = self._window
        assert window is not None
        if self._i + 1 != window.begin[0] or self._limit.pausing or self.report.sequential is not None or window.done:
            return stepped
        rows = window.ask()
        asked = min(len(rows.step) // len(state), self._limit.cap)
        if self._pace is not None:
            if self._cold:
                return stepped
            limit = self._numerics.max_batch or asked * self._answers.rows
            asked = min(asked, self._pace.width, max(1, limit // self._answers.rows))
        if not self._answers.checked:
            asked -= 1  # its place is taken by the first state, once more
        if asked <= 1:
            return stepped
        # a copy: pipelines may write to their states
        ahead = rows.state.reshape(-1, *state.shape)[:asked].to(state.dtype, copy=True)
        ahead[0] = state
        self._lanes = Lanes(asked)
        carried = self._lanes.tensor(ahead)
        self._handed = _Handed(carried, version(ahead), state)
        if isinstance(stepped, BaseOutput):
            return type(stepped)(**{**stepped, "prev_sample": carried})
        return (carried, *stepped[1:])


@dataclass(frozen=True)
class _Handed:
    """The states that travel into the next round, as they were given to the pipeline; ``state`` is the true one."""

    carried: WindowTensor
    version: int | None
    state: Tensor

    def intact(self, sample: Tensor) -> bool:
        """Whether these are what the pipeline gives back, and nobody has written to them."""
        return self.version is not None and sample is self.carried and version(self.carried.stack) == self.version


def _stack(value: Tensor, count: int) -> Tensor:
    """The first lanes of a value, ``(count, ...)``."""
    return value.stack[:count] if isinstance(value, WindowTensor) else value.expand(count, *value.shape)


def _previous(stepped: Any) -> Any:
    return stepped[0] if isinstance(stepped, tuple) else getattr(stepped, "prev_sample", None)
