"""Answers to the denoiser's calls: remembered ones, batches over a window, or the call itself."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from picardsolve.integrations.diffusers.mutable_state import MemoryLost, Snapshot, Watch, WatchedDenoiser
from picardsolve.integrations.diffusers.predicted_gain import called_before
from picardsolve.integrations.diffusers.report import Report
from picardsolve.integrations.diffusers.run.batching import Batch, Outputs, tensors
from picardsolve.integrations.diffusers.run.replay import Call, Replay
from picardsolve.integrations.diffusers.run.window_tensor import Lanes, WindowTensor, find, pick

# How far a state's output in company may be from its output alone, relative to its size. Rounding, in single precision
# with tensor cores included, is below; a batch norm in training mode, or conditioning given to the wrong rows, above.
_COMPANY = 2e-3
_SAME = 1e-6  # between two calls of the same input
CHANGED = "The denoiser was changed between steps: what had been evaluated ahead was dropped."
_GRADIENT = (
    "a gradient goes through the denoiser, whose outputs must hang on the graph of this very step; if none is wanted, "
    "run the loop under torch.no_grad()"
)
# What a denoiser raises that cannot take more states than the pipeline gives it.
_UNFIT = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


@dataclass
class Answers:
    """Answers the calls of one iteration of the loop after the other.

    Attributes:
        lanes: of this iteration, if it is a round.
        replaying: whether this iteration's step is accepted, its outputs remembered.
        missed: a remembered output did not fit in this iteration.
        evaluated: lanes in this iteration's largest call.
        rows: of the states that the denoiser is given for one step (guidance doubles them).
        started: when this iteration first really called the denoiser.
        seconds: from there to the end of its step.
        warm: whether all calls of this iteration were of kinds that had been made before in this process.
        watch: over the denoisers' memory.
        renewed: whether a denoiser was changed since the latest round.
    """

    batch: Batch
    replay: Replay
    report: Report
    lanes: Lanes | None = None
    replaying: bool = False
    missed: bool = False
    evaluated: int = 0
    rows: int = 1
    started: float | None = None
    seconds: float = 0.0
    warm: bool = False
    _kinds: list[tuple[Any, Any]] = field(default_factory=list)  # of this iteration's calls
    renewed: bool = False
    _step: int = 0
    _number: int = 0
    _busy: bool = False
    _counted: bool = False
    _forms: dict[Any, Any] = field(default_factory=dict)  # an output of a single step, by the shapes of the call
    _first: dict[int, tuple[nn.Module, tuple, dict, Call]] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)
    _seen: dict[int, Snapshot] = field(default_factory=dict)  # what the denoiser remembered, by the number of the call

    @property
    def checked(self) -> bool:
        """Whether an output of a batch has been compared to that of a call of its own."""
        return not self._first

    def begin(self, step: int, lanes: Lanes | None, replaying: bool) -> None:
        """A new iteration."""
        if self.lanes is not None and not self.renewed:
            self._first.clear()  # what was not compared in the first round is not called again
        self._step, self._number, self.lanes, self.replaying = step, 0, lanes, replaying
        self.missed, self.evaluated, self.started, self._counted = False, 0, None, False
        self._kinds = []
        self.renewed = False
        if not replaying:
            self.replay.keep(range(0))

    def end(self, state: Any) -> None:
        """The step is taken: note the time, once the device is there."""
        if isinstance(state, Tensor) and state.is_cuda:
            torch.cuda.synchronize(state.device)
        self.seconds = 0.0 if self.started is None else perf_counter() - self.started
        before = [called_before(called, (form, self.evaluated)) for called, form in self._kinds]
        self.warm = bool(before) and all(before)

    def answer(self, module: nn.Module, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """What the module returns."""
        if self._busy:  # called by another module of the pipeline
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
        if self.lanes is not None and self._changed_since(number, watched):
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
            lanes.cut(1)  # times travel through the loop, but no states: it went on with others of its own
        if lanes is not None and watched.undecided:
            lanes.cut(1)
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
        outputs = self._batched(watched, original, number, lanes, args, kwargs)
        if outputs is None:
            lanes.cut(1)
            return self._plain(watched, original, pick(args, 0), pick(kwargs, 0))
        self._seen[number] = watched.now
        self.replay.remember(self._step, number, module, args, kwargs, outputs, watched.now)
        return outputs.window(lanes)

    def _one_at_a_time(self, why: str) -> None:
        """From this call on nothing is evaluated ahead, or given back."""
        self.report.sequential = self.report.sequential or why
        self.replay.keep(range(0))
        if self.lanes is not None:
            self.lanes.cut(1)

    def _recalled(self, number: int, watched: WatchedDenoiser, args: tuple, kwargs: dict) -> tuple[bool, Any]:
        """Whether a call is a remembered one, of a denoiser that nobody has changed since; and its output."""
        found, output = self.replay.recall(self._step, number, watched.module, args, kwargs)
        memory = self.replay.memory(number)
        if found and memory is not None and not watched.same_as(memory):
            self.report.note(CHANGED)
            return False, None
        return found, output

    def _changed_since(self, number: int, watched: WatchedDenoiser) -> bool:
        """Whether somebody changed the denoiser since the latest round."""
        memory = self._seen.get(number)
        return memory is not None and not watched.same_as(memory)

    def _plain(self, watched: WatchedDenoiser, original: Callable, args: tuple, kwargs: dict) -> Any:
        """Call for one step, as the pipeline would; what the denoiser remembers of it decides how to go on."""
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
        """What its first call left in the denoiser that matters; None if it is the same whatever is asked first."""
        if not watched.empty():
            return watched.why
        again = self._call(watched, original, args, kwargs)
        return watched.refill(_distance(again, output) <= _SAME)

    def _batched(
        self, watched: WatchedDenoiser, original: Callable, number: int, lanes: Lanes, args: tuple, kwargs: dict
    ) -> Outputs | None:
        """The outputs of the lanes; None, and a reason in the report, if the denoiser cannot be batched."""
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
            if change is None and distance <= _COMPANY:
                return outputs
            self._restore(watched)
            if change is not None:
                if not watched.called:
                    return None
                why = f"the denoiser has a memory of its own: {change}"
                break
            self._reproduces(watched, original, first)
            why = (
                why
                or f"the denoiser's output for a state changes by {distance:.1g} of its size in the company of others"
            )
        self._one_at_a_time(why)
        return None

    def _reproduces(self, watched: WatchedDenoiser, original: Callable, first: Any) -> None:
        """Make sure that a denoiser gives the first output again, so that it was the company that changed it.

        Raises:
            MemoryLost: it gives another one: it remembers its calls where nobody sees it.
        """
        if first is not None:
            again = self._call(watched, original, *first[1:3])
            if _distance(again, first[3].output(0)) > _COMPANY:
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
        """The outputs of the lanes, and how far the first iteration's is from itself, in their company."""
        called, module = list(range(lanes.count)), watched.module
        form = self._forms.get(_form(module, args, kwargs))
        try:
            if first is None or first[0] is not module or not first[3].intact:
                raise LookupError
            args, kwargs = _with_another_lane((args, kwargs), first[1:3])
        except LookupError:
            return self._call(watched, original, args, kwargs, called, form), 0.0
        outputs = self._call(watched, original, args, kwargs, [*called, lanes.count], form)
        distance = _distance(outputs.lane(lanes.count), first[3].output(0))
        self.report.company = max(self.report.company, distance)
        return outputs, distance

    def _call(
        self,
        watched: WatchedDenoiser,
        original: Callable,
        args: tuple,
        kwargs: dict,
        lanes: list[int] | None = None,
        form: Any = None,
    ) -> Any:
        """Really call, for one step or for some lanes, and count."""
        if self.started is None:
            self.started = perf_counter()
        if self.report.sequential is None:
            watched.begin()
        self._busy = True
        try:
            if lanes is None:
                out, calls, evaluated = original(*args, **kwargs), 1, 1
            else:
                out = self.batch.call(original, lanes, args, kwargs, form)
                calls, evaluated = len(out.chunks), out.evaluated
        finally:
            self._busy = False
        report = self.report
        report.calls += calls
        if not self._counted:
            self._counted = True
            report.rounds += 1
            report.states += evaluated
        report.width = max(report.width, evaluated)
        self.evaluated = max(self.evaluated, evaluated)
        return out


def wants_gradient(value: Any) -> bool:
    """Whether a tensor in nested arguments or outputs is part of a graph."""
    parts = [
        part for tensor in tensors(value) for part in (tensor.items if isinstance(tensor, WindowTensor) else [tensor])
    ]
    return any(part.requires_grad for part in parts)


def _form(module: nn.Module, args: tuple, kwargs: dict) -> Any:
    return id(module), tuple(tensor.shape for tensor in tensors((args, kwargs)))  # a window tensor's is its items'


def _kind(args: tuple, kwargs: dict) -> Any:
    return tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors((args, kwargs)))


def _distance(output: Any, expected: Any) -> float:
    """The largest distance between the tensors of two outputs, relative to their size; NaN is equal to NaN."""
    distances = [0.0]
    for now, then in zip(tensors(output), tensors(expected), strict=True):
        both = now.isnan() & then.isnan()
        change, size = (torch.linalg.vector_norm(x.double().masked_fill(both, 0)) for x in (now - then, then))
        distances.append(float(change / size.clamp(min=1e-30)))
    return max(distances)


def _with_another_lane(value: Any, plain: Any) -> Any:
    """Window arguments with one more lane, of plain arguments.

    Raises:
        LookupError: the two do not have the same form, or differ in what is not a window tensor.
    """
    if isinstance(value, WindowTensor):
        if not isinstance(plain, Tensor) or plain.shape != value.items[0].shape:
            raise LookupError
        return Lanes(len(value.items) + 1).tensor([*value.items, plain])
    if isinstance(value, dict) and isinstance(plain, dict) and value.keys() == plain.keys():
        parts = {key: _with_another_lane(part, plain[key]) for key, part in value.items()}
        return parts if type(value) is dict else type(value)(**parts)
    if isinstance(value, list | tuple) and isinstance(plain, list | tuple) and len(value) == len(plain):
        listed = [_with_another_lane(part, other) for part, other in zip(value, plain, strict=True)]
        return type(value)(*listed) if hasattr(value, "_fields") else type(value)(listed)
    if isinstance(value, Tensor) and isinstance(plain, Tensor):
        if value is plain or torch.equal(value, plain):
            return value
    elif value is plain or (isinstance(value, bool | int | float | str) and value == plain):
        return value
    raise LookupError
