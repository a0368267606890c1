"""Whether code of the user's runs between the steps of a loop, and so may read the scheduler or write to the states."""

from collections.abc import Iterable
from types import FrameType, FunctionType, MethodType
from typing import Any

from torch import nn

from picardsolve.integrations.diffusers.mutable_state import trusted
from picardsolve.integrations.diffusers.patches import PatchedMethod

_FUNCTIONS = FunctionType, MethodType, PatchedMethod


def observed(frame: FrameType | None, pipe: Any, scheduler: Any, modules: Iterable[nn.Module]) -> bool:
    """Whether anything but a library's own code sees the scheduler between two steps.

    Args:
        frame: the frame that iterates the timesteps.
        pipe: the pipeline; None without one.
        scheduler: the pipeline's.
        modules: the denoisers.
    """
    while frame is not None and _library(frame) == "tqdm":
        frame = frame.f_back
    if frame is None or not trusted(_library(frame)):
        return True
    while frame is not None and trusted(_library(frame)):
        if any("callback" in name and callable(value) for name, value in frame.f_locals.items()):
            return True
        frame = frame.f_back
    return _has_users_code(pipe) or _has_users_code(scheduler) or any(map(_is_seen, modules))


def _library(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "__main__")).partition(".")[0]


def _has_users_code(owner: Any) -> bool:
    """Whether a class is no library's, or an instance has functions of its own."""
    functions = [value for value in getattr(owner, "__dict__", {}).values() if isinstance(value, _FUNCTIONS)]
    return not all(trusted(part.__module__) for part in (type(owner), *functions))


def _is_seen(module: nn.Module) -> bool:
    """Whether more than the module's ``forward`` runs when it is called, also where a stored output is the answer."""
    return type(module).__call__ is not nn.Module.__call__ or bool(module._forward_hooks or module._forward_pre_hooks)
