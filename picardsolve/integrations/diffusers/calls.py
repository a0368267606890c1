"""The public calls: `sample` a pipeline, enter a `sampler` around it, or `denoise` without a pipeline."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

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
from picardsolve.integrations.diffusers.options import Options
from picardsolve.integrations.diffusers.refusals import refuse_tokens, why_sequential
from picardsolve.integrations.diffusers.report import Report
from picardsolve.integrations.diffusers.run.ranks import UNFIT
from picardsolve.integrations.diffusers.sampler import Sampler

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_STEPS = "model_output", "timestep", "sample"  # what a loop gives a step
_OURS = tuple(field.name for field in fields(Options))


class _ReportedTuple(tuple):
    """A pipeline's result with ``return_dict=False``, with an attribute for the report."""

    report: Report


def sampler(
    pipe: Any,
    *,
    window: int | Literal["auto"] = 32,
    tolerance: float = 1e-3,
    max_batch: int | None = None,
    iteration: Iteration | None = None,
    guess: Guess | None = None,
    batcher: Any = None,
    mesh: "DeviceMesh | None" = None,
    devices: Sequence[Any] | None = None,
) -> Sampler:
    """A context in which ``pipe(...)`` runs in parallel over its steps, unmodified.

    The same seed gives the same image to a tolerance; ``docs/pipelines.md`` shows how close images were. A run that
    cannot be parallel is sequential, and ``report.sequential`` says why.

    Args:
        pipe: a diffusers pipeline with a ``scheduler`` and a denoiser.
        window: steps solved at once, at least 1; 32 by default. "auto" tries several widths and continues with the
            fastest, which may be one step. The choice depends on the clock, and so do the result's last digits.
        tolerance: relative to the state's size; 1e-3 by default. A state is accepted when two numbers are at most this:
            its change in a round, and the sum of the residuals up to it (what Picard iteration would still change). The
            tolerance does not bound the distance to the untouched pipeline's result: see ``report.certificate``. 0
            gives the sequential result, up to rounding of the denoiser's batches. Above 0 it is at least the resolution
            of the states' dtype (``report.tolerance``).
        max_batch: largest number of rows in a denoiser call (guidance counts twice); wider windows are split.
        iteration: how a round computes the window's new states. Default: `picardsolve.Secant`, or
            `picardsolve.Exponential` for schedulers whose step starts from an earlier state (UniPC, Heun).
        guess: initial values of states that enter the window. Default: the last predicted sample is held fixed where
            the sampler draws noise, otherwise the last output.
        batcher: a `picardsolve.Batcher` of the denoiser, or a request of one: calls are merged with those of other runs
            in other threads, and with ``window="auto"`` windows follow the load.
        mesh: a `torch.distributed` ``DeviceMesh`` whose ranks all run the same pipeline with the same seed. Each
            evaluates a share of a round's steps, with guidance and ControlNets of a step on one rank. Rank 0 decides,
            and all get its image. See docs/devices.md.
        devices: devices of this process that share a round's steps, such as ``["cuda:0", "cuda:1"]``: each gets a copy
            of the denoiser, which is kept, and made anew where the denoiser has changed. Steps of a device that fails
            are evaluated on the others, and a note says so.

    Raises:
        TypeError: ``pipe`` has no scheduler, or a scheduler of integer tokens, or a denoiser with a step cache, or
            ``iteration`` is `picardsolve.Parareal` or `Newton`, or ``mesh`` is no mesh.
        ValueError: ``window``, ``tolerance`` or ``max_batch`` is out of range, or a device is not there, or a module
            cannot be copied to it.
        picardsolve.distributed.RankError: while it runs: a rank was lost or failed, or runs with something else. Its
            ``report`` has the last state.
    """
    return _sampler(pipe, Options(window, tolerance, max_batch, iteration, guess, batcher, mesh, devices))


def _sampler(pipe: Any, options: Options) -> Sampler:
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise TypeError(f"pipe: expected a diffusers pipeline with a scheduler, got {type(pipe).__name__}.")
    modules = [module for module in pipe.components.values() if isinstance(module, nn.Module)]
    return Sampler(scheduler, modules, options, pipe)


def sample(
    pipe: Any,
    *args: Any,
    window: int | Literal["auto"] = 32,
    tolerance: float = 1e-3,
    max_batch: int | None = None,
    iteration: Iteration | None = None,
    guess: Guess | None = None,
    batcher: Any = None,
    mesh: "DeviceMesh | None" = None,
    devices: Sequence[Any] | None = None,
    pipeline_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Call ``pipe(*args, **kwargs)`` in parallel over its steps.

    An argument that neither this call nor the pipeline reads raises an error, even if the pipeline would ignore it. A
    pipeline reads the arguments in its signature, and those that its code or its documentation names.

    Args:
        pipe: a diffusers pipeline.
        *args: passed on to the pipeline.
        window: as for `sampler`.
        tolerance: as for `sampler`.
        max_batch: as for `sampler`.
        iteration: as for `sampler`.
        guess: as for `sampler`.
        batcher: as for `sampler`.
        mesh: as for `sampler`.
        devices: as for `sampler`.
        pipeline_kwargs: passed on to the pipeline without a check: arguments that the pipeline passes on, and arguments
            of the pipeline with one of the names above.
        **kwargs: passed on to the pipeline.

    Returns:
        The pipeline's result, with an attribute ``report``.

    Raises:
        TypeError: an argument is not read; see `sampler` for more.
        ValueError: see `sampler`.
    """
    options = Options(window, tolerance, max_batch, iteration, guess, batcher, mesh, devices)
    run = _sampler(pipe, options)
    refuse_unread_by_pipeline(pipe, kwargs, _OURS)
    kwargs = merged("pipeline_kwargs", pipeline_kwargs, kwargs)
    plain = {name: value for name, value in kwargs.items() if not callable(value)}
    before = Snapshot({**_kept(pipe), **plain, **random_generators()})
    try:
        with run:
            out = pipe(*args, **kwargs)
    except UNFIT as error:
        watched = any(kwargs.get(name) is not None for name in ("callback", "callback_on_step_end"))
        if watched or not run.failed:
            raise
        why = f"its loop failed on a window of states ({type(error).__name__}: {error})"
        if not all([run.restore(), before.restore()]):
            raise MemoryLost(
                f"{type(pipe).__name__}: {why}, and what it remembers of that cannot be put back; reload it, and call "
                "it itself."
            ) from error
        run = Sampler(pipe.scheduler, run.modules, Options(1, 0.0, batcher=batcher), pipe)
        run.why = why
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
    batcher: Any = None,
    mesh: "DeviceMesh | None" = None,
    devices: Sequence[Any] | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    eta: float | None = None,
    step_kwargs: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **conditioning: Any,
) -> tuple[Tensor, Report]:
    """Run the sampling loop without a pipeline, for robot policies and research samplers.

    Steps ``scheduler`` from ``x`` over its timesteps in parallel. Call ``scheduler.set_timesteps`` first.

    Args:
        model: ``model(x, t, **conditioning)``, a module or a function; returns a tensor, or an object with ``sample``.
        scheduler: a diffusers scheduler with its timesteps set.
        x: ``(B, ...)`` initial noise, already at the scheduler's ``init_noise_sigma``.
        window: as for `sampler`.
        tolerance: as for `sampler`.
        max_batch: as for `sampler`.
        iteration: as for `sampler`.
        guess: as for `sampler`.
        batcher: as for `sampler`.
        mesh: as for `sampler`.
        devices: as for `sampler`.
        generator: passed on to ``scheduler.step``.
        eta: passed on to ``scheduler.step``.
        step_kwargs: further arguments of ``scheduler.step``, such as ``{"s_churn": 40.0}``.
        model_kwargs: passed on to the model without a check: arguments of the model with one of the names above.
        **conditioning: passed on to the model; tensors with leading dimension B are per sample.

    Returns:
        The denoised ``x`` and the report.

    Raises:
        TypeError: the model does not read an argument, or ``scheduler.step`` does not take one; see `sampler`.
        ValueError: see `sampler`.
    """
    refuse_tokens(scheduler)
    reason = why_sequential(scheduler)
    if reason is not None:
        raise TypeError(
            f"scheduler: {reason}; write the loop yourself, within picardsolve.integrations.diffusers.sampler."
        )
    module = model if isinstance(model, nn.Module) else _Function(model)
    own = {key: value for key, value in {"generator": generator, "eta": eta}.items() if value is not None}
    extra = merged("step_kwargs", step_kwargs, own)
    accepted = inspect.signature(scheduler.step).parameters.keys() - {*_STEPS, "return_dict"}
    for name in extra:
        if name not in accepted:
            raise TypeError(f"{name}: {type(scheduler).__name__}.step takes none; leave it out.")
    refuse_unread_by_model(model, conditioning, _OURS)
    conditioning = merged("model_kwargs", model_kwargs, conditioning)
    run = Sampler(scheduler, [module], Options(window, tolerance, max_batch, iteration, guess, batcher, mesh, devices))
    with torch.no_grad(), run:
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            out = module(scaled, t, **conditioning)
            x = scheduler.step(getattr(out, "sample", out), t, x, **extra, return_dict=False)[0]
    return x, run.report


def _kept(pipe: Any) -> dict[str, Any]:
    """A pipeline's attributes, apart from networks and tokenizers."""
    parts = {name: part for name, part in vars(pipe).items() if not isinstance(part, nn.Module)}
    return {name: part for name, part in parts.items() if not type(part).__module__.startswith("transformers")}


class _Function(nn.Module):
    def __init__(self, function: Any):
        super().__init__()
        self.function = function
        self.forward = function  # itself, so that runs of one function in several threads make the same calls
