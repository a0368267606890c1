"""The two calls of this integration: ``sample(pipe, ...)`` and ``denoise(model, scheduler, x, ...)``."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from picardsolve import Guess, Iteration
from picardsolve.integrations.diffusers.arguments import (
    merged,
    named_like_ours,
    refuse_unread_by_model,
    refuse_unread_by_pipeline,
)
from picardsolve.integrations.diffusers.mutable_state import MemoryLost, Snapshot, random_generators
from picardsolve.integrations.diffusers.options import Numerics
from picardsolve.integrations.diffusers.refusals import refuse_tokens, why_sequential
from picardsolve.integrations.diffusers.report import Report
from picardsolve.integrations.diffusers.sampler import attach, sampler

# What a loop raises that cannot carry a window of states; it is run again, one step at a time.
_UNFIT = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)
_OURS = tuple(inspect.signature(sampler).parameters)[1:]


class _ReportedTuple(tuple):
    """What a pipeline returns with ``return_dict=False``, with room for the report."""

    report: Report


def sample(
    pipe: Any,
    *args: Any,
    window: int | Literal["auto"] = 32,
    tolerance: float = 1e-3,
    max_batch: int | None = None,
    iteration: Iteration | None = None,
    guess: Guess | None = None,
    pipeline_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Call ``pipe(*args, **kwargs)`` in parallel over its steps.

    An argument that is neither one of these nor one that the pipeline reads is refused, also where the pipeline would
    swallow it: it reads those of its signature, and those that its code or its documentation names.

    Args:
        pipe: a diffusers pipeline.
        *args: passed on to the pipeline.
        window: as for `sampler`.
        tolerance: as for `sampler`.
        max_batch: as for `sampler`.
        iteration: as for `sampler`.
        guess: as for `sampler`.
        pipeline_kwargs: passed on to the pipeline as they are: what it hands on to something else, or calls by one of
            the names above.
        **kwargs: passed on to the pipeline.

    Returns:
        What the pipeline returns, with an attribute ``report``.

    Raises:
        TypeError: an argument is read by nobody; see `sampler` for more.
        ValueError: see `sampler`.
    """
    run = sampler(pipe, window=window, tolerance=tolerance, max_batch=max_batch, iteration=iteration, guess=guess)
    refuse_unread_by_pipeline(pipe, kwargs, _OURS)
    kwargs = merged("pipeline_kwargs", pipeline_kwargs, kwargs)
    before = Snapshot({**_kept(pipe), **_plain(kwargs), **random_generators()})
    try:
        with run:
            out = pipe(*args, **kwargs)
    except _UNFIT as error:
        watched = any(kwargs.get(name) is not None for name in ("callback", "callback_on_step_end"))
        if watched or not run.failed:
            raise
        if not all([run.restore(), before.restore()]):
            raise MemoryLost(
                f"{type(pipe).__name__}: its loop failed on a window of states ({type(error).__name__}: {error}), and "
                "what it remembers of that cannot be put back; reload it, and call it itself."
            ) from error
        run = attach(pipe.scheduler, run.modules, Numerics(1, 0.0, None, None, None), pipe)
        run.why = f"its loop failed on a window of states ({type(error).__name__}: {error})"
        with run:
            out = pipe(*args, **kwargs)
    for name in named_like_ours(pipe, _OURS):
        run.report.note(
            f"{name}= is the window's here; {type(pipe).__name__} has an argument of that name, too, which "
            f"pipeline_kwargs={{{name!r}: ...}} reaches."
        )
    if isinstance(out, tuple):
        out = _ReportedTuple(out)
    out.report = run.report
    return out


def denoise(
    model: Any,
    scheduler: Any,
    x: Tensor,
    *,
    window: int | Literal["auto"] = 32,
    tolerance: float = 1e-3,
    max_batch: int | None = None,
    iteration: Iteration | None = None,
    guess: Guess | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    eta: float | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **conditioning: Any,
) -> tuple[Tensor, Report]:
    """The sampling loop without a pipeline, for robot policies and research samplers.

    Steps ``scheduler`` from ``x`` over its timesteps (call ``scheduler.set_timesteps`` before), in parallel.

    Args:
        model: ``model(x, t, **conditioning)``, a module or a function; returns the prediction, or an object with
            ``sample``.
        scheduler: a diffusers scheduler with its timesteps set.
        x: ``(B, ...)`` initial noise, already at the scheduler's ``init_noise_sigma``.
        window: as for `sampler`.
        tolerance: as for `sampler`.
        max_batch: as for `sampler`.
        iteration: as for `sampler`.
        guess: as for `sampler`.
        generator: passed on to ``scheduler.step``.
        eta: likewise.
        model_kwargs: passed on to the model as they are: what it calls by one of the names above.
        **conditioning: passed on to the model; tensors with leading dimension B are per sample.

    Returns:
        The denoised ``x`` and the report.

    Raises:
        TypeError: the model reads no such argument, or ``scheduler.step`` takes no generator or eta; see `sampler` for
            more.
        ValueError: see `sampler`.
    """
    refuse_tokens(scheduler)
    reason = why_sequential(scheduler)
    if reason is not None:
        raise TypeError(
            f"scheduler: {reason}; write the loop yourself, within picardsolve.integrations.diffusers.sampler."
        )
    module = model if isinstance(model, nn.Module) else _Function(model)
    accepted = inspect.signature(scheduler.step).parameters
    given = {"generator": generator, "eta": eta}
    extra = {key: value for key, value in given.items() if value is not None}
    for name in extra:
        if name not in accepted:
            raise TypeError(f"{name}: {type(scheduler).__name__}.step takes none; leave it out.")
    refuse_unread_by_model(model, conditioning, _OURS)
    conditioning = merged("model_kwargs", model_kwargs, conditioning)
    run = attach(scheduler, [module], Numerics(window, tolerance, iteration, guess, max_batch))
    with torch.no_grad(), run:
        return _loop(module, scheduler, x, extra, conditioning), run.report


def _loop(module: nn.Module, scheduler: Any, x: Tensor, extra: dict[str, Any], conditioning: dict[str, Any]) -> Tensor:
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = module(scaled, t, **conditioning)
        x = scheduler.step(getattr(out, "sample", out), t, x, **extra, return_dict=False)[0]
    return x


def _kept(pipe: Any) -> dict[str, Any]:
    """What a pipeline keeps, but for networks and tokenizers."""
    parts = {name: part for name, part in vars(pipe).items() if not isinstance(part, nn.Module)}
    return {name: part for name, part in parts.items() if not type(part).__module__.startswith("transformers")}


def _plain(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if not callable(value)}


class _Function(nn.Module):
    def __init__(self, function: Any):
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)
