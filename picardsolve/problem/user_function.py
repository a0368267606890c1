"""One call of the user's function: flat rows in, the structure that the user wrote it for, flat rows out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.problem.clock import Clock
from picardsolve.problem.crew import Copied
from picardsolve.problem.forward_mode import jvp
from picardsolve.problem.index import on_device
from picardsolve.problem.lifting import SINGLE, Lifted, Takes, check_takes_arguments
from picardsolve.problem.state import Layout, sorted_keys


@dataclass
class UserFunction:
    """A drift, a diffusion or a model, called at flat rows.

    Attributes:
        name: the argument's name in messages.
        function: ``function(t, y, *args)``; a model is called as ``function(y, t, **args)``.
        layout: of one sample's state.
        clock: the dtype of the times that the function is given.
        args: positional arguments; for a model, a mapping of arguments by name. In a batch, a tensor has one entry for
            each sample.
        takes: what one call is written for.
        trailing: dimensions of the output beyond the state's. None: none or one, as the first output shows.
        tail: sizes of those dimensions in the last output; None before the first call.
        lifted: the function of many times, where ``takes`` is "state" or "batch".
        own: what the function gets before its arguments, one entry for each sample of a batch: what the method
            ``of_samples(layout)`` of a function that has one returns, with the function that takes it.
    """

    name: str
    function: Callable[..., Any]
    layout: Layout
    clock: Clock
    args: Sequence[Any] | Mapping[str, Any] = ()
    takes: Takes = "rows"
    trailing: int | None = 0
    tail: tuple[int, ...] | None = None
    own: tuple[Tensor, ...] = ()
    lifted: Lifted = field(init=False)

    def __post_init__(self):
        if self.layout.batched and hasattr(self.function, "of_samples"):
            self.function, self.own = self.function.of_samples(self.layout)
        self.lifted = Lifted(self.name, self.function, branches=self.takes == "batch")

    def with_args(self, args: Sequence[Any] | Mapping[str, Any]) -> "UserFunction":
        """The same function with other arguments."""
        other = replace(self, args=args)
        other.lifted = self.lifted
        return other

    def on(self, device: torch.device, copied: Copied) -> "UserFunction":
        """The same function with its tensors on another device."""
        args = pytree.tree_map(lambda arg: arg.to(device) if isinstance(arg, Tensor) else arg, self.args)
        layout, clock = replace(self.layout, device=device), replace(self.clock)
        return replace(self, function=copied(self.function), layout=layout, clock=clock, args=args)

    def value(self, t: Tensor, x: Tensor, args: Any) -> Tensor:
        """The output at times ``(R,)`` and states ``(R, D)``, flat: ``(R, K)``.

        Raises:
            ValueError: the function fails for several states at once, returns another shape, or writes into its
                argument.
            TypeError: it takes other arguments, or returns another dtype.
        """
        rows, inference = len(t), x.is_inference()
        x = x.clone() if inference else x  # has no version: whatever is written goes into a copy
        version = 0 if inference else x._version
        y = self.layout.unpack(x)
        try:
            out = self.clock.called(self.name, lambda dtype: self._apply(t.to(self.layout.device, dtype), y, args))
        except Exception as error:
            if isinstance(error, TypeError) and self.takes != "model":
                check_takes_arguments(self.name, self.function, (t, y, *args), error)
            hint = self._hint(rows)
            if hint is None or (isinstance(error, ValueError) and str(error).startswith(f"{self.name}: ")):
                raise
            raise ValueError(f"{self.name}: {hint} It raised {type(error).__name__}: {error}") from error
        if not inference and x._version != version:
            raise ValueError(f"{self.name}: it writes into its argument in place; make it return a new tensor.")
        return self._flat(out, rows)

    def value_and_derivatives(self, t: Tensor, x: Tensor, args: Any) -> Tensor:
        """The output and its derivatives along tangents, ``(1 + P, R, K)``, by one forward-mode call of the function.

        Args:
            t: ``(R,)``.
            x: ``(1 + P, R, D)``, the states and P tangents of them.
            args: those of the rows.

        Raises:
            ValueError: the function cannot be differentiated by `torch.func.jvp`; and as `value`.
        """
        state = x[0].clone()  # of a view, torch.func.jvp would give every tangent the size of the view's whole memory

        def along(tangent: Tensor) -> Any:
            return jvp(lambda y: self.value(t, y, args), (state,), (tangent,))

        value_is_common: Any = (None, 0)
        lifted = torch.func.vmap(along, out_dims=value_is_common)
        try:
            value, derivatives = lifted(x[1:].contiguous())
        except Exception as error:
            before = self.lifted.one_by_one
            self.value(t, state, args)  # an error of the function itself is raised as in any other call
            if self.lifted.one_by_one and not before:
                return self.value_and_derivatives(t, x, args)
            cause = error.__cause__ or error
            raise ValueError(
                f"{self.name}: torch.func.jvp and vmap, which Newton needs, cannot differentiate it; pass another "
                f"iteration, such as picardsolve.Secant(). It raised {type(cause).__name__}: {cause}"
            ) from error
        return torch.cat([value[None], derivatives])

    def args_of(self, sample: int) -> Any:
        """The arguments of one sample."""
        return pytree.tree_map(lambda arg: arg[sample] if self._per_sample(arg) else arg, self.args)

    def args_of_rows(self, sample: np.ndarray, in_order: bool) -> Any:
        """The arguments of rows that belong to samples ``(R,)``; ``in_order``: these are all samples, one by one."""
        args = (*self.own, *self.args) if self.own else self.args
        if not args or in_order or not self.layout.batched or self.takes == "batch":
            return args
        return self.by_row(args, sample)

    def by_row(self, args: Any, sample: np.ndarray) -> Any:
        """Some arguments, with rows in the place of entries for each sample."""
        return pytree.tree_map(
            lambda arg: arg.index_select(0, on_device(sample, arg.device)) if self._per_sample(arg) else arg, args
        )

    def dims_of(self, args: Any) -> Any:
        """In the structure of positional arguments, 0 for those with an entry for each sample, otherwise None."""
        return pytree.tree_map(lambda arg: 0 if self._per_sample(arg) else None, tuple(args))

    def _per_sample(self, arg: Any) -> bool:
        return self.layout.batched and isinstance(arg, Tensor) and arg.dim() > 0

    def _apply(self, t: Tensor, y: Any, args: Any) -> Any:
        if self.takes == "model":
            out = self.function(y, t, **args)
            return getattr(out, "sample", out)
        if self.takes == "state":
            return self.lifted(t, y, args, self.dims_of(args))
        if self.takes == "batch":
            return self._apply_to_batches(t, y, args)
        if self.takes == "numbered":
            return self.function(t, y, *args)
        deepest = max(len(shape) for shape in self.layout.shapes)
        return self.function(t.reshape(-1, *[1] * deepest), y, *args)

    def _apply_to_batches(self, t: Tensor, y: Any, args: Any) -> Any:
        samples = self.layout.batch
        stacked = pytree.tree_map(lambda leaf: leaf.unflatten(0, (-1, samples)), y)
        out = self.lifted(t[::samples], stacked, args, [None] * len(args))
        for leaf in pytree.tree_leaves(out):
            if leaf.dim() < 2 or leaf.shape[1] != samples:
                raise ValueError(
                    f"{self.name}: expected to return a value for each of {samples} samples, got shape "
                    f"{tuple(leaf.shape[1:])}; return the shape of y."
                )
        return pytree.tree_map(lambda leaf: leaf.flatten(0, 1), out)

    def _hint(self, rows: int) -> str | None:
        """What may be wrong with a call that failed; None where the number of rows is no likely reason."""
        own = " What belongs to a sample is passed in {}, which is given row by row." if rows != 1 else ""
        if self.takes == "model" and rows not in (1, self.layout.batch):
            return f"failed when called with {rows} rows of {self.layout.batch} samples.{own.format('cond={...}')}"
        if self.takes in ("rows", "numbered") and (rows != self.layout.batch or not self.layout.batched):
            own = own.format("args=(...)") if self.layout.batched else ""
            first = "t of shape (rows, 1, ...)" if self.takes == "rows" else "n of shape (rows,)"
            return (
                f"failed when called with {rows} states at once; make it accept states of shape (rows, *state) and "
                f"{first}, or {SINGLE}.{own}"
            )
        return None

    def _flat(self, out: Any, rows: int) -> Tensor:
        if self.trailing is None:
            first = pytree.tree_leaves(sorted_keys(out))[:1]
            self.trailing = int(bool(first) and getattr(first[0], "ndim", 0) == len(self.layout.shapes[0]) + 2)
        if self._is_plain(out, rows):
            self.tail = ()
            return out.reshape(rows, -1)
        return self._checked_flat(out, rows)

    def _is_plain(self, out: Any, rows: int) -> bool:
        """Whether the output is a tensor of the state's own shape, dtype and device, which needs no further check."""
        layout = self.layout
        return (
            isinstance(out, Tensor)
            and layout.structure.is_leaf()
            and not self.trailing
            and out.shape == (rows, *layout.shapes[0])
            and out.dtype == layout.compute_dtype
            and out.device == layout.device
        )

    def _checked_flat(self, out: Any, rows: int) -> Tensor:
        layout, trailing = self.layout, self.trailing or 0
        leaves, structure = pytree.tree_flatten(sorted_keys(out))
        if structure != layout.structure:
            raise ValueError(
                f"{self.name}: expected to return the structure of y0, {_kind(layout.structure)}, got "
                f"{_kind(structure)}; return one tensor in the place of each."
            )
        shapes = [tuple(getattr(leaf, "shape", ())) for leaf in leaves]
        fits = [shape[: len(shape) - trailing] for shape in shapes] == [(rows, *shape) for shape in layout.shapes]
        if not fits or len({shape[len(shape) - trailing :] for shape in shapes}) > 1:
            raise self._wrong_shape(shapes, rows, type(out).__name__)
        for leaf in leaves:
            if leaf.device != layout.device:
                raise ValueError(f"{self.name}: expected to return a tensor on {layout.device}, got {leaf.device}.")
            wide = layout.dtype if layout.dtype.is_complex else layout.compute_dtype
            promoted = self.clock.exact and leaf.dtype in (torch.float64, torch.complex128)  # by exact times
            if leaf.dtype not in (layout.dtype, wide) and not promoted:
                raise TypeError(
                    f"{self.name}: expected to return {layout.dtype}, the dtype of y0, got {leaf.dtype}; convert "
                    "y0 or the result."
                )
        if layout.dtype.is_complex:
            leaves = [layout.reals(leaf) for leaf in leaves]
        self.tail = tuple(leaves[0].shape[leaves[0].dim() - trailing :])
        flat = [leaf.reshape(rows, -1, *self.tail) for leaf in leaves]
        return (flat[0] if len(flat) == 1 else torch.cat(flat, 1)).reshape(rows, -1).to(layout.compute_dtype)

    def _wrong_shape(self, shapes: Sequence[tuple[int, ...]], rows: int, kind: str) -> ValueError:
        tail = ", m" * (self.trailing or 0)
        expected = [(rows, *shape) for shape in self.layout.shapes]
        wanted = ", ".join(f"({', '.join(map(str, shape))}{tail})" for shape in expected)
        otherwise = f", or {SINGLE} if it is written for a single state." if self.takes in ("rows", "numbered") else "."
        return ValueError(
            f"{self.name}: expected to return shape {wanted} for {rows} states at once, got "
            f"{', '.join(map(str, shapes)) or kind}; return one value per state{otherwise}"
        )


def _kind(structure: pytree.TreeSpec) -> str:
    return "a tensor" if structure.type is None else f"a {structure.type.__name__} of {structure.num_leaves}"
