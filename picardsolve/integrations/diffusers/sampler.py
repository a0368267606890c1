"""The context in which a pipeline runs in parallel."""

from collections.abc import Iterator
from threading import Lock
from typing import Any, Literal

from torch import Tensor, nn

from picardsolve import Copy, FrozenOutput, FrozenSample, Guess, Iteration
from picardsolve.extend import check_not_negative, check_optional_positive_integer
from picardsolve.integrations.diffusers.mutable_state import Watch
from picardsolve.integrations.diffusers.options import Numerics
from picardsolve.integrations.diffusers.patches import PatchedForward, PatchedMethod
from picardsolve.integrations.diffusers.refusals import refuse_iteration, refuse_stateful, refuse_tokens, why_sequential
from picardsolve.integrations.diffusers.report import Report
from picardsolve.integrations.diffusers.run.batching import Batch
from picardsolve.integrations.diffusers.run.loop import Loop
from picardsolve.integrations.diffusers.run.timesteps import Timesteps
from picardsolve.integrations.diffusers.run.window_tensor import WindowTensor, without_lane_mode

_LOCK = Lock()


class Sampler:
    """Runs every pass of a loop over ``scheduler.timesteps`` in parallel while it is entered; made by `sampler`.

    Attributes:
        report: the cost of the latest run.
        modules: whose calls are answered.
        why: why every run goes one step at a time; None if it need not.
        failed: whether the context was left by an error while a window of states travelled through a loop.
    """

    def __init__(self, scheduler: Any, modules: list[nn.Module], numerics: Numerics, pipe: Any = None):
        self.report = Report()
        self._scheduler, self.modules, self._numerics, self._pipe = scheduler, modules, numerics, pipe
        self.why = why_sequential(scheduler)
        self.failed = False
        self._methods: list[PatchedMethod] = []
        self._forwards: list[PatchedForward] = []
        self._loops: list[Loop] = []  # the innermost last
        self._watches: list[Watch] = []
        self._bar: Any = None
        self._shown = 0

    # ---- instance attributes shadow the methods, and are removed again

    def __enter__(self) -> "Sampler":
        with _LOCK:
            if isinstance(vars(self._scheduler).get("step"), PatchedMethod):
                raise RuntimeError(
                    "sampler: this scheduler is already running in parallel; leave the other context first."
                )
            try:
                self._put()
            except BaseException:
                self._remove()
                raise
        return self

    def __exit__(self, error: object, *_: object) -> None:
        for loop in list(self._loops):
            self._stop(loop)
        self.failed = self.failed and error is not None
        with _LOCK:
            self._remove()

    def _put(self) -> None:
        patched = {"step": self._step, "set_timesteps": self._set_timesteps, "scale_model_input": self._scale}
        owners = [(self._scheduler, name, call) for name, call in patched.items() if hasattr(self._scheduler, name)]
        if hasattr(self._pipe, "progress_bar"):
            owners.append((self._pipe, "progress_bar", self._progress_bar))
        for owner, name, call in owners:
            method = PatchedMethod(owner, name, call)
            method.put()
            self._methods.append(method)
        self._real = {name: method.original for (_, name, _), method in zip(owners, self._methods, strict=True)}
        self._scheduler.__dict__["__deepcopy__"] = self._methods[0].__deepcopy__
        self._patch_modules()
        self._watch()

    def _remove(self) -> None:
        for method in self._methods:
            method.remove()
        for forward in self._forwards:
            forward.off()
        self._methods, self._forwards, self._loops, self._bar = [], [], [], None
        vars(self._scheduler).pop("__deepcopy__", None)
        timesteps = getattr(self._scheduler, "timesteps", None)
        if isinstance(timesteps, Timesteps):
            self._scheduler.timesteps = timesteps.plain()

    def _patch_modules(self) -> None:
        """Patch the denoisers, also those whose forward was replaced since, as offload hooks do after every run."""
        for forward in [forward for forward in self._forwards if not forward.in_place]:
            forward.off()
            self._forwards.remove(forward)
        patched = [forward.module for forward in self._forwards]
        self._forwards += [PatchedForward.on(module) for module in self.modules if module not in patched]

    def _watch(self) -> None:
        timesteps = getattr(self._scheduler, "timesteps", None)
        if isinstance(timesteps, Tensor) and not isinstance(timesteps, Timesteps):
            self._own = timesteps
            self._scheduler.timesteps = Timesteps.of(timesteps, self._iterate)

    # ---- a pass of the loop

    def _iterate(self, timesteps: Tensor) -> Iterator[Tensor]:
        refuse_stateful(module for module in self.modules if getattr(module, "is_cache_enabled", False))
        self._patch_modules()
        compiled = any(_is_compiled(module) for module in self.modules)
        width = self._numerics.window
        batch = Batch(self._numerics.max_batch, width if compiled and isinstance(width, int) and width > 1 else None)
        step = self._real.get("step")
        loop = Loop(self._scheduler, step, self._own, timesteps, self._numerics, batch, self.why, self._join)
        self._watches.append(loop.watch)
        self._loops.append(loop)
        for forward in self._forwards:
            forward.start(loop)
        try:
            yield from loop
        finally:
            self._stop(loop)

    def _join(self, loop: Loop) -> None:
        """Follow the denoisers that the pipeline was given since, by a callback."""
        parts = {} if self._pipe is None else vars(self._pipe)
        components = parts.get("components")
        for part in (*parts.values(), *(components.values() if isinstance(components, dict) else ())):
            if isinstance(part, nn.Module) and part not in self.modules:
                self.modules.append(part)
                self._forwards.append(PatchedForward.on(part))
                self._forwards[-1].start(loop)

    def restore(self) -> bool:
        """Put the denoisers' memory back to before this context's first call; whether that was possible."""
        return all([watch.restore() for watch in reversed(self._watches)])

    def _stop(self, loop: Loop) -> None:
        if loop in self._loops:
            self.failed = loop.carrying
            self._loops.remove(loop)
            loop.close()
        for forward in self._forwards:
            forward.stop(loop)

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> Any:
        self._real["set_timesteps"](*args, **kwargs)
        unseen = "the pipeline's loop is not over scheduler.timesteps, and was not followed"
        self.report = Report(sequential=self.why or unseen)
        self._watch()

    def _scale(self, sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Tensor:
        real = self._real["scale_model_input"]
        if not self._loops or not (type(sample) is WindowTensor or type(timestep) is WindowTensor):
            return real(sample, timestep, *args, **kwargs)
        with without_lane_mode():
            return self._loops[-1].scale_model_input(real, sample, timestep, *args, **kwargs)

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        if not self._loops:
            self.report.steps += 1
            return self._real["step"](*args, **kwargs)
        loop = self._loops[-1]
        self.report = loop.report
        with without_lane_mode():
            stepped = loop.step(*args, **kwargs)
        if self._bar is not None and self._shown != self.report.rounds:
            self._shown = self.report.rounds
            self._bar.set_postfix(rounds=self.report.rounds, refresh=False)
        return stepped

    def _progress_bar(self, *args: Any, **kwargs: Any) -> Any:
        self._bar = self._real["progress_bar"](*args, **kwargs)
        return self._bar


def sampler(
    pipe: Any,
    *,
    window: int | Literal["auto"] = 32,
    tolerance: float = 1e-3,
    max_batch: int | None = None,
    iteration: Iteration | None = None,
    guess: Guess | None = None,
) -> Sampler:
    """A context in which ``pipe(...)`` runs in parallel over its steps, unmodified.

    Same seed, the same image to a tolerance; what that was worth is measured in ``docs/pipelines.md``.
    What cannot be run in parallel runs as it is, and ``report.sequential`` says why.

    Args:
        pipe: a diffusers pipeline with a ``scheduler`` and a denoiser.
        window: steps solved at once, at least 1; "auto" tries widths and settles on the fastest, or on one step at a
            time where that is (which width that is depends on the clock, and so does the last digit of the result).
        tolerance: a state is accepted when its change in a round, and the residuals up to it added up (what Picard
            iteration would still change), are at most this, relative to its size. That says what is left to change,
            and bounds no distance to the untouched pipeline's result: see ``report.certificate``. 0 gives the
            sequential result, to the last bits of the denoiser's own batching. Above 0 it is at least the resolution
            of the states' type (``report.tolerance``).
        max_batch: rows that a denoiser call may have (guidance counts twice); a wider window is cut into chunks.
        iteration: how a window answers to a round; by default `picardsolve.Secant`, or `picardsolve.Exponential` for
            schedulers whose step starts from an earlier state (UniPC, Heun).
        guess: what states entering the window start from; by default the last predicted sample held fixed where the
            sampler draws noise, else the last output.

    Raises:
        TypeError: ``pipe`` has no scheduler to run, or one of integer tokens, or a denoiser with a step cache, or
            ``iteration`` is `picardsolve.Parareal` or `Newton`.
        ValueError: ``window``, ``tolerance`` or ``max_batch`` is out of range.
    """
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise TypeError(f"pipe: expected a diffusers pipeline with a scheduler, got {type(pipe).__name__}.")
    modules = [module for module in pipe.components.values() if isinstance(module, nn.Module)]
    return attach(scheduler, modules, Numerics(window, tolerance, iteration, guess, max_batch), pipe)


def attach(scheduler: Any, modules: list[nn.Module], numerics: Numerics, pipe: Any = None) -> Sampler:
    """A `Sampler` for any loop over ``scheduler.timesteps`` that calls ``modules`` and ``scheduler.step``."""
    window, tolerance = numerics.window, numerics.tolerance
    if window != "auto" and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
        raise ValueError(f'window: expected an integer >= 1 or "auto", got {window!r}.')
    check_not_negative("tolerance", tolerance)
    check_optional_positive_integer("max_batch", numerics.max_batch)
    if not isinstance(numerics.guess, Copy | FrozenOutput | FrozenSample | None):
        raise TypeError(
            "guess: a pipeline's states start from Copy(), FrozenOutput() or FrozenSample(), got "
            f"{getattr(numerics.guess, '__name__', type(numerics.guess).__name__)}; pass one of these or None."
        )
    refuse_iteration(numerics.iteration)
    refuse_tokens(scheduler)
    modules = list(dict.fromkeys(modules))
    refuse_stateful(modules)
    return Sampler(scheduler, modules, numerics, pipe)


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
