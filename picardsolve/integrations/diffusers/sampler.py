"""The context in which a pipeline runs in parallel."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from threading import Lock
from typing import Any

from torch import Tensor, nn

from picardsolve.integrations.diffusers.mutable_state import Watch
from picardsolve.integrations.diffusers.options import Options
from picardsolve.integrations.diffusers.patches import PatchedForward, PatchedMethod
from picardsolve.integrations.diffusers.refusals import refuse_stateful, refuse_tokens, why_sequential
from picardsolve.integrations.diffusers.report import Report
from picardsolve.integrations.diffusers.run.batching import Batch
from picardsolve.integrations.diffusers.run.loop import Loop
from picardsolve.integrations.diffusers.run.onlookers import observed
from picardsolve.integrations.diffusers.run.shared_lanes import SharedLanes
from picardsolve.integrations.diffusers.run.timesteps import Timesteps
from picardsolve.integrations.diffusers.run.window_tensor import WithoutLoopMode

_LOCK = Lock()


class Sampler:
    """Runs every loop over ``scheduler.timesteps`` in parallel within the context; made by `sampler`.

    The context answers the loop's calls of ``scheduler.step`` and of the denoisers.

    Attributes:
        report: the cost of the latest run.
        modules: the denoisers.
        why: why every run goes one step at a time; None if runs can be parallel.
        failed: whether an error left the context while the pipeline had a window of states.

    Raises:
        TypeError: the scheduler's states are integers, or a denoiser has a step cache.
    """

    def __init__(self, scheduler: Any, modules: list[nn.Module], options: Options, pipe: Any = None):
        refuse_tokens(scheduler)
        self.modules = list(dict.fromkeys(modules))
        refuse_stateful(self.modules)
        self.report = Report()
        self._scheduler, self._options, self._pipe = scheduler, options, pipe
        self._shared = None if options.mesh is None else SharedLanes(options.mesh, self.modules)
        self.why = why_sequential(scheduler)
        self.failed = False
        self._methods: list[PatchedMethod] = []
        self._forwards: list[PatchedForward] = []
        self._loops: list[Loop] = []  # the innermost loop is last
        self._watches: list[Watch] = []
        self._places: dict[Loop, AbstractContextManager[Any]] = {}  # of loops at a model that is shared
        self._bar: Any = None
        self._shown = 0

    # ---- instance attributes replace the methods within the context

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
        """Patch the denoisers; offload hooks replace a forward after every run, so that it needs a new patch."""
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
        width = self._options.window
        pad = width if compiled and isinstance(width, int) and width > 1 else None
        batch = Batch(self._options.max_batch, pad, shared=self._shared)
        seen = observed(sys._getframe(1), self._pipe, self._scheduler, self.modules)
        step = self._real.get("step")
        place = self._options.place()
        run = self.why, self._join, seen, place.__enter__()
        loop = Loop(self._scheduler, step, self._own, timesteps, self._options, batch, *run)
        self._places[loop] = place
        self._watches.append(loop.calls.watch)
        self._loops.append(loop)
        for forward in self._forwards:
            forward.start(loop)
        try:
            yield from loop
        finally:
            self._stop(loop)

    def _join(self, loop: Loop) -> None:
        """Patch the denoisers that a callback has added to the pipeline since the loop began."""
        parts = {} if self._pipe is None else vars(self._pipe)
        components = parts.get("components")
        for part in (*parts.values(), *(components.values() if isinstance(components, dict) else ())):
            if isinstance(part, nn.Module) and part not in self.modules:
                self.modules.append(part)
                self._forwards.append(PatchedForward.on(part))
                self._forwards[-1].start(loop)

    def restore(self) -> bool:
        """Restore the denoisers' internal state from before this context's first call; whether that was possible."""
        return all([watch.restore() for watch in reversed(self._watches)])

    def _stop(self, loop: Loop) -> None:
        if loop in self._loops:
            self.failed = loop.carrying
            self._loops.remove(loop)
            self._places.pop(loop).__exit__(None, None, None)
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
        if not self._loops:
            return real(sample, timestep, *args, **kwargs)
        with WithoutLoopMode():
            return self._loops[-1].scale_model_input(real, sample, timestep, *args, **kwargs)

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        if not self._loops:
            self.report.steps += 1
            return self._real["step"](*args, **kwargs)
        loop = self._loops[-1]
        self.report = loop.report
        with WithoutLoopMode():
            stepped = loop.step(*args, **kwargs)
        if self._bar is not None and self._shown != self.report.rounds:
            self._shown = self.report.rounds
            self._bar.set_postfix(rounds=self.report.rounds, refresh=False)
        return stepped

    def _progress_bar(self, *args: Any, **kwargs: Any) -> Any:
        self._bar = self._real["progress_bar"](*args, **kwargs)
        return self._bar


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
