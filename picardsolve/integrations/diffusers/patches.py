"""Methods that instance attributes replace temporarily."""

from collections.abc import Callable
from copy import deepcopy
from functools import update_wrapper
from threading import Lock, get_ident
from typing import Any, Protocol

from torch import nn

_LOCK = Lock()


class Denoising(Protocol):
    """One run of a pipeline's loop, which answers a module's calls."""

    def forward(self, module: nn.Module, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Answer one call."""


class PatchedMethod:
    """A function that replaces a method of a scheduler or a pipeline, with the method's name and signature."""

    def __init__(self, owner: Any, name: str, call: Callable[..., Any]):
        self._owner, self._name, self._call = owner, name, call
        self.original = getattr(owner, name)
        update_wrapper(self, self.original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._call(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError(
            f"{type(self._owner).__name__}: the pipeline makes a deep copy of its scheduler, whose steps could not be "
            "followed; call the pipeline itself, or write its loop with picardsolve.integrations.diffusers.denoise."
        )

    def put(self) -> None:
        """Replace the method."""
        self._before = vars(self._owner).get(self._name)
        self._owner.__dict__[self._name] = self

    def remove(self) -> None:
        """Restore the method, unless other code has replaced it since."""
        if vars(self._owner).get(self._name) is self:
            del self._owner.__dict__[self._name]
            if self._before is not None:
                self._owner.__dict__[self._name] = self._before


class PatchedForward:
    """Replaces a denoiser's forward: calls go to the loop that runs in the calling thread, if there is one.

    Several pipelines may share a module. The module is patched once, and restored after its last user.
    """

    def __init__(self, module: nn.Module, name: str):
        self.module, self.name = module, name
        self.running: dict[int, list[Denoising]] = {}  # by thread; the innermost run is last
        self.users = 0
        self._before = vars(module).get(name)
        self.original = getattr(module, name)
        update_wrapper(self, self.original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer the call, or call the module's own forward."""
        runs = self.running.get(get_ident())
        if not runs:
            return self.original(*args, **kwargs)
        return runs[-1].forward(self.module, self.original, args, kwargs)

    def __deepcopy__(self, memo: Any) -> Any:
        return deepcopy(self.original, memo)  # a copy of the module is patched by nobody

    @property
    def in_place(self) -> bool:
        """Whether the module still has the patch."""
        return vars(self.module).get(self.name) is self

    @staticmethod
    def on(module: nn.Module) -> "PatchedForward":
        """Patch a module, or reuse its patch."""
        # after torch.compile in place, nn.Module calls this instead of forward
        name = "_compiled_call_impl" if getattr(module, "_compiled_call_impl", None) is not None else "forward"
        with _LOCK:
            patch = vars(module).get(name)
            if not isinstance(patch, PatchedForward):
                patch = PatchedForward(module, name)
                module.__dict__[name] = patch
            patch.users += 1
            return patch

    def off(self) -> None:
        """Remove one user; the last one restores the module, also where another wrapper has kept the patch."""
        with _LOCK:
            self.users -= 1
            if self.users:
                return
            for name in [name for name, value in vars(self.module).items() if value is self]:
                if name == self.name and self._before is None:
                    del self.module.__dict__[name]
                else:
                    self.module.__dict__[name] = self.original

    def start(self, run: Denoising) -> None:
        """Let ``run`` answer the calls of this thread."""
        with _LOCK:
            self.running.setdefault(get_ident(), []).append(run)

    def stop(self, run: Denoising) -> None:
        """Let ``run`` answer no more calls, in any thread."""
        with _LOCK:
            for thread, runs in list(self.running.items()):
                self.running[thread] = [other for other in runs if other is not run]
                if not self.running[thread]:
                    del self.running[thread]
