"""A whole solve by collocation as a machine: the samples march together, and each round is one call of the drift."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from picardsolve.collocation.arrays import Array
from picardsolve.collocation.certificate import CollocationCertificate
from picardsolve.collocation.events import Event, EventFunction, EventWatch, EventWatches
from picardsolve.collocation.failures import Failure, OutOfRounds
from picardsolve.collocation.initial_value import InitialValueProblem, Limits
from picardsolve.collocation.marches import Marches
from picardsolve.collocation.numpy_arrays import NumpyArrays
from picardsolve.collocation.path import Path
from picardsolve.collocation.sweeps import Choice
from picardsolve.collocation.torch_arrays import TorchArrays
from picardsolve.collocation.trajectory import DenseStates
from picardsolve.integrators.adaptive import AdaptiveMachine
from picardsolve.problem.clock import Clock
from picardsolve.problem.problem import Problem
from picardsolve.problem.reach import check_reach
from picardsolve.problem.row_function import RowFunction
from picardsolve.problem.stopwatch import seconds
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.solution import Occurrences, Result, Solution, SolveError, Stats

if TYPE_CHECKING:
    from picardsolve.collocation.method import Collocation

_NUMBERS = 2**22  # in the states of a drift call, which may hold many more numbers inside
_SCALES = 5.0  # a segment is this much longer than the drift takes to change by its own size
_SEEN = 3  # first drift calls whose cost decides between iterations

Rows: TypeAlias = tuple[np.ndarray, Array, np.ndarray]


@dataclass
class AdaptiveSolve(AdaptiveMachine):
    """The samples of a batch, solved together: each round is one call of the drift for all that are not over.

    Attributes:
        marches: of the samples.
        function: the drift.
        saved: ``(T,)``, or ``(T, B)``: times of the solution.
        width: most rows of a sample in a round so far.
        most_rounds: where the user does not say.
    """

    most_rounds: ClassVar[int] = 10_000
    records: ClassVar[bool] = False
    marches: Marches
    function: RowFunction
    saved: Tensor
    width: int = 0
    _calls: list[tuple[int, float]] = field(default_factory=list)  # rows and seconds of the first drift calls
    _compared: bool = False

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
        starts = y.detach().to("cpu", torch.float64).numpy()
        rtol, atol = (_by_component(value) for value in (tolerance.rtol, tolerance.atol))
        check_reach(layout.dtype, np.abs(starts), rtol, atol)
        on_host = layout.device.type in ("cpu", "mps")  # mps has no double precision
        arrays = NumpyArrays() if on_host else TorchArrays(layout.device)
        start = arrays.of_tensor(y.detach())
        unit, second_order = torch.finfo(layout.dtype).eps, term.second_order
        own = InitialValueProblem(start, ts.numpy(), arrays.array(rtol), arrays.array(atol), unit, arrays, second_order)
        watches = None
        if events:
            functions = [
                [EventFunction(event, layout, clock, function.args_of(i)) for event in events]
                for i in range(len(starts))
            ]
            each = [EventWatch(mine, own, i) for i, mine in enumerate(functions)]
            of_rows = [EventFunction(event, layout, clock, ()) for event in events]
            watches = EventWatches(own, each, of_rows, function.args_of_rows)
        return cls(Marches(own, method, choice, watches), function, ts[1:] if only_last else ts)

    @property
    def problem(self) -> InitialValueProblem:
        """The samples."""
        return self.marches.problem

    @property
    def done(self) -> bool:
        """Whether every sample is over."""
        return bool(self.marches.over.all())

    @property
    def pieces(self) -> float:
        """The longest span in lengths of the shortest segment in flight."""
        return float(self.problem.elapsed[-1].max() / self.marches.shortest)

    @property
    def failed(self) -> bool:
        """Whether samples ended before their time."""
        return bool(self.marches.failures)

    @property
    def beyond(self) -> bool:
        """Whether the estimated error of a sample stays above the tolerance."""
        return bool(self.marches.beyond.any())

    @property
    def percent(self) -> int:
        """How far the slowest sample has come."""
        return int(100 * self.marches.part)

    def ask(self) -> Rows:
        """Times ``(R,)``, states ``(R, D)`` and sample numbers ``(R,)`` of the next round."""
        if 0 < len(self._calls) <= _SEEN and not self._compared:
            self._compared = len(self._calls) == _SEEN
            self.marches.compare(self._calls)
        elapsed, states, sample = self.marches.ask()
        most = len(sample) if self.problem.samples == 1 else int(np.bincount(sample).max())
        self.width = max(self.width, most)
        self._sign = self.problem.sign[sample]
        return self.problem.origin[sample] + self._sign * elapsed, states, sample

    @torch.no_grad()
    def evaluate(self, rows: Rows) -> Tensor:
        """The drift at the rows, ``(R, D)``."""
        t, states, sample = rows
        began, layout = seconds(), self.function.layout
        self.function.clock.resolves(float(np.abs(t).max()), _SCALES * self.marches.shortest)
        x = self.problem.arrays.tensor(states).to(layout.device, layout.compute_dtype)
        drift = self.function(torch.from_numpy(t), x, sample)
        if len(self._calls) < _SEEN:
            drift[:1].cpu()  # a device answers at once, and computes later
            self._calls.append((len(t), seconds() - began))
        return drift

    def tell(self, outputs: Tensor) -> None:
        """Take the drifts."""
        arrays = self.problem.arrays
        drift, sign = arrays.of_tensor(outputs), self._sign
        if self._backward:
            drift = arrays.array(sign)[:, None] * drift
        self.marches.tell(drift)

    @property
    def limits(self) -> Sequence[Limits]:
        """Of the paths of `states`."""
        return [march.limits for march in self._with_paths]

    @cached_property
    def _backward(self) -> bool:
        return bool((self.problem.sign < 0).any())

    @cached_property
    def _with_paths(self) -> Sequence[Any]:
        return [march for march in self.marches.marches.values() if march.accepted.all() is not None]

    @cached_property
    def states(self) -> DenseStates:
        """The states at any times, once it is over."""
        path_of, paths = np.full(self.problem.samples, -1), []
        for i, march in enumerate(self._with_paths):
            segments = march.accepted.all()
            path_of[segments.sample] = i
            paths.append(Path(self.problem.arrays, march.nodes, segments))
        return DenseStates(self.problem, self.marches.known, paths, path_of, self.function.layout)

    def solution(self, rounds: int, throw: bool) -> Solution:
        """What was found, after so many rounds.

        Raises:
            SolveError: a sample failed, and ``throw`` is true; it carries the solution.
        """
        marches, layout = self.marches, self.function.layout
        failures: dict[int, Failure] = {int(i): OutOfRounds() for i in np.flatnonzero(~marches.over)}
        failures |= marches.failures
        kept = Result.beyond if self.beyond else Result.solved
        result = Result.terminated if marches.terminated.any() else kept
        said, time, failed = "", None, min(failures, default=None)
        if failed is not None:
            time = float(self.problem.time(marches.reached[failed], failed))
            result, said = failures[failed].result, failures[failed].explain(self.problem, failed, time)
        solution = Solution(
            self.saved,
            layout.unpack_path(self.states.states(self.saved)),
            result,
            Stats(int(marches.count.max()), rounds, self.function.evaluations, self.function.calls, self.width),
            notes=marches.notes,
            events=self._events(),
            dense=self.states,
            _certified=partial(CollocationCertificate.of, self.states, self.limits),
        )
        if throw and failed is not None:
            which = f"Sample {failed}: " if layout.batched else ""
            raise SolveError(f"{which}{said} {result.value}", solution, time=time)
        return solution

    def _events(self) -> tuple[Any, ...]:
        """When each event happened: one for each sample of a batch."""
        watches = self.marches.watches
        if watches is None:
            return ()
        count, batched = len(watches.samples[0].functions), self.function.layout.batched
        found = [tuple(self._occurrences(watch, e) for watch in watches.samples) for e in range(count)]
        return tuple(each if batched else each[0] for each in found)

    def _occurrences(self, watch: EventWatch, event: int) -> Occurrences:
        layout, found = self.function.layout, watch.found[event]
        times = self.problem.time(np.array([t for t, _ in found]), watch.sample)
        states = np.array([state for _, state in found]).reshape(len(found), layout.size)
        rows = torch.from_numpy(states).to(layout.device, layout.compute_dtype)
        return Occurrences(torch.from_numpy(times), layout.unpack(rows))


def _by_component(value: float | Tensor) -> np.ndarray:
    """``(B or 1, d or 1)``."""
    values = np.asarray(value.cpu() if isinstance(value, Tensor) else value, float)
    return values.reshape(-1, 1) if values.ndim < 2 else values
