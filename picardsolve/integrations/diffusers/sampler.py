"""The context in which a pipeline runs in parallel."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache, partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from picardsolve.distributed import Crew, MeshCrew, RankError, crew_of
from picardsolve.integrations.diffusers.mutable_state import Watch
from picardsolve.integrations.diffusers.options import Options
from picardsolve.integrations.diffusers.patches import PatchedForward, PatchedMethod
from picardsolve.integrations.diffusers.refusals import refuse_stateful, refuse_tokens, refuse_uncopied, why_sequential
from picardsolve.integrations.diffusers.report import Report
from picardsolve.integrations.diffusers.run.batching import Batch
from picardsolve.integrations.diffusers.run.loop import Loop
from picardsolve.integrations.diffusers.run.onlookers import observed
from picardsolve.integrations.diffusers.run.ranks import Following, Leading, Ranks
from picardsolve.integrations.diffusers.run.shared_lanes import SharedLanes
from picardsolve.integrations.diffusers.run.timesteps import Timesteps
from picardsolve.integrations.diffusers.run.window_tensor import WithoutLoopMode

_LOCK = Lock()
_ALIKE = ("window", "tolerance", "max_batch", "iteration", "guess")  # what ranks of a mesh must have alike


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
        if options.devices is not None:
            refuse_uncopied(self.modules)
        self._ranks = None if options.mesh is None or options.devices is not None else MeshCrew(options.mesh)
        self._crew_at = _crews(options, self._ranks)
        self._compared = False  # with the modules of other ranks
        self.why = why_sequential(scheduler)
        self.failed = False
        self._methods: list[PatchedMethod] = []
        self._forwards: list[PatchedForward] = []
        self._loops: list[Loop | Leading | Following] = []  # the innermost loop is last
        self._unended: list[Loop | Leading | Following] = []  # those that other ranks may not know to be over
        self._watches: list[Watch] = []
        self._places: dict[Any, AbstractContextManager[Any]] = {}  # of loops at a model that is shared
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

    def __exit__(self, kind: Any, error: BaseException | None, *_: object) -> None:
        for loop in list(self._loops):
            self._stop(loop)
        try:
            self._end(error)
        finally:
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
        self._end()
        compiled = any(_is_compiled(module) for module in self.modules)
        width, most = self._options.window, self._options.max_batch
        pad = width if compiled and isinstance(width, int) and width > 1 else None
        shared = None if self._crew_at is None or self.why is not None else SharedLanes(self._crew_at, most, pad)
        place = self._options.place()
        loop = self._loop(timesteps, Batch(most, pad, shared=shared), shared, place.__enter__())
        self._places[loop] = place
        self._watches.append(loop.watch)
        self._loops.append(loop)
        self._unended.append(loop)
        for forward in self._forwards:
            forward.start(loop)
        try:
            yield from loop
        finally:
            self._stop(loop)
        self._end()

    def _loop(
        self, timesteps: Tensor, batch: Batch, shared: SharedLanes | None, request: Any
    ) -> Loop | Leading | Following:
        """What answers the calls of a pass; over ranks of a mesh the first one leads."""
        options, step, crew, ranks = self._options, self._real.get("step"), self._ranks, None
        if shared is not None and crew is not None:
            settings = {**{name: getattr(options, name) for name in _ALIKE}, "timesteps": timesteps}
            ranks = Ranks(crew, settings, [] if self._compared else self.modules)
            self._compared = True
            if not crew.leads:
                return Following(timesteps, step, shared, ranks)
        seen = observed(sys._getframe(2), self._pipe, self._scheduler, self.modules)
        loop = Loop(self._scheduler, step, self._own, timesteps, options, batch, self.why, self._join, seen, request)
        return loop if ranks is None else Leading(loop, ranks)

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

    def _stop(self, loop: Loop | Leading | Following) -> None:
        if loop in self._loops:
            self.failed = loop.carrying
            self._loops.remove(loop)
            self._places.pop(loop).__exit__(None, None, None)
            loop.close()
        for forward in self._forwards:
            forward.stop(loop)

    def _end(self, error: BaseException | None = None) -> None:
        """Let the other ranks know of loops that are over; of one that is left early it is known later why."""
        for loop in [loop for loop in reversed(self._unended) if loop not in self._loops]:
            self._unended.remove(loop)
            if isinstance(error, RankError):
                error.report = loop.report
            loop.end(error)

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


def _crews(options: Options, ranks: MeshCrew | None) -> Callable[[torch.device], Crew | None] | None:
    """The crew for states on a device; None where one device has all rows."""
    if ranks is not None:
        return lambda home: ranks
    if options.devices is None:
        return None
    crew_at = cache(partial(crew_of, options.mesh, options.devices))
    crew_at(torch.device("cpu"))  # wrong devices are refused before any work
    return crew_at


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
