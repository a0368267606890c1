"""Answers to the denoiser's calls: a stored output, a batch over a window, or the call itself."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import nn

from picardsolve.integrations.diffusers.mutable_state import MemoryLost, Snapshot, Watch, WatchedDenoiser
from picardsolve.integrations.diffusers.predicted_gain import called_before
from picardsolve.integrations.diffusers.report import Report
from picardsolve.integrations.diffusers.run.batching import COMPANY, Batch, Outputs, directly, with_another_lane
from picardsolve.integrations.diffusers.run.nested import distance as distance_of
from picardsolve.integrations.diffusers.run.nested import tensors
from picardsolve.integrations.diffusers.run.recording import ReplayMode
from picardsolve.integrations.diffusers.run.replay import Call, Replay
from picardsolve.integrations.diffusers.run.window_tensor import Lanes, WindowTensor, find, pick
from picardsolve.integrations.diffusers.spans import Span, event_on

_SAME = 1e-6  # largest distance between two calls with the same input
CHANGED = "The denoiser was changed between steps: what had been evaluated ahead was dropped."
_GRADIENT = (
    "a gradient goes through the denoiser, whose outputs must hang on the graph of this very step; if none is wanted, "
    "run the loop under torch.no_grad()"
)
# Errors of a denoiser that accepts only the pipeline's own batch size.
_UNFIT = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


@dataclass
class DenoiserCalls:
    """Answers the denoiser's calls, one iteration of the loop after the other.

    Attributes:
        batch: makes one call for many lanes.
        replay: the stored calls.
        report: counts the calls.
        request: of the run at a model that it shares with others; None if it shares none.
        lanes: lanes of this iteration if it is a round; otherwise None.
        replaying: whether this iteration's step is accepted, so that stored outputs answer its calls.
        missed: whether a stored output did not fit in this iteration.
        evaluated: lanes in this iteration's largest call.
        rows: rows of states that the denoiser gets for one step (guidance doubles them).
        started: time of this iteration's first real call.
        span: time from ``started`` to the end of the step.
        warm: whether this process had made calls of all kinds (shapes, dtypes) of this iteration.
        renewed: whether a denoiser was changed since the latest round.
        watch: observes the denoisers' internal state.
        mode: answers what is known of this iteration if it is a replay; else None.
        busy: whether a denoiser is at work: what it calls itself is not the pipeline's call.
    """

    batch: Batch
    replay: Replay
    report: Report
    request: Any = None
    lanes: Lanes | None = None
    replaying: bool = False
    missed: bool = False
    evaluated: int = 0
    rows: int = 1
    started: float | None = None
    span: Span = field(default_factory=Span)
    warm: bool = False
    renewed: bool = False
    watch: Watch = field(default_factory=Watch)
    mode: ReplayMode | None = None
    busy: bool = False
    _device: torch.device | None = None  # of the first real call
    _begun: Any = None  # its event there
    _origin: tuple[float, Any] | None = None  # when the first call of the run was made, and its event
    _step: int = 0
    _number: int = 0  # number of the call within the step
    _counted: bool = False
    _resting: bool = False
    _kinds: list[tuple[Any, Any]] = field(default_factory=list)  # kinds of this iteration's calls
    _forms: dict[Any, Any] = field(default_factory=dict)  # an output of a single step, by the shapes of the call
    _first: dict[int, tuple[nn.Module, tuple, dict, Call]] = field(default_factory=dict)
    _seen: dict[int, Snapshot] = field(default_factory=dict)  # the denoiser's internal state after each call

    @property
    def checked(self) -> bool:
        """Whether a batched output has been compared with the output of a call for one step."""
        return not self._first

    def begin(
        self,
        step: int,
        lanes: Lanes | None,
        replaying: bool,
        mode: ReplayMode | None = None,
        resting: bool = False,
    ) -> None:
        """Begin an iteration; ``resting``: a step alone, after which nothing of it is needed again."""
        if self.lanes is not None and not self.renewed:
            self._first.clear()  # the comparison belongs to the first round only
        self._step, self._number, self.lanes, self.replaying, self.mode = step, 0, lanes, replaying, mode
        self.missed, self.evaluated, self.started, self._counted = False, 0, None, False
        self._kinds, self.renewed, self._resting = [], False, resting
        if self.batch.shared is not None:
            self.batch.shared.begin()
        if not replaying:
            self.replay.keep(range(0))

    def end(self) -> None:
        """End the iteration after its step, and note when its device will have finished."""
        self.span = Span() if self.started is None else self._since(self.started, self.started, self._begun)
        before = [called_before(called, (form, self.evaluated)) for called, form in self._kinds]
        self.warm = bool(before) and all(before)

    def whole(self, start: float) -> Span:
        """The time of a run that began at ``start``, until its device has done all that it was given."""
        first, event = self._origin or (start, None)
        return self._since(start, first, event)

    def _since(self, start: float, first: float, event: Any) -> Span:
        """The time from ``start``, with the work that began at ``first`` and at an event of its device."""
        events = None if event is None else (event, event_on(self._device))
        return Span(perf_counter() - start, events, first - start)

    def answer(self, module: nn.Module, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Answer a call of a module."""
        if self.busy:
            return original(*args, **kwargs)
        number, self._number = self._number, self._number + 1
        if torch.is_grad_enabled() and wants_gradient((args, kwargs)):
            self._one_at_a_time(_GRADIENT)
        watched = self.watch.of(module)
        if watched.hidden is not None:
            self._one_at_a_time(f"the denoiser may remember its calls: {watched.hidden}")
        if self.replaying and not self.missed:
            found, output = self._recalled(number, watched, args, kwargs)
            if found:
                return output
            self.missed = True
            self.report.misses += 1
        seen = self._seen.get(number)
        if self.lanes is not None and seen is not None and not watched.same_as(seen):
            self.renewed = True
            self.report.note(CHANGED)
            self.lanes.cut(1)
        lanes, windows = self.lanes, find((args, kwargs))
        self._kinds.append((getattr(module, "function", module), _kind(args, kwargs)))
        if lanes is not None and not windows and self.report.sequential is None:
            output = self._plain(watched, original, args, kwargs)
            if self.report.sequential is None:
                self.replay.remember(self._step, number, module, args, kwargs, output, watched.now)
            return output
        if lanes is not None and all(window.items[0].dim() < 2 for window in windows):
            lanes.cut(1)  # the loop uses its own states, which are not window tensors
        if lanes is not None and watched.undecided:
            lanes.cut(1)
        if self._resting and not watched.undecided:  # what the denoiser remembers does not matter
            return self._call(None, original, args, kwargs)
        if lanes is None or lanes.count == 1:
            args, kwargs = pick(args, 0), pick(kwargs, 0)
            output = self._plain(watched, original, args, kwargs)
            self._forms[_form(module, args, kwargs)] = output
            self._seen[number] = watched.now
            if self._step == 0 or self.renewed:
                sizes = [len(x) for x in tensors((args, kwargs)) if x.dim() > 2 and x.is_floating_point()]
                self.rows = max([self.rows, *sizes])
                self._first[number] = module, args, kwargs, Call.of(module, args, kwargs, output)
            return output
        if (outputs := self._batched(watched, original, number, lanes, args, kwargs)) is None:
            lanes.cut(1)
            return self._plain(watched, original, pick(args, 0), pick(kwargs, 0))
        self._seen[number] = watched.now
        window = outputs.window(lanes)
        made = lanes.recording.admit_all(window) if lanes.recording is not None else []
        self.replay.remember(self._step, number, module, args, kwargs, outputs, watched.now, made)
        return window

    def _one_at_a_time(self, why: str) -> None:
        """From this call on, evaluate no later steps, and use no stored output."""
        self.report.sequential = self.report.sequential or why
        self.replay.keep(range(0))
        if self.lanes is not None:
            self.lanes.cut(1)

    def _recalled(self, number: int, watched: WatchedDenoiser, args: tuple, kwargs: dict) -> tuple[bool, Any]:
        """Whether a stored output fits, from a denoiser that was not changed since; and that output."""
        found, output = self.replay.recall(self._step, number, watched.module, args, kwargs, self.mode)
        memory = self.replay.memory(number)
        if found and memory is not None and not watched.same_as(memory):
            self.report.note(CHANGED)
            return False, None
        return found, output

    def _plain(self, watched: WatchedDenoiser, original: Callable, args: tuple, kwargs: dict) -> Any:
        """Call for one step, as the pipeline would, and check what the call changes in the denoiser."""
        undecided = watched.undecided
        output = self._call(watched, original, args, kwargs)
        if self.report.sequential is not None:
            return output
        if torch.is_grad_enabled() and wants_gradient(output):
            self._one_at_a_time(_GRADIENT)
        why = watched.end()
        if why is None and undecided:
            why = self._differs_emptied(watched, original, args, kwargs, output)
        if why is not None:
            self._one_at_a_time(f"the denoiser has a memory of its own: {why}")
        return output

    def _differs_emptied(
        self, watched: WatchedDenoiser, original: Callable, args: tuple, kwargs: dict, output: Any
    ) -> str | None:
        """What the first call changed in the denoiser; None if every first call has the same effect."""
        if not watched.empty():
            return watched.why
        again = self._call(watched, original, args, kwargs)
        return watched.refill(distance_of(again, output) <= _SAME)

    def _batched(
        self, watched: WatchedDenoiser, original: Callable, number: int, lanes: Lanes, args: tuple, kwargs: dict
    ) -> Outputs | None:
        """The outputs of the lanes; None, with a reason in the report, if the denoiser cannot be batched."""
        first, why = self._first.pop(number, None), ""
        for nested in dict.fromkeys([self.batch.nested, True]):
            self.batch.nested = nested
            try:
                outputs, distance = self._compared(watched, original, first, lanes, args, kwargs)
            except _UNFIT as error:
                self._restore(watched)
                why = why or f"the denoiser failed on {lanes.count} steps at once ({error})"
                continue
            change = watched.end(alone=False)
            if change is None and distance <= COMPANY:
                return outputs
            self._restore(watched)
            if change is not None:
                if not watched.called:
                    return None
                why = f"the denoiser has a memory of its own: {change}"
                break
            self._reproduces(watched, original, first)
            changed = f"changes by {distance:.1g} of its size in the company of others"
            why = why or f"the denoiser's output for a state {changed}"
        self._one_at_a_time(why)
        return None

    def _reproduces(self, watched: WatchedDenoiser, original: Callable, first: Any) -> None:
        """Check that the denoiser is deterministic: MemoryLost if the same input gives another output."""
        if first is not None:
            again = self._call(watched, original, *first[1:3])
            if distance_of(again, first[3].output(0)) > COMPANY:
                raise MemoryLost(
                    f"{type(watched.module).__name__}: its output for the same input differs from call to call, by "
                    "something that can neither be seen nor put back; call the pipeline itself, or pass window=1."
                )
            self._restore(watched)

    def _restore(self, watched: WatchedDenoiser) -> None:
        if not watched.restore():
            raise MemoryLost(
                f"{type(watched.module).__name__}: it was called for several steps at once, and remembers that where "
                "it cannot be put back; reload it, and call the pipeline itself."
            )

    def _compared(
        self, watched: WatchedDenoiser, original: Callable, first: Any, lanes: Lanes, args: tuple, kwargs: dict
    ) -> tuple[Outputs, float]:
        """The outputs of the lanes, and how far the batch changes the first iteration's output."""
        called, module = list(range(lanes.count)), watched.module
        form = self._forms.get(_form(module, args, kwargs))
        try:
            if first is None or first[0] is not module or not first[3].intact:
                raise LookupError
            args, kwargs = with_another_lane((args, kwargs), first[1:3])
        except LookupError:
            return self._call(watched, original, args, kwargs, called, form), 0.0
        outputs = self._call(watched, original, args, kwargs, [*called, lanes.count], form)
        distance = distance_of(outputs.lane(lanes.count), first[3].output(0))
        self.report.company = max(self.report.company, distance)
        return outputs, distance

    def _call(
        self,
        watched: WatchedDenoiser | None,
        original: Callable,
        args: tuple,
        kwargs: dict,
        lanes: list[int] | None = None,
        like: Any = None,
    ) -> Any:
        """Make and count a real call, for one step or for some lanes; without ``watched`` no look at any memory."""
        if self.started is None:
            self.started, given = perf_counter(), tensors((args, kwargs))
            self._device = given[0].device if given else None
            self._begun = event_on(self._device)
            self._origin = self._origin or (self.started, self._begun)
        if watched is not None and self.report.sequential is None:
            watched.begin()
        self.busy, through = True, directly if self.request is None else self.request.call
        try:
            if lanes is None:
                out, calls, evaluated = through(original, args, kwargs, 1), 1, 1
            else:
                out = self.batch.call(original, lanes, args, kwargs, like, through, watched)
                calls, evaluated = len(out.chunks), out.evaluated
        finally:
            self.busy = False
        report = self.report
        for sentence in () if self.batch.shared is None else self.batch.shared.notes:
            report.note(sentence)
        report.calls += calls
        if not self._counted:
            self._counted = True
            report.rounds += 1
            report.states += evaluated
        report.width = max(report.width, evaluated)
        self.evaluated = max(self.evaluated, evaluated)
        return out


def wants_gradient(value: Any) -> bool:
    """Whether a tensor in nested arguments or outputs requires a gradient."""
    lanes = [tensor.items if isinstance(tensor, WindowTensor) else [tensor] for tensor in tensors(value)]
    return any(part.requires_grad for items in lanes for part in items)


def _form(module: nn.Module, args: tuple, kwargs: dict) -> Any:
    return id(module), tuple(tensor.shape for tensor in tensors((args, kwargs)))  # window tensors: shape of one lane


def _kind(args: tuple, kwargs: dict) -> Any:
    return tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors((args, kwargs)))
