"""The core's window over the steps of a scheduler: opened at the loop's first step, told of rounds and replays."""

from dataclasses import dataclass
from time import perf_counter
from typing import Any

from torch import Tensor

from picardsolve import Exponential, FrozenOutput, FrozenSample, Secant
from picardsolve.extend import ErrorEstimate, Pace, Residuals, Settings, Tolerance, Window
from picardsolve.integrations.diffusers.options import Options
from picardsolve.integrations.diffusers.run.denoiser_calls import DenoiserCalls
from picardsolve.integrations.diffusers.scheduler.chain import WIDE, SchedulerChain
from picardsolve.integrations.diffusers.scheduler.copied_steps import CopiedSteps
from picardsolve.integrations.diffusers.scheduler.noise_tape import NoiseTape
from picardsolve.integrations.diffusers.window_limit import WindowLimit

_TABLE_TOLERANCE = 1e-5  # below it no table is used: a table differs from the scheduler by rounding
_SLACK = 4.0  # an input of a replay may be this many tolerances from its round's input: one sweep moved it since
_FIRST = 8  # steps in the first window where widths are tried
_CHECKED = 2  # the first rounds, in which a scheduler's table is compared to its step; later every eighth round


@dataclass(frozen=True)
class FirstStep:
    """The arguments of the scheduler's first step, the state that it led to, and whether it drew noise."""

    output: Tensor
    timestep: Any
    sample: Tensor
    state: Tensor
    extra: dict[str, Any]
    tape: NoiseTape
    drew: bool


class PipelineWindow:
    """The window of one pass of a loop.

    Attributes:
        limit: how wide the next window may be.
    """

    def __init__(self, options: Options, timesteps: Tensor, own: Tensor, calls: DenoiserCalls, observed: bool):
        self._options, self._timesteps, self._own = options, timesteps, own
        self._calls, self._report, self._observed = calls, calls.report, observed
        widest = options.widest(len(timesteps))
        self._pace: Any = None
        self.limit = WindowLimit(len(timesteps), widest)
        self._window: Window | None = None
        calls.replay.tolerance = _SLACK * options.tolerance

    @property
    def opened(self) -> bool:
        """Whether there is a window yet, and still."""
        return self._window is not None

    def open(self, scheduler: Any, step: FirstStep) -> None:
        """Open the window at the loop's first step; ``scheduler`` is as it was before that step."""
        report = self._report
        report.samples = len(step.sample)
        report.tolerance = self._options.settled_tolerance(step.state.dtype, report)
        self._calls.replay.tolerance = _SLACK * report.tolerance
        self._window = open_window(self._options, report.tolerance, scheduler, step, self._timesteps, self._own)
        if self._options.window == "auto":
            widest, request = self._options.widest(len(self._timesteps)), self._calls.request
            if request is None:
                self._pace = Pace(widest, min(_FIRST, widest))
            else:
                self._pace = request.pace(widest, len(self._timesteps), self._calls.rows)

    def close(self) -> None:
        """Use the window no more."""
        self._window = None

    @property
    def begin(self) -> int:
        """Number of accepted steps; 0 without a window."""
        return 0 if self._window is None else int(self._window.begin[0])

    @property
    def chain(self) -> SchedulerChain:
        """The scheduler's steps."""
        assert self._window is not None
        chain = self._window.chain
        assert isinstance(chain, SchedulerChain)
        return chain

    def restart(self, step: int, state: Tensor) -> None:
        """Drop the states ahead, and go on from ``state`` at ``step``."""
        assert self._window is not None
        if step < len(self._timesteps):
            self._window.restart(step, flat(state))

    def replayed(self, step: int, sample: Tensor, output: Tensor, state: Tensor, joined: bool) -> None:
        """The scheduler has taken an accepted step for real; ``joined``: from the result of the step before."""
        self.chain.meet(step, joined)
        self.chain.take(sample, output)
        if self._calls.missed:
            self.limit.set_back()
            self.restart(step + 1, state)
        else:
            self.limit.success()

    @property
    def resting(self) -> bool:
        """Whether steps are taken alone for now, with no thought of those ahead."""
        one = self._options.window == 1
        return self.opened and (one or self.limit.pausing or (self._pace is not None and self._pace.alone))

    def rest(self) -> None:
        """Such a step was taken."""
        if self.limit.pausing:
            self.limit.step()
        elif self._pace is not None:
            self._pace.note(1, 1, 0.0)

    def foresees(self, i: int) -> bool:
        """Whether a verified table may take the accepted steps from ``i`` on, in the place of the scheduler."""
        known = self._window is not None and not self._observed and not self.limit.pausing
        return known and self.chain.foresees(i)

    @property
    def checking(self) -> bool:
        """Whether this round's first step is compared with the scheduler's."""
        return self._window is None or len(self._window.history) < _CHECKED or len(self._window.history) % 8 == 0

    def tell(self, i: int, outputs: Tensor, samples: Tensor, state: Tensor | None, intact: bool) -> Tensor | None:
        """Give the window the outputs of a round.

        Args:
            i: the step of the first lane.
            outputs: ``(W, B, ...)`` outputs of the lanes.
            samples: ``(W, B, ...)`` states of the lanes.
            state: result of the first lane's real step; None where a table takes that step.
            intact: whether the states are those that the window asked for.

        Returns:
            ``(S, B, D)`` results of the accepted steps; None without a table that may take them.
        """
        window, chain, calls = self._window, self.chain, self._calls
        assert window is not None
        if self.begin != i:
            self.restart(i, samples[0])
        if len(samples) == 1:
            window.ask()
        chain.copies.dtype, chain.copies.output_dtype = samples.dtype, outputs.dtype
        window.narrow(len(samples))
        x, out = flat(samples[0]), flat(outputs, 2)
        if state is not None and self.checking:
            chain.check(i, x, out[0], flat(state), state.dtype)
        window.correct(x[None] if intact and samples.dtype in WIDE else flat(samples, 2))
        reached = window.reached
        window.tell(out.flatten(0, 1))
        stride, gained, taken = self.begin - i, int((window.reached - reached).min()), None
        if state is None or (stride > 1 and self.foresees(i)):
            taken = chain.path(i, flat(samples[:stride], 2), out[:stride])
            if state is not None:
                taken[0] = flat(state)
        chain.take(x, out[0])
        self.limit.round(len(samples), gained)
        calls.replay.keep(range(i + 1, self.begin))
        chain.drop_before(i + 1)
        self._report.history = window.history
        if self._pace is not None and calls.started is not None and not self._cold(i):
            whole = perf_counter() - calls.started
            self._pace.note(len(samples), gained, calls.span.seconds if len(samples) == 1 else whole)
            if self._pace.settled and self._pace.width == 1:
                self._report.sequential = "a wider window would be slower here"
        return taken

    def ask(self, i: int, state: Tensor) -> Tensor | None:
        """States of the round after step ``i``, ``(W, B, ...)``; None where the next iteration is no round.

        Args:
            i: the step that was taken.
            state: its result, which is the first state of the round.
        """
        window, calls = self._window, self._calls
        stopped = self.resting or self._report.sequential is not None
        if window is None or i + 1 != self.begin or stopped or window.done:
            return None
        rows = window.ask()
        asked = min(len(rows.step) // len(state), self.limit.cap)
        if self._pace is not None:
            if self._cold(i):
                return None
            most = self._options.max_batch * calls.batch.workers if self._options.max_batch else asked * calls.rows
            asked = min(asked, self._pace.width, max(1, most // calls.rows))
        if not calls.checked:
            asked -= 1  # the batch has the first state in it once more
        if asked <= 1:
            return None
        # a copy: pipelines may write to their states
        ahead = rows.state.reshape(-1, *state.shape)[:asked].to(state.dtype, copy=True)
        ahead[0] = state
        return ahead

    def _cold(self, i: int) -> bool:
        """Whether the time of step ``i`` says nothing: a step alone takes longer the first time."""
        return i == 0 and not self._calls.warm


def open_window(
    options: Options, tolerance: float, scheduler: Any, step: FirstStep, timesteps: Tensor, own: Tensor
) -> Window:
    """The window over a scheduler's steps.

    Args:
        options: of the run.
        tolerance: see `Options.settled_tolerance`.
        scheduler: as it was before the loop's first step.
        step: the loop's first step.
        timesteps: ``(N,)`` those of the loop.
        own: the scheduler's own timesteps; the loop may iterate a part of them.
    """
    extra = {key: value for key, value in step.extra.items() if key != "return_dict"}
    form = step.timestep.shape if isinstance(step.timestep, Tensor) else ()
    shapes = step.sample.shape, step.output.shape, step.state.dtype, step.output.dtype
    copies = CopiedSteps(timesteps, own, *shapes, extra, step.tape, form)
    chain = SchedulerChain(scheduler, copies, use_table=tolerance >= _TABLE_TOLERANCE)
    width = options.widest(len(timesteps))
    if chain.probe is not None and chain.probe.reach(min(width, len(timesteps))):
        chain.probe.reach(len(timesteps))
    onward = chain.probe is None or chain.probe.carries_forward()
    iteration = options.iteration or (Secant() if onward else Exponential())
    guess = options.guess or (FrozenSample() if step.drew else FrozenOutput())
    allowed = Tolerance(noise=tolerance)
    meter = ErrorEstimate(allowed, len(timesteps), frozen=True) if tolerance else None
    settings = Settings(width, iteration, guess, Residuals(allowed), lockstep=True, meter=meter)
    return Window(chain, flat(step.sample), settings)


def flat(states: Tensor, dims: int = 1) -> Tensor:
    """States with all but the first ``dims`` dimensions in one, in at least single precision."""
    rows = states.reshape(*states.shape[:dims], -1)
    return rows if rows.dtype in WIDE else rows.float()
