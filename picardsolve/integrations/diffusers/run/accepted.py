"""The accepted steps of a round, where a verified table has taken them: the replays are given their states."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from picardsolve.integrations.diffusers.mutable_state import immutable, version
from picardsolve.integrations.diffusers.run.nested import same_memory
from picardsolve.integrations.diffusers.run.recording import STATE, ReplayMode, Rerun, RoundOutputs
from picardsolve.integrations.diffusers.run.replay import Replay
from picardsolve.integrations.diffusers.run.stepped import state_of, stepped_like
from picardsolve.integrations.diffusers.run.window import PipelineWindow
from picardsolve.integrations.diffusers.scheduler.bookkeeping import Bookkeeping, Taken, bookkeeping


@dataclass(frozen=True)
class _Round:
    """Steps ``first ...`` of a round, and their results; ``output`` is the slot of their outputs."""

    first: int
    states: list[Tensor]
    output: int
    rerun: Rerun | None


class AcceptedSteps:
    """Takes the pipeline's steps: by the table where all is as it was foreseen, else by the scheduler."""

    def __init__(self, scheduler: Any, step: Callable[..., Any], own: Tensor, timesteps: Tensor):
        self._scheduler, self._step, self._own = scheduler, step, own
        self._times = timesteps.unbind(0)
        self._window: PipelineWindow | None = None
        self._books: Bookkeeping | None = None
        self._round: _Round | None = None
        self._mode: ReplayMode | None = None
        self._latest: Taken | None = None
        self._like: Any = None  # the latest result of a real step
        self._next = 0  # number of the next step

    def open(self, window: PipelineWindow) -> None:
        """The window was opened at the first step."""
        self._window, self._books = window, bookkeeping(self._scheduler, self._step, window.chain.probe)
        if self._books is not None and self._latest is not None:
            self._books.took(self._latest)

    def catch_up(self) -> None:
        """Let the scheduler be what it would be after its own steps."""
        if self._books is not None:
            self._books.catch_up(self._next)

    def real(self, n: int, taken: Taken) -> Any:
        """Step ``n`` by the scheduler."""
        self.catch_up()
        self._like = self._step(taken.output, taken.timestep, taken.sample, **taken.extra)
        self._next, self._latest = n + 1, taken
        if self._books is not None:
            self._books.took(taken)
        return self._like

    # ---- by the table

    def foresees(self, n: int, extra: dict[str, Any]) -> bool:
        """Whether a table may take the steps from ``n`` on, with further arguments ``extra``."""
        window, books = self._window, self._books
        if window is None or books is None or not window.foresees(n) or not books.untouched:
            return False
        given = {key: value for key, value in extra.items() if key != "return_dict"}
        known = window.chain.copies.extra
        return given.keys() == known.keys() and all(
            value is known[key] or (immutable(value) and value == known[key]) for key, value in given.items()
        )

    def accept(self, first: int, states: Tensor, made: RoundOutputs, replay: Replay) -> None:
        """The steps from ``first`` on led to ``states``, with the outputs of the round.

        Args:
            first: the first step.
            states: ``(S, B, D)`` results of the steps.
            made: their outputs.
            replay: the denoiser's calls of the round.
        """
        assert self._window is not None
        states = states.reshape(-1, *self._window.chain.copies.shape).to(state_of(self._like).dtype)
        rerun = Rerun(made.recording, 1, states[:-1]) if len(states) > 1 else None
        if rerun is not None and rerun.whole:
            replay.approve(rerun)
        else:
            rerun = None
        self._round = _Round(first, list(states.unbind(0)), made.slot, rerun)

    def state(self, n: int) -> Tensor:
        """The accepted result of step ``n``."""
        assert self._round is not None
        return self._round.states[n - self._round.first]

    def drop(self) -> None:
        """Forget the steps that were taken ahead."""
        self._round = self._mode = None

    def mode(self, n: int) -> ReplayMode | None:
        """What answers the loop body of step ``n``; None where nothing is known of it."""
        known, self._mode = self._round, None
        if known is not None and known.rerun is not None and n - known.first < len(known.states):
            self._mode = ReplayMode(known.rerun, n - known.first)
        return self._mode

    def skip(self, n: int, taken: Taken) -> Any:
        """Step ``n`` by the table, at its turn: its result; None where this is not the step that was foreseen."""
        if self._round is None or self._books is None or self._window is None:
            return None
        if n > self._round.first and not self._is_foreseen(n, taken):
            return None
        self._window.chain.pass_noise(n)
        self._books.skip(n, taken)
        self._next = n + 1
        return stepped_like(self._like, self.state(n), lambda: self._whole(n))

    def is_time(self, n: int, timestep: Any) -> bool:
        """Whether a step is given the timestep of the loop."""
        own = self._times[n]
        if isinstance(timestep, Tensor):
            return (written := version(own)) is not None and same_memory(timestep, own, written)
        return immutable(timestep) and own.device.type == "cpu" and timestep == own.item()

    def _is_foreseen(self, n: int, taken: Taken) -> bool:
        mode, known = self._mode, self._round
        return (
            mode is not None
            and known is not None
            and mode.is_slot(taken.output, known.output)
            and mode.is_slot(taken.sample, STATE)
            and self.is_time(n, taken.timestep)
            and self.foresees(n, taken.extra)
            and self._window is not None
            and self._window.chain.noise_foreseen(n)
        )

    def _whole(self, n: int) -> Any:
        """The scheduler's own result of step ``n``, for who reads more of it than the state: not to be foreseen."""
        assert self._window is not None
        assert self._books is not None
        if self._next != n + 1:
            raise RuntimeError("the result of a scheduler's step was read after the next step")
        self._window.chain.agrees = False
        return self._books.again(n + 1, self._own)
