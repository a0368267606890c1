"""The user's function at any number of rows: chunks, whole batches, counts, and the parameters that it shows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.problem.clock import Clock
from picardsolve.problem.crew import Copied, Crew, Job, spread
from picardsolve.problem.first_calls import FirstCalls
from picardsolve.problem.parameters import leaves, reachable
from picardsolve.problem.transforms import check_no_tangent
from picardsolve.problem.user_function import UserFunction


class RowFunction(Job):
    """A drift, diffusion or model as a function of any number of flat rows.

    Args:
        user: the function as the user wrote it.
        max_batch: rows that one call may hold; more are cut into chunks. None: any number.
        parameters: a list that the first call adds the tensors to that the function closes over and that require
            gradients; None: it adds none.
        crew: who evaluates the rows; None: this process, on the states' device.

    Attributes:
        calls: calls of the function so far, on all devices.
        evaluations: rows of these calls; a tangent counts as a row.
        parameters: the list above.
    """

    def __init__(
        self,
        user: UserFunction,
        max_batch: int | None = None,
        parameters: list[Tensor] | None = None,
        crew: Crew | None = None,
    ):
        self.layout, self.clock, self.max_batch = user.layout, user.clock, max_batch
        self.calls = self.evaluations = 0
        self._user, self.parameters = user, parameters
        self._first_calls = FirstCalls(user.name, user.layout, user.takes)
        self._crew, self._number = crew, None if crew is None else crew.enlist(self)

    @property
    def args(self) -> Sequence[Any] | Mapping[str, Any]:
        """The arguments of all samples."""
        return self._user.args

    @property
    def tail(self) -> tuple[int, ...] | None:
        """Sizes of the output's dimensions beyond the state's; None before the first call."""
        return self._user.tail

    def args_of(self, sample: int) -> Any:
        """The arguments of one sample."""
        return self._user.args_of(sample)

    def args_of_rows(self, sample: np.ndarray) -> tuple[Any, Any]:
        """The user's arguments of rows of samples ``(R,)``; and, in their structure, 0 for those with rows."""
        user = self._user
        return user.by_row(tuple(user.args), sample), user.dims_of(user.args)

    def with_args(self, args: Sequence[Any] | Mapping[str, Any]) -> "RowFunction":
        """The same function with other arguments, without looking for parameters, in this process."""
        other = copy(self)
        other._user, other.parameters, other._crew = self._user.with_args(args), None, None
        return other

    def on(self, device: torch.device, copied: Copied) -> "RowFunction":
        """The same function with its tensors on another device."""
        return RowFunction(self._user.on(device, copied), self.max_batch)

    def work(self, part: tuple[Tensor, Tensor, np.ndarray, Clock]) -> tuple[Tensor, int]:
        """The values of a share's rows, times as the clock of the solve has them, and how many calls they took."""
        t, x, sample, clock = part
        self.clock.follow(clock)
        before = self.calls
        return self._in_chunks(t, x, sample), self.calls - before

    def __call__(self, t: Tensor, x: Tensor, sample: np.ndarray) -> Tensor:
        """Evaluate rows.

        Args:
            t: ``(R,)`` times in float64, or in the dtype that the function gets; on the CPU or the states' device.
            x: ``(R, D)`` states; ``(1 + P, R, D)`` with tangents behind them.
            sample: ``(R,)``, which sample a row belongs to, on the host.

        Returns:
            ``(R, D)``, or ``(R, D * m)`` with a trailing dimension m; ``(1 + P, ...)`` with derivatives behind them.
        """
        if not isinstance(sample, np.ndarray):
            sample = np.asarray(sample)  # a tensor does as well
        if self._user.takes == "batch":
            return self._in_batches(t, x, sample)
        if self._first_calls.done:
            return self._evaluated(t, x, sample)
        return self._first_calls.checked(self._evaluated, t, x, sample)

    def _in_batches(self, t: Tensor, x: Tensor, sample: np.ndarray) -> Tensor:
        """Evaluate rows that are whole batches, one behind the other; of any other row, a batch of copies."""
        samples, rows = self.layout.batch, len(t)
        if rows % samples == 0 and bool((sample.reshape(-1, samples) == np.arange(samples)).all()):
            return self._evaluated(t, x, sample)
        copies = t.repeat_interleave(samples), x.repeat_interleave(samples, -2), np.tile(np.arange(samples), rows)
        own = torch.from_numpy(np.arange(rows) * samples + sample).to(x.device)
        return self._evaluated(*copies).index_select(-2, own)

    def _evaluated(self, t: Tensor, x: Tensor, sample: np.ndarray) -> Tensor:
        """The values at rows, each from the worker that it was given to; those with gradients from this process."""
        crew, unit = self._crew, self.layout.batch if self._user.takes == "batch" else 1
        if crew is None or self._number is None or torch.is_grad_enabled():
            return self._in_chunks(t, x, sample)
        calls, evaluations = self.calls, self.evaluations + x.shape[:-1].numel()

        def part(own: slice) -> tuple[Tensor, Tensor, np.ndarray, Clock]:
            return t[own], x[..., own, :], sample[own], self.clock

        found = spread(crew, self._number, len(t), part, unit)
        self.calls, self.evaluations = calls + sum(count for _, count in found), evaluations
        if len(found) == 1:
            return found[0][0]
        return torch.cat([values for values, _ in found], -2)

    def _in_chunks(self, t: Tensor, x: Tensor, sample: np.ndarray) -> Tensor:
        if self.max_batch is None:
            return self._call(t, x, sample)
        size = self.max_batch
        if x.dim() > 2:
            size = max(self.max_batch // len(x), 1)
        if self._user.takes == "batch":
            size = max(size // self.layout.batch, 1) * self.layout.batch
        if len(t) <= size:
            return self._call(t, x, sample)
        return torch.cat([self._call(*piece) for piece in _pieces(size, t, x, sample)], -2)

    def _call(self, t: Tensor, x: Tensor, sample: np.ndarray) -> Tensor:
        in_order = self._in_order(sample)
        if not in_order and self._looks_like_samples(sample):
            return torch.cat([self._call(*piece) for piece in _pieces(len(t) - 1, t, x, sample)], -2)
        flat = x.dim() == 2
        self.calls += 1
        self.evaluations += len(sample) if flat else x.shape[:-1].numel()
        value = self._user.value if flat else self._user.value_and_derivatives
        args = self._user.args_of_rows(sample, in_order)
        out = self._called(value, t, x, args)
        check_no_tangent(out)  # of what the function closes over
        return out

    def _called(self, value: Callable[[Tensor, Tensor, Any], Tensor], t: Tensor, x: Tensor, args: Any) -> Tensor:
        if self.parameters is not None and self.calls == 1:
            return self._noting_parameters(self.parameters, value, t, x, args)
        if torch.is_grad_enabled():
            return value(t, x, args)
        if not x.requires_grad and not x.is_inference():
            out = value(t, x, args)
            return out.detach() if out.requires_grad else out
        return value(t, x.detach(), args).detach()  # the function may record by itself

    @staticmethod
    def _noting_parameters(
        parameters: list[Tensor], value: Callable[[Tensor, Tensor, Any], Tensor], t: Tensor, x: Tensor, args: Any
    ) -> Tensor:
        """The value; the leaves of its graph are added to the parameters."""
        with torch.enable_grad():
            state = x.detach().requires_grad_()
            try:
                out = value(t, state.clone(), args)
            except (RuntimeError, ValueError) as error:
                # NumPy inside the function, and parameters made in inference mode, refuse a state with gradients
                if not any(reason in str(error) for reason in ("requires grad", "Inference tensors")):
                    raise
                out = value(t, x, args)
        parameters.extend(leaf for leaf in leaves(out) if leaf is not state)
        return out.detach()

    def _in_order(self, sample: np.ndarray) -> bool:
        """Whether the rows are one of each sample, in their order."""
        return len(sample) == len(self._samples) and bool((sample == self._samples).all())

    @cached_property
    def _samples(self) -> np.ndarray:
        return np.arange(self.layout.batch)

    def _looks_like_samples(self, sample: np.ndarray) -> bool:
        """Whether rows in another order are as many as samples, and the function holds a tensor as long.

        A tensor with one row for each sample would then meet the wrong rows and fit. In two shorter calls it does not
        fit, and the error says so.
        """
        samples = self.layout.batch
        if len(sample) != samples or samples == 1 or self._user.takes in ("state", "batch"):
            return False
        return self._holds_as_many

    @cached_property
    def _holds_as_many(self) -> bool:
        return any(tensor.ndim > 0 and len(tensor) == self.layout.batch for tensor in reachable(self._user.function))


def _pieces(size: int, t: Tensor, x: Tensor, sample: np.ndarray) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
    """The rows in pieces of at most ``size``."""
    for start in range(0, len(t), size):
        rows = slice(start, start + size)
        yield t[rows], x[..., rows, :], sample[rows]
