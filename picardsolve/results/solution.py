"""The solution of a solve: states, result, costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.results.abstract_certificate import AbstractCertificate
from picardsolve.results.history import Round
from picardsolve.results.plot import plot_rounds, plot_segments

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Result(Enum):
    """How a solve ended; the value is the sentence to read."""

    converged = "Every state is within the tolerance of the sequential solution, as far as the rounds tell."
    doubtful = (
        "The iteration converged, but errors grow so much along this solution that it may be further from the "
        "sequential one than the tolerance: see solution.certificate."
    )
    nonfinite = (
        "A step of the sequential solver itself is not finite: take smaller steps near that time, start from another "
        "y0, or use more precision."
    )
    stopped = "The iterations that were asked for are done; how far they are from the tolerance is not known."
    solved = "The solution is within the tolerance, as far as its own checks tell."
    beyond = (
        "The estimated error stays above the tolerance, because errors grow or by rounding: see solution.certificate; "
        "loosen the tolerance, use more precision, or solve over a shorter time."
    )
    terminated = "A terminal event ended the solve: its time and state are in events, states at later times are NaN."
    diverged = "The solution appears to blow up in finite time: solve up to an earlier time, or check the drift."
    nonfinite_drift = "Check the drift there, or solve up to an earlier time; the solution holds the states before it."
    unresolved = (
        "The drift may jump or be noisy there: loosen the tolerance, solve up to the jump and go on from it, or use "
        "more precision."
    )
    stiff = (
        "The equation is stiff, and Newton's method takes states of at most 64 numbers here: split off its linear part "
        "as a SemilinearODE, or use an implicit solver such as scipy's BDF."
    )
    stiff_for_steps = (
        "The equation is stiff for explicit steps: pass integrator=picardsolve.Collocation(), which solves states of "
        "at most 64 numbers by Newton's method, split off its linear part as a SemilinearODE, or use scipy's BDF."
    )
    unreachable = "Loosen the tolerance to that, use more precision, or solve over a shorter time."
    interrupted = "A device or a process was lost in the middle of the solve: the states are those reached before."
    max_rounds = "The limit of rounds was reached first: raise max_rounds, loosen the tolerance or narrow the window."


@dataclass(frozen=True)
class Stats:
    """What a solve cost.

    Attributes:
        steps: N, the steps of the grid.
        rounds: batched drift calls, one after another. Each stage of a Runge-Kutta step takes one, and so does a guess
            that calls the drift.
        evaluations: evaluations of the drift at one state of one sample.
        calls: calls of the user's function; more than rounds where ``max_batch`` splits them.
        max_width: the largest number of steps of one sample in a round.
    """

    steps: int
    rounds: int
    evaluations: int
    calls: int
    max_width: int


@dataclass(frozen=True)
class Occurrences:
    """Times and states of one event.

    Attributes:
        ts: ``(k,)`` float64 times, in the direction of the solve.
        ys: ``(k, *y0.shape)`` states at those times, or the same structure of tensors as y0; those of one sample where
            y0 is a batch.
    """

    ts: Tensor
    ys: Any


class Dense(Protocol):
    """The states at any times, as polynomials on segments."""

    def __call__(self, at: Tensor) -> Any:
        """At times ``(T,)``: states ``(T, *y0.shape)`` in the structure of y0, NaN where not known."""
        ...

    def detached(self) -> "Dense":
        """The same polynomials without gradients, and without the functions that gradients need."""
        ...

    def segments(self, sample: int) -> Tensor:
        """``(S + 1,)`` float64: the times where the segments of a sample begin, and the end of the last one."""
        ...


@dataclass(frozen=True)
class _Known:
    """A certificate that was computed already."""

    certificate: AbstractCertificate

    def __call__(self, solution: "Solution") -> AbstractCertificate:
        return self.certificate


@dataclass(frozen=True, repr=False)
class Solution:
    """The states at the times ``ts``, what they cost, and how far they may be from the reference.

    A solution can be pickled, deep-copied and saved by `torch.save`; copies have no gradients. A copy keeps states,
    costs, history, the numbers of the certificate and ``sol(t)``. ``certificate.verify()``, ``recheck()`` and
    ``certified()`` call functions of the solve. After pickling they work where these functions can be pickled and hold
    at most a megabyte beside the initial state; otherwise they raise a ValueError that says so.

    Attributes:
        ts: ``(T,)`` float64: the grid, or its last time with ``save="last"``.
        ys: ``(T, *y0.shape)``, or the same structure of tensors as y0; NaN at times that were not reached, and at those
            after a terminal event.
        result: how the solve ended.
        stats: what it cost.
        history: one record per round; empty for a sequential solve, and for collocation.
        notes: what the solve decided by itself, a sentence each.
        events: per event function its `Occurrences`; for a batch, a tuple of those of each sample.
        dense: for collocation, the states at any times; see `__call__`.
    """

    ts: Tensor
    ys: Any
    result: Result
    stats: Stats
    history: Sequence[Round] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    events: tuple[Any, ...] = ()
    dense: Dense | None = field(default=None, repr=False, compare=False)
    _certified: "Callable[[Solution], AbstractCertificate] | None" = field(default=None, repr=False, compare=False)

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
    def certificate(self) -> AbstractCertificate:
        """How far this solution may be from its reference.

        After a solve on a grid it is a `Certificate`, about the sequential solution. After collocation it is about the
        solution of the equation itself.

        Raises:
            ValueError: this is a sequential solution.
        """
        if self._certified is None:
            raise ValueError("certificate: this solution was computed step by step: it is the reference itself.")
        return self._certified(self)

    def __call__(self, t: "Tensor | Sequence[float] | float") -> Any:
        """Evaluate the polynomials of a solution by collocation; the drift is not called.

        Args:
            t: a number, or ``(T,)`` times in any order, between the first and the last time of the solution.

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
        """Draw the residual of every step in every round, and the window; for collocation the lengths of segments.

        Args:
            sample: index of a sample in the batch.

        Returns:
            A matplotlib figure.

        Raises:
            ImportError: matplotlib is missing (``pip install picardsolve[plot]``).
            TypeError: sample is not an integer.
            ValueError: the solution is sequential and has no rounds to draw, or there is no such sample.
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
    """A solve that could not be finished. It carries what was computed.

    Attributes:
        solution: the states that were reached, NaN after them.
        step: the step that failed; None where none did.
        time: the time of that step.
    """

    def __init__(self, message: str, solution: Solution, step: int | None = None, time: float | None = None):
        super().__init__(message)
        self.solution, self.step, self.time = solution, step, time

    def __reduce__(self) -> tuple[Any, ...]:
        return SolveError, (str(self), self.solution, self.step, self.time)  # raised in a worker, caught outside
