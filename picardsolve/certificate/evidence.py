"""What a certificate is made from: the rounds of a solve, and the solve itself, which can be repeated."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from picardsolve.certificate.accepted import Accepted
from picardsolve.certificate.growth import Growth
from picardsolve.integrators.base import DriftChain
from picardsolve.problem.recurrence import rms
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.carried import Carried, Packed
from picardsolve.results.diagnostics import diagnose
from picardsolve.results.history import History
from picardsolve.results.solution import Solution


class Repeatable(Protocol):
    """A solve that can be repeated."""

    def chain(self) -> DriftChain:
        """A new chain of its steps."""
        ...

    def rows(self, solution: Solution) -> Tensor:
        """``(T, B, D)``, the states of a solution."""
        ...

    def finer(self, solution: Solution, factor: float) -> Solution:
        """Solve again, from a solution and to a fraction of the tolerance."""
        ...

    def sequential(self) -> Solution:
        """Solve step by step."""
        ...


@dataclass(frozen=True)
class Evidence:
    """What a certificate is made from.

    What follows from the rounds is computed when it is first asked for, and kept. A solve asks for its warnings only.

    Attributes:
        history: the rounds of the solve.
        path: ``(T, B, D)`` states at all times, or at the last time alone. Empty after it was pickled.
        steps: N, of the grid.
        tolerance: the tolerance of the errors.
        again: the solve, `Repeatable`; None for the steps of a pipeline's scheduler.
        taken: ``(N,)`` slopes of the steps, where a pipeline's scheduler takes them with the outputs of a round held
            fixed; 1 where they are not known. None where the steps are those of the sweep.
        batched: whether the states of the user are samples.
        denoises: whether the term is a denoiser.
        implicit: whether the steps are equations.
        growth: the measured growth of errors along the solution; None: not known.
        exact: whether the sequential solver took every step.
        seen: ``(N + 1, B)``, the errors that a second look at the whole path has found; None: there was none.
    """

    history: History
    path: Tensor
    steps: int
    tolerance: Tolerance
    again: Carried | Packed | None = None
    taken: Tensor | None = None
    batched: bool = True
    denoises: bool = True
    implicit: bool = False
    growth: Growth | None = None
    exact: bool = False
    seen: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**given, "path": self.path[:0].clone()}  # the solution holds the states

    @property
    def full(self) -> bool:
        """Whether the state at every time is known."""
        return len(self.path) == self.steps + 1

    @cached_property
    def accepted(self) -> Accepted:
        """Estimates for the accepted states."""
        samples, history = self.path.shape[1], self.history
        if self.exact or not history or (self.tolerance.nothing and history[0].step is None):
            return Accepted.exact(self.steps, samples)
        return Accepted.of(history, self.steps, samples, self.taken, self.implicit, self.denoises, self.growth)

    @property
    def kept(self) -> slice:
        """The times that the solution has, among those of the grid."""
        return slice(None) if self.full or self.again is None else slice(self.steps, None)

    @property
    def errors(self) -> Tensor:
        """Estimated root mean square errors of the states that are kept, ``(T, B)``; NaN where not known."""
        return (self.accepted.errors if self.seen is None else self.seen)[self.kept]

    @cached_property
    def growth_since_start(self) -> Tensor:
        """The largest growth of a change of the initial state, ``(B,)``; NaN where not known."""
        if self.denoises:
            return self.accepted.product_of_slopes()
        if self.growth is None:
            return torch.full((self.path.shape[1],), torch.nan, dtype=torch.float64)
        return self.growth.since_start

    @property
    def largest_growth(self) -> Tensor:
        """The largest growth of errors between any two times, ``(B,)``; NaN where not known."""
        return self.growth_since_start if self.denoises or self.growth is None else self.growth.largest

    @property
    def rounding(self) -> Tensor:
        """Unit roundoff times the size of each state, ``(T, B)``."""
        return torch.finfo(self.path.dtype).eps * self._sizes[0]

    @property
    def allowed(self) -> Tensor:
        """The root mean square error that the tolerance allows of each state, ``(T, B)``."""
        return self._sizes[1]

    @cached_property
    def _sizes(self) -> Tensor:
        """Sizes of the states and of what is allowed of them, ``(2, T, B)`` float64, by one wait for the device."""
        sizes = rms(self.path.nan_to_num(0)).double(), self.tolerance.size(self.path).double()
        return torch.stack(torch.broadcast_tensors(*sizes)).cpu()

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What to know and what to do, a sentence each."""
        return diagnose(self)
