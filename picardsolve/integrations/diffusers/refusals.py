"""Denoisers and schedulers that cannot be run in parallel: refused before any work, or run one step at a time."""

import inspect
from collections.abc import Iterable
from typing import Any

from torch import nn

from picardsolve.integrations.diffusers.patches import PatchedForward

STEP = ["model_output", "timestep", "sample"]  # the arguments that a scheduler's step begins with


def refuse_stateful(modules: Iterable[nn.Module]) -> None:
    """Refuse denoisers with hooks that remember earlier steps.

    Raises:
        TypeError: a step cache (FirstBlockCache, TaylorSeer, PAB, FasterCache, MagCache, ...) is enabled.
    """
    for module in modules:
        parts = [module]
        while parts:  # module.modules() builds names, which takes milliseconds
            part = parts.pop()
            parts += [child for child in part._modules.values() if child is not None]
            hooks = getattr(vars(part).get("_diffusers_hook"), "hooks", {})
            for name, hook in hooks.items():
                if getattr(hook, "_is_stateful", False):
                    raise TypeError(
                        f"{type(module).__name__}: its hook {name!r} remembers the step before, and steps run side by "
                        "side here; call disable_cache() on it, or call the pipeline itself."
                    )


def refuse_uncopied(modules: Iterable[nn.Module]) -> None:
    """Refuse modules whose copies on another device would not be theirs.

    Raises:
        ValueError: a hook or a compiler stands in the place of a forward, or a module is on several devices.
    """
    for module in modules:
        name, found = type(module).__name__, None
        for part in module.modules():
            if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
                found = "is compiled, which a copy is not"
            elif not isinstance(vars(part).get("forward"), PatchedForward | None) and not hasattr(part, "function"):
                found = f"has another forward in the place of {type(part).__name__}'s, as hooks for offloading do"
        if len({parameter.device for parameter in module.parameters()}) > 1:
            found = "is spread over several devices itself"
        if found is not None:
            raise ValueError(
                f"devices: {name} {found}; leave devices out, or pass mesh, with a process for each device."
            )


def refuse_tokens(scheduler: Any) -> None:
    """Refuse schedulers of tokens, whose states cannot be close to each other.

    Raises:
        TypeError: the scheduler's states are integers.
    """
    step = getattr(scheduler, "step", None)
    sample = None if step is None else inspect.signature(step).parameters.get("sample")
    if sample is not None and "LongTensor" in str(sample.annotation):
        raise TypeError(
            f"scheduler: {type(scheduler).__name__} steps integer tokens, and a fixed point is sought for real-valued "
            "states; call the pipeline itself."
        )


def why_sequential(scheduler: Any) -> str | None:
    """Why a scheduler's steps can only be taken one at a time; None if several can."""
    if not hasattr(scheduler, "step"):
        return f"{type(scheduler).__name__} has no step()"
    names = list(inspect.signature(scheduler.step).parameters)[:3]
    if names == STEP:
        return None
    return f"{type(scheduler).__name__}.step takes ({', '.join(names)}, ...), not ({', '.join(STEP)}, ...)"
