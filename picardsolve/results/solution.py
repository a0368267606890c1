"""What comes back from a solve."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.results.history import Round
from picardsolve.results.plot import plot_rounds, plot_segments

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Result(Enum):
    """How a solve ended; the value is the sentence to read."""

    converged = "Every state is the sequential solution's, to the tolerance that was asked for."
    doubtful = (
        "The iteration has converged, but errors grow so much along this solution that it may be further from the "
        "sequential one than the tolerance: see solution.certificate."
    )
    nonfinite = (
        "A step of the sequential solver itself is not finite: take smaller steps near that time, start from another "
        "y0, or use more precision; a parallel solver cannot mend it."
    )
    stopped = "The iterations that were asked for are done; how close they came to the tolerance was not asked."
    solved = "The solution is within the tolerance, as far as its own checks tell."
    terminated = "A terminal event ended it: its time and state are in events, states at later times are NaN."
    diverged = "It seems to end in finite time: solve up to there, or check the drift."
    nonfinite_drift = "Check the drift there, or solve up to an earlier time; what came before is in the solution."
    unresolved = (
        "The drift may jump or be noisy there: loosen the tolerance, solve up to the jump and go on from it, or use "
        "more precision."
    )
    stiff = (
        "The equation is stiff, and Newton's method takes states of at most 64 numbers here: split off its linear part "
        "as a SemilinearODE, or use an implicit solver such as scipy's BDF."
    )
    unreachable = "Loosen the tolerance to that, use more precision, or solve over a shorter time."
    max_rounds = "The limit of rounds was reached first: raise max_rounds, loosen the tolerance or narrow the window."


@dataclass(frozen=True)
class Stats:
    """What a solve cost.

    Attributes:
        steps: steps N of the grid.
        rounds: batched drift calls that follow each other; a Runge-Kutta stage is one, so is the guess's own.
        evaluations: drifts at one state of one sample, all counted.
        calls: calls of the user's function; more than rounds where ``max_batch`` cut them.
        max_width: most steps of one sample in a round.
    """

    steps: int
    rounds: int
    evaluations: int
    calls: int
    max_width: int


@dataclass(frozen=True)
class Occurrences:
    """When an event happened.

    Attributes:
        ts: ``(k,)`` float64, in the order of the way.
        ys: the states there, ``(k, *y0.shape)``, or the same structure of tensors as y0; of one sample, where y0 is a
            batch.
    """

    ts: Tensor
    ys: Any


class Dense(Protocol):
    """The states at any times, as polynomials on segments."""

    def __call__(self, at: Tensor) -> Any:
        """At times ``(T,)``: states ``(T, *y0.shape)`` in the structure of y0, NaN where not known."""
        ...

    def detached(self) -> "Dense":
        """The same without gradients, and without the functions that these need."""
        ...

    def segments(self, sample: int) -> Tensor:
        """The times where the segments of a sample begin, and where the last one ends, ``(S + 1,)`` float64."""
        ...


@dataclass(frozen=True)
class _Known:
    """A certificate that has been computed, in the place of what computes it."""

    certificate: Any

    def __call__(self, solution: "Solution") -> Any:
        return self.certificate


@dataclass(frozen=True, repr=False)
class Solution:
    """The states at the times ``ts``, and how they came about.

    It can be pickled, deep-copied and saved by `torch.save`; copies have no gradients. States, costs, history, the
    certificate's numbers and ``sol(t)`` always come back. The functions that it was computed by, which
    ``certificate.verify()``, ``recheck()`` and ``certified()`` call, do where they can be pickled and hold no more than
    a megabyte beside the initial state; elsewhere these say so.

    Attributes:
        ts: ``(T,)`` float64: the grid, or its last time with ``save="last"``.
        ys: ``(T, *y0.shape)``, or the same structure of tensors as y0; NaN where a solve stopped before, or an event.
        result: how it ended.
        stats: what it cost.
        history: one record per round; empty for a sequential solve, and for collocation.
        notes: what was decided on the way, such as the iteration that was chosen.
        events: per event function its `Occurrences`; of a batch, a tuple of those of each sample.
        dense: of collocation, the states at any times; see `__call__`.
    """

    ts: Tensor
    ys: Any
    result: Result
    stats: Stats
    history: Sequence[Round] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    events: tuple[Any, ...] = ()
    dense: Dense | None = field(default=None, repr=False, compare=False)
    _certified: "Callable[[Solution], Any] | None" = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != "certificate"}
        state["ys"] = pytree.tree_map(Tensor.detach, self.ys)  # torch deep-copies no tensor that has a graph
        state["dense"] = None if self.dense is None else self.dense.detached()
        state["_certified"] = None if self._certified is None else _Known(self.certificate)
        return state

    def __repr__(self) -> str:
        shapes = pytree.tree_map(lambda leaf: tuple(leaf.shape), self.ys)
        leaf, stats = pytree.tree_leaves(self.ys)[0], self.stats
        return (
            f"Solution({self.result.name}: ys {shapes} {str(leaf.dtype).removeprefix('torch.')} at {_span(self.ts)}, "
            f"{stats.steps} steps in {stats.rounds} rounds, {stats.evaluations} evaluations)"
        )

    def __str__(self) -> str:
        lines = [repr(self), self.result.value, *self.notes]
        for number, event in enumerate(self.events):
            counts = [len(found.ts) for found in (event if isinstance(event, tuple) else (event,))]
            lines.append(f"event {number}: found {', '.join(map(str, counts))}")
        return "\n".join(lines if self._certified is None else [*lines, str(self.certificate)])

    def __copy__(self) -> "Solution":
        return replace(self)  # a shallow copy shares all, gradients too

    @cached_property
    def certificate(self) -> Any:
        """How far this is from the truth: a `Certificate`, or of collocation an `Estimate`.

        A `Certificate` is about the sequential solution, as far as the rounds tell; an `Estimate` about the solution of
        the equation.

        Raises:
            ValueError: it is a sequential solution.
        """
        if self._certified is None:
            raise ValueError("certificate: this solution was computed step by step, it is the reference itself.")
        return self._certified(self)

    def __call__(self, t: "Tensor | Sequence[float] | float") -> Any:
        """The solution at any times between the first and the last: its polynomials, for no drift call.

        Args:
            t: a number, or ``(T,)`` times in any order.

        Returns:
            The state, or states ``(T, *y0.shape)``; NaN at times that were not reached.

        Raises:
            ValueError: the solution is not by collocation, or a time is outside its span.
        """
        if self.dense is None:
            raise ValueError(
                "sol(t): this solution is known only at its times ts; for others, of an ODE, solve with "
                "integrator=picardsolve.Collocation()."
            )
        at = torch.as_tensor(t, dtype=torch.float64)
        first, last = self.ts.min(), self.ts.max()
        if at.dim() > 1 or not bool(((at >= first) & (at <= last)).all()):
            raise ValueError(f"t: expected times within [{float(first):g}, {float(last):g}], got {t!r}.")
        states = self.dense(at.reshape(-1))
        return states if at.dim() else pytree.tree_map(lambda leaf: leaf[0], states)

    def plot(self, sample: int = 0) -> "Figure":
        """Draw the residual of every step in every round, with the window sliding through it.

        Of collocation, which keeps no record of its rounds: how long its segments are.

        Args:
            sample: which sample of the batch.

        Raises:
            ImportError: matplotlib is missing (``pip install picardsolve[plot]``).
            ValueError: a sequential solution has no rounds to draw, or there is no such sample.
        """
        if type(sample) is not int:
            raise TypeError(f"sample: expected an integer >= 0, got {sample!r}.")
        if sample < 0:
            raise ValueError(f"sample: expected an integer >= 0, got {sample!r}.")
        if self.dense is not None:
            return plot_segments(self.dense.segments(sample), self.stats.rounds)
        if not self.history:
            raise ValueError("plot: this solution was computed step by step, it has no rounds to draw; use solve().")
        samples = len(self.history[0].begin)
        if sample >= samples:
            raise ValueError(f"sample: expected one of {samples}, counted from 0, got {sample}.")
        return plot_rounds(self.history, self.stats.steps, self.stats.rounds, sample)


def _span(ts: Tensor) -> str:
    times = ts.detach()
    if times.dim() > 1:
        return f"{len(times)} times of each sample"
    return (
        f"t = {float(times[0]):g}"
        if len(times) == 1
        else (f"{len(times)} times from {float(times[0]):g} to {float(times[-1]):g}")
    )


class SolveError(RuntimeError):
    """A solve that could not be finished; nothing computed is lost.

    Attributes:
        solution: the states so far, NaN after them.
        step: the step that failed, where one did.
        time: its time.
    """

    def __init__(self, message: str, solution: Solution, step: int | None = None, time: float | None = None):
        super().__init__(message)
        self.solution, self.step, self.time = solution, step, time

    def __reduce__(self) -> tuple[Any, ...]:
        return SolveError, (str(self), self.solution, self.step, self.time)  # raised in a worker, caught outside
