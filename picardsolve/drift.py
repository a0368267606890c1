"""Calling the user's function on rows: shapes, dtypes, per-sample arguments, and what it says when it cannot."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.parameters import leaves
from picardsolve.state import Layout, sorted_keys


@dataclass
class RowFunction:
    """A drift, diffusion or model of many states as a function of flat rows.

    Args:
        name: the argument's name in messages.
        function: ``function(t, y, *args)``, or ``function(y, t, **args)`` with ``time_last``.
        layout: of one sample's state.
        args: positional arguments (a mapping: keyword arguments); tensors hold one entry per sample if batched.
        vectorized: False lifts the function of one state by ``torch.func.vmap``.
        time_last: whether the function is a network in the samplers' order, with t of shape ``(rows,)``.
        trailing: dimensions of the output beyond the state's; None: none or one, which the first output shows.
        tail: those dimensions of the first tensor that came out; None before.
        max_batch: rows a call may hold; more are cut into chunks.
        parameters: where the first call notes what the function closes over that requires gradients; None: nowhere.
    """

    name: str
    function: Callable[..., Any]
    layout: Layout
    args: Sequence[Any] | Mapping[str, Any] = ()
    vectorized: bool = True
    time_last: bool = False
    trailing: int | None = 0
    max_batch: int | None = None
    parameters: list[Tensor] | None = None
    calls: int = 0
    evaluations: int = 0
    tail: tuple[int, ...] | None = field(default=None, init=False)
    _probe: "tuple[Tensor, Tensor, Tensor, Tensor] | None" = field(default=None, repr=False)
    _checked: bool = False

    def __call__(self, t: Tensor, x: Tensor, sample: Tensor) -> Tensor:
        """Evaluate rows.

        Args:
            t: ``(R,)`` times.
            x: ``(R, D)`` states; ``(1 + P, R, D)`` with tangents behind them.
            sample: ``(R,)``, which sample a row belongs to.

        Returns:
            ``(R, D)``, or ``(R, D * m)`` with a trailing dimension m; ``(1 + P, ...)`` with derivatives behind them.
        """
        if self._checked or not self.vectorized or self.time_last:
            return self._in_chunks(t, x, sample)
        if self._probe is not None and len(t) > self.layout.batch:
            return self._call_checking_rows(t, x, sample)
        out = self._in_chunks(t, x, sample)
        if self._probe is None:
            self._probe = (t[:1], _values(x)[:1].detach().clone(), sample[:1], _values(out)[:1].detach().clone())
        return out

    def _call_checking_rows(self, t: Tensor, x: Tensor, sample: Tensor) -> Tensor:
        """Once, carry the first row in another batch, where a function that mixes rows gives itself away."""
        assert self._probe is not None
        self._checked = True
        first_t, first_x, first_sample, expected = self._probe
        if x.dim() > 2:
            first_x = torch.cat([first_x[None], first_x.new_zeros(len(x) - 1, *first_x.shape)])
        out = self._in_chunks(torch.cat([t, first_t]), torch.cat([x, first_x], -2), torch.cat([sample, first_sample]))
        slack = torch.finfo(self.layout.dtype).eps ** 0.5
        if not torch.allclose(
            _values(out)[-1:], expected, slack, slack * float(expected.nan_to_num(0, 0, 0).abs().max()), equal_nan=True
        ):
            raise ValueError(
                f"{self.name}: its value at one state changes with the other states it is called with; make every "
                "row of y independent, or pass vectorized=False to have it lifted from one state to many."
            )
        return out[..., :-1, :]

    def _in_chunks(self, t: Tensor, x: Tensor, sample: Tensor) -> Tensor:
        size = self.max_batch or len(t)
        if self.max_batch and x.dim() > 2:
            size = max(self.max_batch // len(x), 1)
        if len(t) <= size:
            return self._call(t, x, sample)
        chunks = zip(t.split(size), x.split(size, -2), sample.split(size), strict=True)
        return torch.cat([self._call(*chunk) for chunk in chunks], -2)

    def _call(self, t: Tensor, x: Tensor, sample: Tensor) -> Tensor:
        self.calls += 1
        self.evaluations += x.shape[:-1].numel()
        args = self._gather(sample)
        value = self._value if x.dim() == 2 else self._value_and_derivatives
        if self.parameters is None or self.calls > 1:
            return value(t, x, args)
        with torch.enable_grad():
            out = value(t, x, args)
        if out.requires_grad:
            self.parameters.extend(leaves(out))
        return out.detach()

    def _value_and_derivatives(self, t: Tensor, x: Tensor, args: Any) -> Tensor:
        """One call of the function, that carries the tangents along (forward-mode differentiation)."""
        state = x[0].clone()  # of a view, torch.func.jvp would give every tangent the size of the view's whole memory

        def along(tangent: Tensor) -> Any:
            return torch.func.jvp(lambda y: self._value(t, y, args), (state,), (tangent,))

        value_is_common: Any = (None, 0)
        try:
            value, derivatives = torch.func.vmap(along, out_dims=value_is_common)(x[1:].contiguous())
        except Exception as error:
            self._value(t, state, args)  # what is wrong with the function itself is said as ever
            raise ValueError(
                f"{self.name}: torch.func.jvp and vmap, which Newton needs, cannot differentiate it; pass another "
                f"iteration, such as picardsolve.Secant(). It raised {type(error).__name__}: {error}"
            ) from error
        return torch.cat([value[None], derivatives])

    def _value(self, t: Tensor, x: Tensor, args: Any) -> Tensor:
        rows, version = len(t), x._version
        try:
            out = self._apply(t, self.layout.unpack(x), args)
        except Exception as error:
            hint = self._hint(rows)
            if hint is None:
                raise
            raise ValueError(f"{self.name}: {hint} It raised {type(error).__name__}: {error}") from error
        if x._version != version:
            raise ValueError(f"{self.name}: it writes into its argument in place; make it return a new tensor.")
        return self._flat(out, rows)

    def _apply(self, t: Tensor, y: Any, args: Any) -> Any:
        if self.time_last:
            out = self.function(y, t, **args)
            return getattr(out, "sample", out)
        if not self.vectorized:
            dims = (0, 0, *pytree.tree_map(lambda arg: 0 if self._per_sample(arg) else None, tuple(args)))
            return torch.func.vmap(self.function, dims)(t, y, *args)
        deepest = max(len(shape) for shape in self.layout.shapes)
        return self.function(t.reshape(-1, *[1] * deepest), y, *args)

    def _hint(self, rows: int) -> str | None:
        if self.time_last:
            return None
        if not self.vectorized:
            return (
                "could not be lifted by torch.func.vmap (no `if` on values, .item(), or writes into new tensors); "
                "write it for many states at once and pass vectorized=True."
            )
        if rows > self.layout.batch or not self.layout.batched:
            return (
                f"failed when called with {rows} states at once; make it accept y of shape (rows, *state) and t of "
                "shape (rows, 1, ...), or pass vectorized=False."
            )
        return None

    def _liftable(self) -> bool:
        return self.vectorized and not self.time_last

    def _per_sample(self, arg: Any) -> bool:
        return self.layout.batched and isinstance(arg, Tensor) and arg.dim() > 0

    def args_of(self, sample: int) -> Any:
        """The arguments of one sample."""
        return pytree.tree_map(lambda arg: arg[sample] if self._per_sample(arg) else arg, self.args)

    def _gather(self, sample: Tensor) -> Any:
        if not self.args or not self.layout.batched:
            return self.args
        everyone = len(sample) == self.layout.batch and bool((sample == torch.arange(len(sample))).all())
        return pytree.tree_map(
            lambda arg: arg.index_select(0, sample.to(arg.device)) if self._per_sample(arg) and not everyone else arg,
            self.args,
        )

    def _flat(self, out: Any, rows: int) -> Tensor:
        if self.trailing is None:
            first = pytree.tree_leaves(sorted_keys(out))[:1]
            self.trailing = int(bool(first) and getattr(first[0], "ndim", 0) == len(self.layout.shapes[0]) + 2)
        if self._is_plain(out, rows):
            self.tail = ()
            return out.reshape(rows, -1)
        return self._checked_flat(out, rows)

    def _is_plain(self, out: Any, rows: int) -> bool:
        """Whether it is what nearly every function returns, of which nothing more need be asked."""
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
        trailing = self.trailing or 0
        leaves, structure = pytree.tree_flatten(sorted_keys(out))
        if structure != self.layout.structure:
            raise ValueError(
                f"{self.name}: expected to return the structure of y0, {_kind(self.layout.structure)}, got "
                f"{_kind(structure)}; return one tensor in the place of each."
            )
        expected = [(rows, *shape) for shape in self.layout.shapes]
        shapes = [tuple(getattr(leaf, "shape", ())) for leaf in leaves]
        fits = [shape[: len(shape) - trailing] for shape in shapes] == expected
        if not fits or len({shape[len(shape) - trailing :] for shape in shapes}) > 1:
            tail = ", m" * trailing
            wanted = ", ".join(f"({', '.join(map(str, shape))}{tail})" for shape in expected)
            raise ValueError(
                f"{self.name}: expected to return shape {wanted} for {rows} states at once, got "
                f"{', '.join(map(str, shapes)) or type(out).__name__}; return one value per state"
                + (", or pass vectorized=False if it is written for a single state." if self._liftable() else ".")
            )
        for leaf in leaves:
            if leaf.device != self.layout.device:
                raise ValueError(
                    f"{self.name}: expected to return a tensor on {self.layout.device}, got {leaf.device}."
                )
            wide = self.layout.dtype if self.layout.dtype.is_complex else self.layout.compute_dtype
            if leaf.dtype not in (self.layout.dtype, wide):
                raise TypeError(
                    f"{self.name}: expected to return {self.layout.dtype}, the dtype of y0, got {leaf.dtype}; convert "
                    "y0 or the result."
                )
        if self.layout.dtype.is_complex:
            leaves = [self.layout.reals(leaf) for leaf in leaves]
        self.tail = tuple(leaves[0].shape[leaves[0].dim() - trailing :])
        flat = [leaf.reshape(rows, -1, *self.tail) for leaf in leaves]
        return (flat[0] if len(flat) == 1 else torch.cat(flat, 1)).reshape(rows, -1).to(self.layout.compute_dtype)


def _values(x: Tensor) -> Tensor:
    """Without the tangents behind."""
    return x if x.dim() == 2 else x[0]


def _kind(structure: pytree.TreeSpec) -> str:
    return "a tensor" if structure.type is None else f"a {structure.type.__name__} of {structure.num_leaves}"
