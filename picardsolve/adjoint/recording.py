"""What both adjoints share: recording a solution for autograd, and the sums of gradients of a backward pass."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.weak import TensorWeakRef

from picardsolve.problem.parameters import leaves

_ONCE = (
    "gradient: solutions have first derivatives only, but those of an ODE whose steps are recorded; leave "
    "create_graph=True out, or pass integrator=picardsolve.Dopri5() (in odeint method='dopri5')."
)
_ONE_BY_ONE = (
    "gradient: of one cotangent at a time; leave vectorize=True or is_grads_batched=True out, or take "
    "torch.func.jacrev of picardsolve.odeint."
)


class Inputs:
    """The arguments and parameters that a solution has gradients with respect to.

    Attributes:
        args: the arguments of the solve, without gradients.
        places: of the arguments that require gradients, among the leaves of ``args``.
        shown: these arguments, and the parameters that a call of the function has shown. Autograd saves them, and
            refuses a backward pass after they were changed.
        reach: other leaves that the function may depend on. They may be changed, unless the backward pass meets them.
    """

    def __init__(self, given: Any, args: Any, parameters: Sequence[Tensor] | None, reach: Sequence[Tensor]):
        self.args, given = args, pytree.tree_leaves(given)
        self.places = [i for i, leaf in enumerate(given) if isinstance(leaf, Tensor) and leaf.requires_grad]
        self.shown = *(given[i] for i in self.places), *dict.fromkeys(parameters or ())
        known = {id(tensor) for tensor in self.shown}
        self.reach = tuple(leaf for leaf in reach if id(leaf) not in known)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return *self.shown, *self.reach

    def apart(self) -> tuple[Any, list[Tensor]]:
        """``args`` with new leaves that require gradients, and these leaves."""
        values, structure = pytree.tree_flatten(self.args)
        fresh = [values[i].detach().requires_grad_() for i in self.places]
        for i, leaf in zip(self.places, fresh, strict=True):
            values[i] = leaf
        return pytree.tree_unflatten(values, structure), fresh


class Adjoint(ABC):
    """How a cotangent of a solution is carried back.

    Attributes:
        inputs: the arguments and parameters.
    """

    inputs: Inputs

    @abstractmethod
    def pull(self, cotangent: Tensor, leading: Sequence[Tensor], args: Any, sums: "GradientSums") -> list[Tensor]:
        """Carry a cotangent back.

        Args:
            cotangent: of the recorded value.
            leading: the tensors that it was recorded with, beside the inputs.
            args: to call the function with: its leaves require gradients.
            sums: gets the gradients with respect to the inputs.

        Returns:
            The gradients with respect to the leading tensors.
        """

    def record(self, value: Tensor, *leading: Tensor) -> Tensor:
        """The value as a function of the leading tensors and of the inputs."""
        return _Recorded.apply(self, len(leading), value, *leading, *self.inputs.tensors)


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, adjoint: Adjoint, leading: int, value: Tensor, *tensors: Tensor
    ) -> Tensor:
        shown = leading + len(adjoint.inputs.shown)
        ctx.adjoint, ctx.leading, ctx.reach = adjoint, leading, tensors[shown:]
        ctx.versions = [tensor._version for tensor in ctx.reach]
        ctx.save_for_backward(*tensors[:shown])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch._C._functorch.is_legacy_batchedtensor(cotangent):  # pyright: ignore
            raise RuntimeError(_ONE_BY_ONE)
        tensors, adjoint = ctx.saved_tensors, ctx.adjoint  # refuses tensors that were changed since
        args, fresh = adjoint.inputs.apart()
        sums = GradientSums([*fresh, *tensors[ctx.leading + len(fresh) :]], ctx.reach, ctx.versions)
        with torch.no_grad():
            gradients = adjoint.pull(cotangent, tensors[: ctx.leading], args, sums)
        gradients = [*gradients, *sums.found()]
        if torch.is_grad_enabled():  # create_graph: not `once_differentiable`, which does not refuse linear losses
            gradients = [
                part if part is None else Refused.apply(_ONCE, part, cotangent, *tensors) for part in gradients
            ]
        return None, None, None, *gradients


class GradientSums:
    """Gradients with respect to tensors, added up over the windows of a backward pass.

    A leaf that a window's graph ends in, and that is not among the tensors, would get no gradient: it is refused.
    """

    def __init__(self, shown: Sequence[Tensor], reach: Sequence[Tensor], versions: Sequence[int]):
        self._all, self._reach, self._versions = [*shown, *reach], reach, versions
        self._sums: list[Tensor | None] = [*map(torch.zeros_like, shown), *[None] * len(reach)]
        self._known = {id(tensor) for tensor in self._all}
        self._unknown: list[tuple[TensorWeakRef, tuple[int, ...]]] = []

    def look(self, output: Tensor, state: Tensor) -> None:
        """Note unknown leaves of the graph of an output that was computed from a state."""
        known = self._known | {id(state)}
        self._unknown += [(TensorWeakRef(leaf), tuple(leaf.shape)) for leaf in leaves(output) if id(leaf) not in known]

    def add(self, output: Tensor, cotangent: Tensor) -> None:
        """Add the vector-Jacobian products of an output."""
        parts = pulled(output, self._all, cotangent)
        pairs = zip(self._sums, parts, strict=True)
        self._sums = [old if new is None else new if old is None else old + new for old, new in pairs]

    def found(self) -> list[Tensor | None]:
        """The sums; None for tensors in reach that were not met. To be called once the graphs are gone.

        Raises:
            RuntimeError: an unknown leaf is still there, so it is the user's; or a tensor that was met has been
                changed since the solve.
        """
        for leaf, shape in self._unknown:
            if leaf() is not None:
                raise RuntimeError(
                    f"gradient: the drift depends on a tensor of shape {shape} that was not seen to be in its reach, "
                    "and would get none; make it a parameter of a module that the drift closes over, or pass it in "
                    "args."
                )
        met = self._sums[len(self._sums) - len(self._reach) :]
        for tensor, version, total in zip(self._reach, self._versions, met, strict=True):
            if total is not None and tensor._version != version:
                raise RuntimeError(
                    f"gradient: a parameter of shape {tuple(tensor.shape)} has been modified by an inplace operation "
                    "since the solve; call backward before the optimizer's step."
                )
        return self._sums


def pulled(output: Tensor, to: Sequence[Tensor], cotangent: Tensor, batched: bool = False) -> Sequence[Tensor | None]:
    """Vector-Jacobian products with respect to tensors; None for one that the output does not depend on.

    The graph is kept: it may end in one that belongs to the user.
    """
    if not output.requires_grad or not to:
        return [None] * len(to)
    return torch.autograd.grad(output, to, cotangent, retain_graph=True, allow_unused=True, is_grads_batched=batched)


class Refused(torch.autograd.Function):
    """A value without gradients: whoever asks for its gradient with respect to the given tensors gets a sentence."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, sentence: str, value: Tensor, *given: Tensor
    ) -> Tensor:
        """The value."""
        ctx.sentence = sentence
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        """Raises a RuntimeError."""
        raise RuntimeError(ctx.sentence)
