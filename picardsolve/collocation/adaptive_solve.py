"""A whole solve by collocation as a machine: each sample marches by itself, all are evaluated in the same rounds."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from picardsolve.collocation.certificate import CollocationCertificate
from picardsolve.collocation.events import Event, EventFunction
from picardsolve.collocation.failures import OutOfRounds
from picardsolve.collocation.initial_value import InitialValueProblem
from picardsolve.collocation.sample import Sample
from picardsolve.collocation.sweeps import Choice
from picardsolve.collocation.trajectory import DenseStates
from picardsolve.integrators.adaptive import AdaptiveMachine
from picardsolve.problem.clock import Clock
from picardsolve.problem.problem import Problem
from picardsolve.problem.row_function import RowFunction
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.solution import Occurrences, Result, Solution, SolveError, Stats

if TYPE_CHECKING:
    from picardsolve.collocation.method import Collocation

_REACH = 16.0  # units of rounding: the least tolerance
_NUMBERS = 2**22  # in the states of a drift call, which may hold many more numbers inside
_SCALES = 5.0  # a segment is this much longer than the drift takes to change by its own size
_SEEN = 6  # drift calls before iterations are compared by their cost

Rows: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass
class AdaptiveSolve(AdaptiveMachine):
    """The samples of a batch, solved together: each round is one call of the drift for all that are not over.

    Attributes:
        samples: to be solved.
        function: the drift.
        saved: ``(T,)``, or ``(T, B)``: times of the solution.
        width: most rows of a sample in a round so far.
        most_rounds: where the user does not say.
    """

    most_rounds: ClassVar[int] = 10_000
    records: ClassVar[bool] = False
    samples: Sequence[Sample]
    function: RowFunction
    saved: Tensor
    width: int = 0
    _calls: list[tuple[int, float]] = field(default_factory=list)  # rows and seconds of the first drift calls

    @classmethod
    def of(
        cls,
        problem: Problem,
        y: Tensor,
        method: "Collocation",
        choice: Choice | None,
        tolerance: Tolerance,
        events: Sequence[Event] = (),
        only_last: bool = False,
    ) -> "AdaptiveSolve":
        """Begin a solve.

        Args:
            problem: of an ordinary differential equation, with times ``(T,)``, or ``(T, B)``, by sample.
            y: ``(B, D)`` initial states.
            method: nodes, order and steps.
            choice: the iteration; None: chosen.
            tolerance: its ``rtol`` and ``atol``.
            events: to be found.
            only_last: keep nothing but the states at the last time.

        Raises:
            ValueError: the tolerance is below rounding.
        """
        term: Any = problem.term
        layout, ts = problem.layout, problem.ts[[0, -1]] if only_last else problem.ts
        clock, most = Clock.of(ts, layout), problem.max_batch or max(_NUMBERS // layout.size, 1)
        function = replace(problem, max_batch=most).row_function("drift", term.drift, clock=clock)
        starts, grid = y.to("cpu", torch.float64).numpy(), ts.numpy()
        rtol, atol = (_by_component(value, starts.shape) for value in (tolerance.rtol, tolerance.atol))
        samples = []
        for i, start in enumerate(starts):
            _check_reach(layout.dtype, np.abs(start), rtol[i], atol[i])
            times = grid if grid.ndim == 1 else grid[:, i]
            own = InitialValueProblem(start, times, rtol[i], atol[i], torch.finfo(layout.dtype).eps, term.second_order)
            watched = [EventFunction(event, layout, clock, function.args_of(i)) for event in events]
            samples.append(Sample(own, method, choice, watched))
        return cls(samples, function, ts[1:] if only_last else ts)

    @property
    def done(self) -> bool:
        """Whether every sample is over."""
        return all(sample.over for sample in self.samples)

    @property
    def percent(self) -> int:
        """How far the slowest sample has come."""
        parts = [sample.march.reached / sample.march.span for sample in self.samples if not sample.over]
        return int(100 * min(parts, default=1.0))

    def ask(self) -> Rows:
        """Times ``(R,)``, states ``(R, D)`` and sample numbers ``(R,)`` of the next round."""
        active = [i for i, sample in enumerate(self.samples) if not sample.over]
        if len(self._calls) == _SEEN:
            for i in active:
                self.samples[i].compare(self._calls)
        asked = [self.samples[i].ask() for i in active]
        counts = [len(t) for t, _ in asked]
        self._active, self._ends, self.width = active, np.cumsum(counts)[:-1], max(self.width, *counts)
        t, y = asked[0] if len(asked) == 1 else (np.concatenate(part) for part in zip(*asked, strict=True))
        return t, y, np.repeat(active, counts)

    @torch.no_grad()
    def evaluate(self, rows: Rows) -> np.ndarray:
        """The drift at the rows, ``(R, D)``."""
        t, states, sample = rows
        began, layout = perf_counter(), self.function.layout
        lengths = [segment.h for i in self._active for segment in self.samples[i].march.queue]
        self.function.clock.resolves(float(np.abs(t).max()), _SCALES * min(lengths, default=np.inf))
        x = torch.from_numpy(states).to(layout.device, layout.compute_dtype)
        drift = self.function(torch.from_numpy(t), x, sample).to("cpu", torch.float64).numpy()
        if len(self._calls) <= _SEEN:
            self._calls.append((len(t), perf_counter() - began))
        return drift

    def tell(self, outputs: np.ndarray) -> None:
        """Take the drifts."""
        for i, own in zip(self._active, np.split(outputs, self._ends), strict=True):
            self.samples[i].tell(own)

    @cached_property
    def states(self) -> DenseStates:
        """The states at any times, once it is over."""
        return DenseStates([sample.trajectory for sample in self.samples], self.function.layout)

    def solution(self, rounds: int, throw: bool) -> Solution:
        """What was found, after so many rounds.

        Raises:
            SolveError: a sample failed, and ``throw`` is true; it carries the solution.
        """
        samples, layout = self.samples, self.function.layout
        steps = max(len(sample.march.accepted) for sample in samples)
        failed = next((i for i, sample in enumerate(samples) if sample.failure or not sample.over), None)
        result = Result.terminated if any(sample.terminated for sample in samples) else Result.solved
        said, time = "", None
        if failed is not None:
            own = samples[failed]
            time = float(own.problem.time(np.array(own.march.reached)))
            failure = own.failure or OutOfRounds()
            result, said = failure.result, failure.explain(own.problem, time)
        solution = Solution(
            self.saved,
            layout.unpack_path(self.states.states(self.saved)),
            result,
            Stats(steps, rounds, self.function.evaluations, self.function.calls, self.width),
            notes=tuple(note for sample in samples for note in sample.notes),
            events=tuple(self._occurrences(event) for event in range(len(samples[0].events))),
            dense=self.states,
            _certified=partial(CollocationCertificate.of, samples, layout),
        )
        if throw and failed is not None:
            which = f"Sample {failed}: " if layout.batched else ""
            raise SolveError(f"{which}{said} {result.value}", solution, time=time)
        return solution

    def _occurrences(self, event: int) -> Occurrences | tuple[Occurrences, ...]:
        """When an event happened: one for each sample of a batch."""
        out, layout = [], self.function.layout
        for sample in self.samples:
            found = [] if sample.march.watch is None else sample.march.watch.found[event]
            times = sample.problem.time(np.array([t for t, _ in found]))
            states = np.array([state for _, state in found]).reshape(len(found), layout.size)
            rows = torch.from_numpy(states).to(layout.device, layout.compute_dtype)
            out.append(Occurrences(torch.from_numpy(times), layout.unpack(rows)))
        return tuple(out) if layout.batched else out[0]


def _by_component(value: float | Tensor, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(value.cpu() if isinstance(value, Tensor) else value, float)
    return np.broadcast_to(values[:, None] if values.ndim == 1 else values, shape)


def _check_reach(dtype: torch.dtype, sizes: np.ndarray, rtol: np.ndarray, atol: np.ndarray) -> None:
    """Refuse a tolerance below the rounding of a component at the start; a component of 0 tells nothing."""
    unit = torch.finfo(dtype).eps
    least = _REACH * unit * sizes
    known = sizes > 0 if sizes.any() else np.ones_like(sizes, bool)
    beyond = np.where(known & (rtol * sizes + atol <= least), sizes, -1.0)
    worst = int(beyond.argmax())
    if beyond[worst] >= 0:
        raise ValueError(
            f"rtol, atol: got {rtol[worst]:g} and {atol[worst]:g}, less than {dtype} can reach with states of "
            f"size {sizes[worst]:.1e}; pass rtol >= {1.1 * _REACH * unit:.1e}, or atol >= "
            f"{max(1.1 * least[worst], 1e-300):.1e}."
        )
