"""Run a pipeline's own loop with a window of its states travelling through it.

The scheduler's timesteps are iterated as ever, one step each. An iteration is one of three things:

* a round: the loop body runs once on window tensors, each denoiser call is batched over the window, and the core's
  window is told what came out (it sweeps, tests, slides and guesses);
* a replay: an accepted step; the loop body runs on plain tensors, the denoiser's output is the remembered one, and the
  scheduler takes its step for real, with its own history and noise;
* a plain step, where there is nothing to batch yet, or where a remembered output does not fit (a miss).

So whatever else the pipeline does in its loop is done by the pipeline, in order, on the real states.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any

import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn

from integrations.diffusers.replay import Replay, batched, joined
from integrations.diffusers.report import Report
from integrations.diffusers.scheduler_chain import PATCHED, NoiseTape, SchedulerChain, copy_of
from integrations.diffusers.step_table import step_table
from integrations.diffusers.timesteps import Timesteps
from integrations.diffusers.window_tensor import WindowTensor, find, pick
from picardsolve import FrozenOutput, FrozenSample, Guess, Iteration, Picard
from picardsolve.tolerances import Tolerance
from picardsolve.window import Settings, Window

_TABLE_TOLERANCE = 1e-5  # below, the window steps with the scheduler itself: a table differs from it by rounding
_SLACK = 4.0  # inputs of a replay may be this many tolerances from those of its round: the sweep moved them once more


class Sampler:
    """The context in which a pipeline runs in parallel; made by `sampler`.

    Attributes:
        report: the cost of the latest run.
    """

    def __init__(
        self,
        scheduler: Any,
        modules: list[nn.Module],
        width: int,
        tolerance: float,
        iteration: Iteration,
        guess: Guess | None,
    ):
        self.report = Report()
        self._scheduler, self._modules = scheduler, list(dict.fromkeys(modules))
        self._width, self._tolerance, self._iteration, self._guess = width, tolerance, iteration, guess
        self._window: Window | None = None
        self._running = False

    # ---- the context: instance attributes shadow the methods, and are removed again

    def __enter__(self) -> "Sampler":
        if "step" in vars(self._scheduler):
            raise RuntimeError("sampler: this scheduler is already running in parallel; leave the other context first.")
        self._signature = inspect.signature(self._scheduler.step)
        self._real = {name: getattr(self._scheduler, name) for name in PATCHED if hasattr(self._scheduler, name)}
        for name, method in self._real.items():
            setattr(self._scheduler, name, wraps(method)(partial(getattr(self, f"_{name}"))))
        self._forwards = [vars(module).get("forward") for module in self._modules]
        for module in self._modules:
            module.forward = wraps(module.forward)(partial(self._forward, module, module.forward))
        self._watch()
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._real:
            vars(self._scheduler).pop(name, None)
        for module, forward in zip(self._modules, self._forwards, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward
        timesteps = self._scheduler.timesteps
        if isinstance(timesteps, Timesteps):
            self._scheduler.timesteps = timesteps.plain()
        self._running, self._window = False, None

    def _watch(self) -> None:
        timesteps = self._scheduler.timesteps
        if isinstance(timesteps, Tensor) and not isinstance(timesteps, Timesteps):
            self._table = timesteps
            self._scheduler.timesteps = Timesteps.of(timesteps, self._iterate)

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> Any:
        self._real["set_timesteps"](*args, **kwargs)
        self._watch()

    # ---- one iteration of the pipeline's loop after the other

    def _iterate(self, timesteps: Tensor) -> Iterator[Tensor]:
        self._timesteps, self._window = timesteps, None
        self._replay, self._asked = Replay(_SLACK * self._tolerance), 1
        self.report = Report(steps=len(timesteps))
        self._running = True
        try:
            for i in range(len(timesteps)):
                self._i, self._number, self._missed, self._shown = i, 0, False, self._asked
                self._replaying = self._window is not None and i < int(self._window.begin[0])
                if self._replaying or self._asked == 1:
                    self._shown = 1
                    yield timesteps[i]
                else:
                    yield self._carry([timesteps[i + j] for j in range(self._asked)])
        finally:
            self._running = False

    def _carry(self, items: list[Tensor]) -> WindowTensor:
        return WindowTensor.of(items, self._shrink)

    def _shrink(self, width: int) -> None:
        self._shown = min(self._shown, width)

    def _forward(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._running:
            return forward(*args, **kwargs)
        number, self._number = self._number, self._number + 1
        if self._replaying and not self._missed:
            call = self._replay.recall(self._i, number, module, args, kwargs)
            if call is not None:
                return call.output
            self._missed = True
            self.report.misses += 1
        if not self._replaying and not any(w.items[0].dim() > 1 for w in find((args, kwargs))):
            self._shown = 1  # no states travel through the loop, or the pipeline went on with others of its own
        if number == 0 or self._missed:
            self._count(self._shown)
        if self._shown == 1:
            return forward(*pick(args, 0), **pick(kwargs, 0))
        outputs = batched(forward, self._shown, args, kwargs)
        self._replay.remember(self._i, number, module, args, kwargs, outputs)
        return joined(outputs, self._asked, self._shrink)

    def _count(self, width: int) -> None:
        self.report.rounds += 1
        self.report.evaluations += width * self.report.samples
        self.report.width = max(self.report.width, width)

    def _scale_model_input(self, sample: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        real = self._real["scale_model_input"]
        if not isinstance(sample, WindowTensor):
            return real(sample, timestep, *args, **kwargs)
        items = [real(sample.items[0], self._timesteps[self._i], *args, **kwargs)]
        for j, item in enumerate(sample.items[1:], 1):
            ahead = copy_of(self._scheduler, self._table)
            if getattr(ahead, "_step_index", None) is not None:
                ahead._step_index += j
            items.append(type(ahead).scale_model_input(ahead, item, self._timesteps[self._i + j], *args, **kwargs))
        return self._carry(items)

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs)
        output, timestep, sample = (bound.arguments.pop(name) for name in ("model_output", "timestep", "sample"))
        extra = dict(bound.arguments)
        extra.update(extra.pop("kwargs", {}))
        if not self._running:
            return self._real["step"](output, timestep, sample, **extra)
        if self._replaying:
            stepped = self._real["step"](output, timestep, sample, **extra)
            if self._missed:
                self._replay.keep(0, 0)
                self._restart(_flat(_previous(stepped)))
            return self._next(stepped)
        return self._round(output, sample, extra)

    def _round(self, output: Tensor, sample: Tensor, extra: dict[str, Any]) -> Any:
        """Take the first step for real, and tell the window what the denoiser made of all of them."""
        outputs, samples = _items(output, self._asked), _items(sample, self._asked)
        if self._window is None:
            self.report.samples = len(samples[0])
            self.report.evaluations *= len(samples[0])  # of the first call, made before the batch was known
        before = copy_of(self._scheduler, self._table)
        tape = NoiseTape(_generators(extra.get("generator"), samples[0].device))
        states = tape.states()
        stepped = self._real["step"](outputs[0], self._timesteps[self._i], samples[0], **extra)
        if self._window is None:
            drew = any(not torch.equal(a, b) for a, b in zip(states, tape.states(), strict=True))
            self._window = self._begin(before, outputs[0], samples[0], extra, tape, drew)
            self._window.ask()
        window = self._window
        chain = window.chain
        assert isinstance(chain, SchedulerChain)
        chain.scheduler = before
        chain.tape.before.setdefault(self._i, states)
        window.narrow(self._shown)
        window.correct(torch.stack([_flat(item) for item in samples[: self._shown]]))
        window.tell(torch.stack([_flat(item) for item in outputs[: self._shown]]).flatten(0, 1))
        begin = int(window.begin[0])
        self._replay.keep(self._i + 1, begin)
        chain.forget(self._i + 1)
        self.report.history = window.history
        return self._next(stepped)

    def _begin(
        self, scheduler: Any, output: Tensor, sample: Tensor, extra: dict[str, Any], tape: NoiseTape, drew: bool
    ) -> Window:
        extra = {key: value for key, value in extra.items() if key != "return_dict"}
        fast = None
        if self._tolerance >= _TABLE_TOLERANCE and output.shape == sample.shape:
            fast = step_table(scheduler, self._timesteps, extra)
        chain = SchedulerChain(
            scheduler, self._timesteps, self._table, sample.shape, output.shape, sample.dtype, extra, tape, fast
        )
        guess = self._guess or (FrozenSample() if drew else FrozenOutput())
        tolerance = Tolerance(noise=self._tolerance)
        return Window(chain, _flat(sample), Settings(self._width, self._iteration, guess, tolerance, lockstep=True))

    def _restart(self, state: Tensor) -> None:
        assert self._window is not None
        if self._i + 1 < len(self._timesteps):
            self._window.restart(self._i + 1, state)

    def _next(self, stepped: Any) -> Any:
        """The step's return value, carrying the window's states if the next iteration is a round."""
        window = self._window
        assert window is not None
        if window.done or self._i + 1 != int(window.begin[0]):
            return stepped
        state = _previous(stepped)
        rows = window.ask()
        self._asked = len(rows.step) // len(state)
        if self._asked == 1:
            return stepped
        ahead = rows.state.reshape(self._asked, *state.shape).to(state.dtype).unbind(0)
        carried = self._carry([state, *ahead[1:]])
        if isinstance(stepped, BaseOutput):
            return type(stepped)(**{**stepped, "prev_sample": carried})
        return (carried, *stepped[1:])


def sampler(
    pipe: Any,
    *,
    window: int = 32,
    tolerance: float = 1e-3,
    iteration: Iteration | None = None,
    guess: Guess | None = None,
) -> Sampler:
    """A context in which ``pipe(...)`` runs in parallel over its steps, unmodified: same seed, same image.

    Args:
        pipe: a diffusers pipeline with a ``scheduler`` and a denoiser.
        window: steps solved at once, at least 1.
        tolerance: a state has converged when a round changes it by less than this, relative to its size; 0 gives the
            sequential result, to the last bits of the denoiser's own batching.
        iteration: how a window answers to a round; `picardsolve.Picard` by default.
        guess: what states entering the window start from; by default the last predicted sample held fixed where the
            sampler draws noise, else the last output.

    Raises:
        TypeError: ``pipe`` has no scheduler to run, or one whose ``step`` is of another kind.
        ValueError: ``window`` or ``tolerance`` is out of range.
    """
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise TypeError(f"pipe: expected a diffusers pipeline with a scheduler, got {type(pipe).__name__}.")
    modules = [module for module in pipe.components.values() if isinstance(module, nn.Module)]
    return attach(scheduler, modules, window=window, tolerance=tolerance, iteration=iteration, guess=guess)


def attach(
    scheduler: Any,
    modules: list[nn.Module],
    *,
    window: int,
    tolerance: float,
    iteration: Iteration | None,
    guess: Guess | None,
) -> Sampler:
    """A `Sampler` for any loop over ``scheduler.timesteps`` that calls ``modules`` and ``scheduler.step``."""
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise ValueError(f"window: expected an integer >= 1, got {window!r}.")
    if not tolerance >= 0:
        raise ValueError(f"tolerance: expected a number >= 0, got {tolerance!r}.")
    names = list(inspect.signature(scheduler.step).parameters)[:3] if hasattr(scheduler, "step") else []
    if names != ["model_output", "timestep", "sample"]:
        raise TypeError(
            f"scheduler: expected step(model_output, timestep, sample, ...), got {type(scheduler).__name__} with "
            f"step({', '.join(names)}, ...); call the pipeline itself."
        )
    return Sampler(scheduler, modules, window, float(tolerance), iteration or Picard(), guess)


def _generators(given: Any, device: torch.device) -> list[torch.Generator]:
    if given is None:
        return [torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator]
    return list(given) if isinstance(given, list | tuple) else [given]


def _items(value: Tensor, count: int) -> list[Tensor]:
    return value.items if isinstance(value, WindowTensor) else [value] * count


def _flat(state: Tensor) -> Tensor:
    return state.reshape(len(state), -1).to(torch.promote_types(state.dtype, torch.float32))


def _previous(stepped: Any) -> Tensor:
    return stepped[0] if isinstance(stepped, tuple) else stepped.prev_sample
