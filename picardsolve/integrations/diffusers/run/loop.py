"""One pass of a pipeline's own loop, in which a window of states is solved.

The pipeline iterates the scheduler's timesteps as always, one step at a time. An iteration is one of three things:

* a round: the loop body runs once on window tensors. Each denoiser call is batched over the window. The core's window
  gets the outputs, and sweeps, tests, slides and guesses.
* a replay of an accepted step: the loop body runs on plain tensors, with the stored output of the denoiser. The
  scheduler takes its real step, or a verified table took it, where nobody else looks at the scheduler.
* a plain step, where there is nothing to batch, or where a stored output does not fit (a miss).

The pipeline itself does everything else in its loop, in order, on the real states.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from picardsolve.integrations.diffusers.mutable_state import Watch, equal, version
from picardsolve.integrations.diffusers.options import Options
from picardsolve.integrations.diffusers.predicted_gain import TimedRound
from picardsolve.integrations.diffusers.report import Report
from picardsolve.integrations.diffusers.run.accepted import AcceptedSteps
from picardsolve.integrations.diffusers.run.batching import Batch
from picardsolve.integrations.diffusers.run.denoiser_calls import DenoiserCalls
from picardsolve.integrations.diffusers.run.guard import Guard
from picardsolve.integrations.diffusers.run.handed import Handed
from picardsolve.integrations.diffusers.run.recording import Recording, RoundOutputs, Scaling
from picardsolve.integrations.diffusers.run.replay import Replay
from picardsolve.integrations.diffusers.run.stepped import state_of, with_state
from picardsolve.integrations.diffusers.run.window import FirstStep, PipelineWindow
from picardsolve.integrations.diffusers.run.window_tensor import (
    LaneMode,
    Lanes,
    WindowTensor,
    WithoutLoopMode,
    find,
    pick,
)
from picardsolve.integrations.diffusers.scheduler.bookkeeping import Taken
from picardsolve.integrations.diffusers.scheduler.noise_tape import NoiseTape, State, same
from picardsolve.integrations.diffusers.spans import Span


class Loop:
    """One pass over ``timesteps``: it answers denoiser calls and steps, and chooses what each iteration is.

    Attributes:
        report: filled during the pass.
        calls: the denoiser's calls.
        carrying: whether the pipeline has a window of states at the moment.
    """

    def __init__(
        self,
        scheduler: Any,
        step: Any,
        own: Tensor,
        timesteps: Tensor,
        options: Options,
        batch: Batch,
        why: str | None,
        join: Callable[["Loop"], None] = lambda loop: None,
        observed: bool = True,
        request: Any = None,
    ):
        self.report = Report(steps=len(timesteps), tolerance=options.tolerance, sequential=why)
        self._scheduler, self._real_step, self._own, self._timesteps = scheduler, step, own, timesteps
        self.carrying, self._join = False, join
        self._names = [] if why is not None else list(inspect.signature(step).parameters)
        self.calls = DenoiserCalls(batch, Replay(options.tolerance), self.report, request)
        self._window = PipelineWindow(options, timesteps, own, self.calls, observed)
        self._steps = AcceptedSteps(scheduler, step, own, timesteps)
        self._lanes: Lanes | None = None  # lanes of this iteration, or of the next one
        self._handed: Handed | None = None
        self._guard = Guard(scheduler, own)
        self._i = self._stepped = 0
        self._resting = False  # whether this iteration is a step alone, with no thought of those ahead
        self._left: tuple[Any, int | None] = (None, None)  # the latest state that the pipeline got, and its version

    @property
    def watch(self) -> Watch:
        """The denoisers' internal state."""
        return self.calls.watch

    @property
    def busy(self) -> bool:
        """Whether a denoiser is at work."""
        return self.calls.busy

    # ---- iterations

    def __iter__(self) -> Iterator[Tensor]:
        start = perf_counter()
        try:
            for i in range(len(self._timesteps)):
                self._i, self._stepped = i, 0
                self._join(self)
                yield from self._iteration()
                if self.calls.request is not None:
                    self.calls.request.steps = i + 1
                self.report.span = Span(perf_counter() - start)
        finally:
            self._steps.catch_up()
        self.report.span = self.calls.whole(start)
        if self._window.opened:
            self.report.table = self._window.chain.whole_table()

    def _iteration(self) -> Iterator[Tensor]:
        lanes, replaying = self._lanes, self._i < self._window.begin
        mode = self._steps.mode(self._i) if replaying else None
        self._resting = lanes is None and not replaying and self._window.resting
        self.calls.begin(self._i, lanes, replaying, mode, self._resting)
        if lanes is None:
            with mode or nullcontext():
                yield self._timesteps[self._i]
            return
        self.carrying = True
        timesteps = lanes.tensor(self._timesteps[self._i : self._i + lanes.count])
        if self._handed is not None:
            self._handed.recording.admit(timesteps)
        with LaneMode():
            yield timesteps
        self.carrying = False
        if self._lanes is lanes:  # the pipeline took no step
            self.close()
            self._handed = None

    def end(self, error: BaseException | None = None) -> None:
        """The pass is over, because of an error or not: nobody waits for that."""

    def close(self) -> None:
        """Make all window tensors plain."""
        if self._lanes is not None:
            self._lanes.close()
            self._lanes = None

    # ---- the pipeline's calls

    def forward(self, module: nn.Module, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Answer a call of a denoiser."""
        with WithoutLoopMode():
            return self.calls.answer(module, original, args, kwargs)

    def scale_model_input(self, real: Callable, sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Scale each lane as the scheduler will scale it at the lane's step."""
        mode = self.calls.mode
        if mode is not None and (known := mode.answer(Scaling(), (sample, timestep, *args), kwargs)) is not None:
            return known
        first = real(pick(sample, 0), pick(timestep, 0), *args, **kwargs)
        if isinstance(sample, WindowTensor) and first is sample.items[0]:
            return sample
        if not isinstance(sample, WindowTensor) or not self._window.opened:
            return first
        lanes, chain = sample.lanes, self._window.chain
        factors = chain.scales(self._i, lanes.count, first)
        if factors is not None:
            scaling = Scaling(factors)
            out = scaling(sample, timestep)
            if lanes.recording is not None and not args and not kwargs:
                lanes.recording.note(scaling, (sample, timestep), {}, out)
            return out
        return self._guarded(lambda: lanes.tensor([first, *chain.scaled(self._i + 1, sample.items[1:])]), first)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take the real step; in a round, give the outputs to the window."""
        self._stepped, self.report.taken = self._stepped + 1, self._i + 1
        if self._stepped > 1 and self.report.sequential is None:
            self.report.sequential = "the pipeline steps several states in one iteration"
        if self.report.sequential is not None:
            self._window.close()
            self._steps.catch_up()
            stepped = self._real_step(*pick(args, 0), **pick(kwargs, 0))
            self.report.state = state_of(stepped)
            self.calls.end()
            self.close()
            self._time()
            return stepped
        extra = {**dict(zip(self._names, args, strict=False)), **kwargs}
        output, timestep, sample = (extra.pop(name) for name in ("model_output", "timestep", "sample"))
        replaying = self.calls.replaying
        stepped = (self._replay if replaying else self._round)(output, timestep, sample, extra)
        state = self.report.state
        self._left = state, None if state is None else version(state)
        if not replaying:
            self._time()
        return stepped

    def _joins(self, sample: Tensor) -> bool:
        """Whether a step starts from the very state that the step before led to."""
        state, written = self._left
        return sample is state and written is not None and version(sample) == written

    def _time(self) -> None:
        """Record this iteration's time, without the work of the window."""
        calls = self.calls
        if calls.started is None or self._stepped > 1:
            return
        alone = calls.lanes is None
        self.report.rounds_timed.append(
            TimedRound(self._i, calls.started, calls.span, calls.evaluated, calls.warm, alone)
        )

    # ---- a replay

    def _replay(self, output: Tensor, timestep: Any, sample: Tensor, extra: dict[str, Any]) -> Any:
        taken, joined = Taken(output, timestep, sample, extra), self._joins(sample)
        stepped = None if self.calls.missed else self._steps.skip(self._i, taken)
        if stepped is None:
            self._steps.drop()
            stepped = self._steps.real(self._i, taken)
        self.report.state = state = state_of(stepped)
        self._window.replayed(self._i, sample, output, state, joined)
        if self._i + 1 != self._window.begin:  # another replay follows: nothing is computed ahead
            return stepped
        return self._next(stepped, state)

    # ---- a round

    def _round(self, output: Tensor, timestep: Any, sample: Tensor, extra: dict[str, Any]) -> Any:
        """Take the real first step, and give the outputs of all lanes to the window."""
        lanes, self._lanes = self._lanes, None
        count = 1 if lanes is None else lanes.count
        if find(extra):
            count, extra = 1, pick(extra, 0)
            self.report.note("The scheduler's step is given more than the state and the output of the loop.")
        handed, self._handed = self._handed, None
        intact = handed is not None and handed.intact(sample)
        made = None if handed is None or count == 1 else RoundOutputs.of(output, handed.recording)
        outputs, samples = _stack(output, count), _stack(sample, count)
        first, timestep = pick(sample, 0), pick(timestep, 0)
        joined = intact or (handed is None and self._joins(first))
        if self._window.opened and first.shape != self._window.chain.copies.shape:
            self.report.sequential = "the states change their shape in the loop"
        tape = NoiseTape.of(extra.get("generator"), first.device)
        states = tape.states()
        self._steps.drop()
        if lanes is not None and made is not None and intact and self._is_foreseen(timestep, extra):
            lanes.close()
            return self._round_by_table(Taken(outputs[0], timestep, first, extra), outputs, samples, states, made)
        self._steps.catch_up()
        before = None if self._resting else self._copy()
        stepped = self._steps.real(self._i, Taken(pick(output, 0), timestep, first, extra))
        if lanes is not None:
            lanes.close()
        self.report.state = state = state_of(stepped)
        self.calls.end()
        if self.report.sequential is not None:
            return stepped
        drew = not same(states, tape.states())

        def ahead() -> Any:
            window = self._window
            if not window.opened:
                window.open(before, FirstStep(outputs[0], timestep, first, state, extra, tape, drew))
                self._steps.open(window)
            changed = handed is not None and not intact and not equal(handed.state, first)
            if handed is not None and changed and not window.chain.copies.note_ties(handed.state, first):
                self.report.note("The states were changed after the scheduler's step: no window reaches over that.")
                window.limit.set_back()
            elif count == 1 < self.calls.evaluated:
                window.limit.set_back()
            if self._resting:
                window.rest()
                return stepped
            if self.calls.renewed:  # earlier measurements belong to another denoiser
                window.restart(self._i, first)
            window.chain.meet(self._i, joined)
            window.chain.stand(self._i, before, states)
            accepted = window.tell(self._i, outputs, samples, state, intact)
            if accepted is not None and made is not None and self._steps.foresees(self._i + 1, extra):
                self._steps.accept(self._i, accepted, made, self.calls.replay)
                self.report.state = given = self._steps.state(self._i)
                return self._next(with_state(stepped, given), given)
            return self._next(stepped, state)

        return self._guarded(ahead, stepped)

    def _is_foreseen(self, timestep: Any, extra: dict[str, Any]) -> bool:
        """Whether a table takes this step, too: not where it is to be compared with the scheduler's."""
        known = not self._window.checking and not self.calls.renewed and self._steps.foresees(self._i, extra)
        return known and self._steps.is_time(self._i, timestep)

    def _round_by_table(self, taken: Taken, outputs: Tensor, samples: Tensor, states: State, made: RoundOutputs) -> Any:
        """Give the outputs of all lanes to the window, and let the table take all accepted steps."""
        i, window = self._i, self._window
        self.calls.end()
        window.chain.meet(i, True)
        window.chain.stand(i, self._scheduler, states)
        accepted = window.tell(i, outputs, samples, None, True)
        assert accepted is not None
        self._steps.accept(i, accepted, made, self.calls.replay)
        stepped = self._steps.skip(i, taken)
        self.report.state = state = state_of(stepped)
        return self._next(stepped, state)

    def _guarded(self, work: Callable[[], Any], otherwise: Any) -> Any:
        """The result of ``work``, which steps copies of the scheduler; an error is undone, and gives ``otherwise``."""
        made, why = self._guard.run(work)
        if why is None:
            return made
        self.report.sequential = why
        self.close()
        self._handed = None
        return otherwise

    def _copy(self) -> Any:
        """The scheduler before its step; None, with a reason in the report, where it cannot be copied."""
        copied, why = self._guard.copy()
        self.report.sequential = self.report.sequential or why
        return copied

    # ---- the states that the pipeline receives

    def _next(self, stepped: Any, state: Tensor) -> Any:
        """The step's return value; it holds the window's states if the next iteration is a round."""
        ahead = self._window.ask(self._i, state)
        if ahead is None:
            return stepped
        recording = Recording()
        self._lanes = Lanes(len(ahead), recording)
        carried = recording.admit(self._lanes.tensor(ahead), moves=True)
        self._handed = Handed(carried, version(ahead), state, recording)
        return with_state(stepped, carried)


def _stack(value: Tensor, count: int) -> Tensor:
    """The first lanes of a value, ``(count, ...)``."""
    return value.stack[:count] if isinstance(value, WindowTensor) else value.expand(count, *value.shape)
