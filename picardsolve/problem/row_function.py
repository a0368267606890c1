"""Calling the user's function on rows: shapes, dtypes, per-sample arguments, and what it says when it cannot."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.problem.clock import Clock
from picardsolve.problem.lifting import SINGLE, Lifted, Takes, check_takes_arguments, not_random, random
from picardsolve.problem.parameters import held, leaves
from picardsolve.problem.state import Layout, sorted_keys


@dataclass
class RowFunction:
    """A drift, diffusion or model of many states as a function of flat rows.

    Args:
        name: the argument's name in messages.
        function: ``function(t, y, *args)``, or ``function(y, t, **args)`` with ``time_last``.
        layout: of one sample's state.
        clock: how times are given.
        args: positional arguments (a mapping: keyword arguments); tensors hold one entry per sample if batched.
        takes: what a call of the function is for: rows, one state, or a whole batch at one time.
        time_last: whether the function is a network in the samplers' order, with t of shape ``(rows,)``.
        trailing: dimensions of the output beyond the state's; None: none or one, which the first output shows.
        tail: those dimensions of the first tensor that came out; None before.
        max_batch: rows a call may hold; more are cut into chunks.
        parameters: where the first call notes what the function closes over that requires gradients; None: nowhere.
    """

    name: str
    function: Callable[..., Any]
    layout: Layout
    clock: Clock
    args: Sequence[Any] | Mapping[str, Any] = ()
    takes: Takes = "rows"
    time_last: bool = False
    trailing: int | None = 0
    max_batch: int | None = None
    parameters: list[Tensor] | None = None
    calls: int = 0
    evaluations: int = 0
    tail: tuple[int, ...] | None = field(default=None, init=False)
    _probe: "tuple[Tensor, Tensor, Tensor, Tensor] | None" = field(default=None, repr=False)
    _checked: bool = False
    _lifted: Lifted | None = None

    def __post_init__(self):
        self._lifted = self._lifted or Lifted(self.name, self.function, branches=self.takes == "batch")

    def __call__(self, t: Tensor, x: Tensor, sample: Tensor) -> Tensor:
        """Evaluate rows.

        Args:
            t: ``(R,)`` times, float64 on the CPU.
            x: ``(R, D)`` states; ``(1 + P, R, D)`` with tangents behind them.
            sample: ``(R,)``, which sample a row belongs to.

        Returns:
            ``(R, D)``, or ``(R, D * m)`` with a trailing dimension m; ``(1 + P, ...)`` with derivatives behind them.
        """
        if self.takes == "batch":
            return self._in_batches(t, x, sample)
        if self._checked or self.takes == "state":
            return self._in_chunks(t, x, sample)
        if self.time_last:
            return self._call_of_model(t, x, sample)
        if self._probe is not None and len(t) > self.layout.batch:
            return self._call_checking_rows(t, x, sample)
        out = self._in_chunks(t, x, sample)
        if self._probe is None:
            self._probe = (t[:1], _values(x)[:1].detach().clone(), sample[:1], _values(out)[:1].detach().clone())
        return out

    def _in_batches(self, t: Tensor, x: Tensor, sample: Tensor) -> Tensor:
        """Rows that are whole batches, one behind the other; of others each is made a batch of its copies."""
        samples, rows = self.layout.batch, len(t)
        if rows % samples == 0 and bool((sample.reshape(-1, samples) == torch.arange(samples)).all()):
            return self._in_chunks(t, x, sample)
        copies = t.repeat_interleave(samples), x.repeat_interleave(samples, -2), torch.arange(samples).repeat(rows)
        return self._in_chunks(*copies)[..., (torch.arange(rows) * samples + sample).to(x.device), :]

    def _call_of_model(self, t: Tensor, x: Tensor, sample: Tensor) -> Tensor:
        """The second call for more rows than samples must not be random; rows of a network are not mixed."""
        if not self.calls or len(t) <= self.layout.batch:
            return self._in_chunks(t, x, sample)
        self._checked = True
        return not_random(self.name, self.layout.device, lambda: self._in_chunks(t, x, sample))

    def _call_checking_rows(self, t: Tensor, x: Tensor, sample: Tensor) -> Tensor:
        """Once, carry the first row in another batch, where a function that mixes rows gives itself away."""
        assert self._probe is not None
        self._checked = True
        first_t, first_x, first_sample, expected = self._probe
        if x.dim() > 2:
            first_x = torch.cat([first_x[None], first_x.new_zeros(len(x) - 1, *first_x.shape)])
        rows = torch.cat([t, first_t]), torch.cat([x, first_x], -2), torch.cat([sample, first_sample])
        out = not_random(self.name, self.layout.device, lambda: self._in_chunks(*rows))
        if not self._same(_values(out)[-1:], expected):
            alone = self._in_chunks(first_t, first_x, first_sample)
            if not self._same(_values(alone), _values(self._in_chunks(first_t, first_x, first_sample))):
                raise random(self.name)
            raise ValueError(
                f"{self.name}: its value at one state changes with the other states it is called with; make every "
                f"row of y independent, or {SINGLE} to have it lifted from one state to many."
            )
        return out[..., :-1, :]

    def _same(self, found: Tensor, expected: Tensor) -> bool:
        """But for rounding."""
        slack = torch.finfo(self.layout.dtype).eps ** 0.5
        size = float(expected.nan_to_num(0, 0, 0).abs().max())
        return torch.allclose(found, expected, slack, slack * size, equal_nan=True)

    def _in_chunks(self, t: Tensor, x: Tensor, sample: Tensor) -> Tensor:
        size = self.max_batch or len(t)
        if self.max_batch and x.dim() > 2:
            size = max(self.max_batch // len(x), 1)
        if self.takes == "batch":
            size = max(size // self.layout.batch, 1) * self.layout.batch
        if len(t) <= size:
            return self._call(t, x, sample)
        chunks = zip(t.split(size), x.split(size, -2), sample.split(size), strict=True)
        return torch.cat([self._call(*chunk) for chunk in chunks], -2)

    def _call(self, t: Tensor, x: Tensor, sample: Tensor) -> Tensor:
        if self._strange(sample):
            return self._call_strange(t, x, sample)
        self.calls += 1
        self.evaluations += x.shape[:-1].numel()
        value, args = self._value if x.dim() == 2 else self._value_and_derivatives, self._gather(sample)
        if self.parameters is not None and self.calls == 1:
            return self._noted(value, t, x, args)
        if torch.is_grad_enabled():
            return value(t, x, args)
        return value(t, x.detach(), args).detach()  # the function may record by itself

    def _noted(self, value: Callable[[Tensor, Tensor, Any], Tensor], t: Tensor, x: Tensor, args: Any) -> Tensor:
        """A value, and what the function closes over that it has gradients by."""
        assert self.parameters is not None
        with torch.enable_grad():
            state = x.detach().requires_grad_()
            try:
                out = value(t, state.clone(), args)
            except (RuntimeError, ValueError) as error:
                if not any(reason in str(error) for reason in ("requires grad", "Inference tensors")):
                    raise  # and not numpy inside, or parameters that were made in inference mode
                out = value(t, x, args)
        self.parameters.extend(leaf for leaf in leaves(out) if leaf is not state)
        return out.detach()

    def _strange(self, sample: Tensor) -> bool:
        """Whether rows are as many as samples, but not those in order, and the function holds something as long.

        There a tensor with a row for each sample would go to the wrong ones. In two calls it is refused.
        """
        samples = self.layout.batch
        if self.takes != "rows" or samples == 1 or len(sample) != samples:
            return False
        return not bool((sample == torch.arange(samples)).all()) and self._holds_as_many

    @cached_property
    def _holds_as_many(self) -> bool:
        return any(tensor.ndim > 0 and len(tensor) == self.layout.batch for tensor in held(self.function))

    def _call_strange(self, t: Tensor, x: Tensor, sample: Tensor) -> Tensor:
        first = len(t) - 1
        pieces = zip(t.split(first), x.split(first, -2), sample.split(first), strict=True)
        return torch.cat([self._call(*piece) for piece in pieces], -2)

    def _value_and_derivatives(self, t: Tensor, x: Tensor, args: Any) -> Tensor:
        """One call of the function, that carries the tangents along (forward-mode differentiation)."""
        state = x[0].clone()  # of a view, torch.func.jvp would give every tangent the size of the view's whole memory

        def along(tangent: Tensor) -> Any:
            return torch.func.jvp(lambda y: self._value(t, y, args), (state,), (tangent,))

        value_is_common: Any = (None, 0)
        lifted = torch.func.vmap(along, out_dims=value_is_common)
        try:
            value, derivatives = lifted(x[1:].contiguous())
        except Exception as error:
            assert self._lifted is not None
            before = self._lifted.one_by_one
            self._value(t, state, args)  # what is wrong with the function itself is said as ever
            if self._lifted.one_by_one and not before:
                return self._value_and_derivatives(t, x, args)
            cause = error.__cause__ or error
            raise ValueError(
                f"{self.name}: torch.func.jvp and vmap, which Newton needs, cannot differentiate it; pass another "
                f"iteration, such as picardsolve.Secant(). It raised {type(cause).__name__}: {cause}"
            ) from error
        return torch.cat([value[None], derivatives])

    def _value(self, t: Tensor, x: Tensor, args: Any) -> Tensor:
        rows, inference = len(t), x.is_inference()
        x = x.clone() if inference else x  # has no version: whatever is written goes into a copy
        version = 0 if inference else x._version
        y = self.layout.unpack(x)
        try:
            out = self.clock.called(self.name, lambda dtype: self._apply(t.to(self.layout.device, dtype), y, args))
        except Exception as error:
            if isinstance(error, TypeError) and not self.time_last:
                check_takes_arguments(self.name, self.function, (t, y, *args), error)
            hint = self._hint(rows)
            if hint is None or (isinstance(error, ValueError) and str(error).startswith(f"{self.name}: ")):
                raise
            raise ValueError(f"{self.name}: {hint} It raised {type(error).__name__}: {error}") from error
        if not inference and x._version != version:
            raise ValueError(f"{self.name}: it writes into its argument in place; make it return a new tensor.")
        return self._flat(out, rows)

    def _apply(self, t: Tensor, y: Any, args: Any) -> Any:
        assert self._lifted is not None
        if self.time_last:
            out = self.function(y, t, **args)
            return getattr(out, "sample", out)
        if self.takes == "state":
            dims = pytree.tree_map(lambda arg: 0 if self._per_sample(arg) else None, tuple(args))
            return self._lifted(t, y, args, dims)
        if self.takes == "batch":
            return self._of_batches(t, y, args)
        deepest = max(len(shape) for shape in self.layout.shapes)
        return self.function(t.reshape(-1, *[1] * deepest), y, *args)

    def _of_batches(self, t: Tensor, y: Any, args: Any) -> Any:
        samples = self.layout.batch
        assert self._lifted is not None
        stacked = pytree.tree_map(lambda leaf: leaf.unflatten(0, (-1, samples)), y)
        out = self._lifted(t[::samples], stacked, args, [None] * len(args))
        for leaf in pytree.tree_leaves(out):
            if leaf.dim() < 2 or leaf.shape[1] != samples:
                raise ValueError(
                    f"{self.name}: expected to return a value for each of {samples} samples, got shape "
                    f"{tuple(leaf.shape[1:])}; return the shape of y."
                )
        return pytree.tree_map(lambda leaf: leaf.flatten(0, 1), out)

    def _hint(self, rows: int) -> str | None:
        if self.takes != "rows":
            return None
        own = "cond={...}" if self.time_last else "args=(...)"
        own = f" What belongs to a sample is passed in {own}, which is given row by row." if rows != 1 else ""
        if self.time_last:
            if rows == self.layout.batch or rows == 1:
                return None
            return f"failed when called with {rows} rows of {self.layout.batch} samples.{own}"
        if rows != self.layout.batch or not self.layout.batched:
            own = own if self.layout.batched else ""
            return (
                f"failed when called with {rows} states at once; make it accept y of shape (rows, *state) and t of "
                f"shape (rows, 1, ...), or {SINGLE}.{own}"
            )
        return None

    def _liftable(self) -> bool:
        return self.takes == "rows" and not self.time_last

    def _per_sample(self, arg: Any) -> bool:
        return self.layout.batched and isinstance(arg, Tensor) and arg.dim() > 0

    def args_of(self, sample: int) -> Any:
        """The arguments of one sample."""
        return pytree.tree_map(lambda arg: arg[sample] if self._per_sample(arg) else arg, self.args)

    def _gather(self, sample: Tensor) -> Any:
        if not self.args or not self.layout.batched or self.takes == "batch":
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
                + (f", or {SINGLE} if it is written for a single state." if self._liftable() else ".")
            )
        for leaf in leaves:
            if leaf.device != self.layout.device:
                raise ValueError(
                    f"{self.name}: expected to return a tensor on {self.layout.device}, got {leaf.device}."
                )
            wide = self.layout.dtype if self.layout.dtype.is_complex else self.layout.compute_dtype
            promoted = self.clock.exact and leaf.dtype in (torch.float64, torch.complex128)  # by exact times
            if leaf.dtype not in (self.layout.dtype, wide) and not promoted:
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
