"""Solves inside `torch.func` transforms, for which they are one opaque operation with a derivative of its own.

An autograd function gets numbers where its caller has tensors that stand for many, or for one with derivatives. Its
backward pass is another one, which solves again with gradients recorded, and pulls the cotangents back. A batch of
states is solved as a batch; whatever else is batched, one by one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from picardsolve.problem.parameters import reachable, within_reach
from picardsolve.problem.transforms import FORWARD, is_transformed

_ONCE = (
    "gradient: inside torch.func transforms solutions have first derivatives only; leave the transforms out and take "
    "torch.autograd.grad(..., create_graph=True) of picardsolve.odeint(..., method='dopri5')."
)

Solve = Callable[[Sequence[Tensor], Tensor, bool], tuple[Tensor, ...]]


def transformed(solve: Solve, y0: Sequence[Tensor], t: Tensor, *functions: Any) -> tuple[Tensor, ...]:
    """States at times, as a function of the start and the times that transforms see through.

    Args:
        solve: ``solve(y0, t, batched)`` returns tensors ``(T, *y0.shape)``; y0 are B samples where ``batched``.
        y0: tensors of the start.
        t: ``(T,)``.
        functions: that the solve calls.

    Raises:
        RuntimeError: a function closes over a tensor that is transformed.
    """
    if any(is_transformed(tensor) for tensor in reachable(*functions)):
        raise RuntimeError(
            "torch.func: the drift closes over a tensor that a transform (vmap, grad, jacrev, ...) varies, which a "
            "solve cannot follow; make it a part of y0 with drift 0, or differentiate by it with "
            "torch.autograd.grad or backward."
        )
    moving = is_transformed(t) or t.requires_grad
    given = _Given(solve, len(y0), t, moving, within_reach(*functions))
    return _States.apply(given, *y0, *([t] if moving else []), *given.parameters)


@dataclass(frozen=True)
class _Given:
    """What does not vary.

    Attributes:
        solve: the solve.
        count: of the tensors of the start, which come first among the varying ones.
        t: the times, unless they vary: then they come next.
        moving: whether they vary.
        parameters: leaves that the solve depends on and that require gradients; they come last.
        batched: whether the start is a batch of samples.
    """

    solve: Solve
    count: int
    t: Tensor
    moving: bool
    parameters: tuple[Tensor, ...]
    batched: bool = False

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The states."""
        return self.solve(tensors[: self.count], tensors[self.count] if self.moving else self.t, self.batched)

    def as_batch(self, dims: Sequence[int | None]) -> "_Given | None":
        """The solve of a batch, if nothing but the start is batched; else None."""
        return (
            None if self.batched or any(dim is not None for dim in dims[self.count :]) else replace(self, batched=True)
        )


class _States(torch.autograd.Function):
    @staticmethod
    def forward(given: _Given, *tensors: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return given(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.given = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, *_Pulled.apply(ctx.given, False, len(cotangents), *cotangents, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(FORWARD)

    @staticmethod
    def vmap(info: Any, in_dims: Any, given: _Given, *tensors: Tensor) -> Any:
        dims = in_dims[1:]
        batch = given.as_batch(dims)
        if batch is None:
            outs = _stacked([_States.apply(given, *each) for each in _apart(info.batch_size, dims, tensors)])
            return outs, (0,) * len(outs)
        outs = _States.apply(batch, *_leading(info.batch_size, dims[: given.count], tensors), *tensors[given.count :])
        return outs, (1,) * len(outs)


class _Pulled(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        given: _Given, many: bool, count: int, *tensors: Tensor
    ) -> Any:
        """Gradients from ``count`` cotangents, or many of each, with respect to the other tensors."""
        cotangents, inputs = tensors[:count], tensors[count:]
        free = len(inputs) - len(given.parameters)
        leaves = [tensor.detach().requires_grad_() for tensor in inputs[:free]]
        by = [*leaves, *given.parameters]
        with torch.enable_grad():
            states = given(leaves)
        wanted = list(zip(*cotangents, strict=True)) if many else [cotangents]
        found = [torch.autograd.grad(states, by, each, retain_graph=True, allow_unused=True) for each in wanted]
        filled = [[torch.zeros_like(x) if g is None else g for g, x in zip(each, by, strict=True)] for each in found]
        return _stacked(filled) if many else tuple(filled[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        raise RuntimeError(_ONCE)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(FORWARD)

    @staticmethod
    def vmap(info: Any, in_dims: Any, given: _Given, many: bool, count: int, *tensors: Tensor) -> Any:
        dims, size = in_dims[3:], info.batch_size
        batch = given.as_batch(dims[count:])
        if not many and all(dim is None for dim in dims[count:]):  # jacrev: one solve for all cotangents
            outs = _Pulled.apply(given, True, count, *_leading(size, dims[:count], tensors), *tensors[count:])
        elif not many and batch is not None and not given.parameters:  # vmap of grad: one batch of solves
            ready = _leading(size, dims[: count + given.count], tensors)
            cotangents = [tensor.movedim(0, 1) for tensor in ready[:count]]
            outs = _Pulled.apply(batch, False, count, *cotangents, *ready[count:], *tensors[count + given.count :])
        else:
            outs = _stacked([_Pulled.apply(given, many, count, *each) for each in _apart(size, dims, tensors)])
        return outs, (0,) * len(outs)


def _leading(size: int, dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The first tensors with the batch as the first dimension."""
    return [
        tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, dims, strict=False)
    ]


def _apart(size: int, dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors of each element of a batch."""
    pairs = list(zip(tensors, dims, strict=True))
    return [[tensor if dim is None else tensor.select(dim, i) for tensor, dim in pairs] for i in range(size)]


def _stacked(parts: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(each) for each in zip(*parts, strict=True))
