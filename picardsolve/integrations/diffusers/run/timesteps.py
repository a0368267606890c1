"""The scheduler's timesteps; iterating them is the pipeline's sampling loop."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from picardsolve.integrations.diffusers.run.window_tensor import WindowTensor, find


class Timesteps(Tensor):
    """The scheduler's timesteps. Iterating them starts a `Loop`; other operations give plain tensors."""

    iterate: Callable[[Tensor], Iterator[Tensor]]

    @staticmethod
    def of(timesteps: Tensor, iterate: Callable[[Tensor], Iterator[Tensor]]) -> "Timesteps":
        """Timesteps whose iterator is ``iterate``."""
        watched = Tensor._make_subclass(Timesteps, timesteps)
        watched.iterate = iterate
        return watched

    def __iter__(self) -> Iterator[Tensor]:
        return self.iterate(self.plain())

    def plain(self) -> Tensor:
        """The plain tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run ``func``; slices and device copies remain `Timesteps`, because pipelines iterate them."""
        if find((args, kwargs)):  # comparisons dispatch only on the type of the first argument
            return WindowTensor.__torch_function__(func, types, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("to", "__getitem__") and isinstance(out, Tensor) and out.dim() == 1:
            source = next(arg for arg in args if isinstance(arg, Timesteps))
            return Timesteps.of(out, source.iterate)
        return out
