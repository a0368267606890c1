"""A whole solve by steps of an embedded pair: the machine that is asked and told, and what it returns."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.embedded.allowed import Allowed
from picardsolve.embedded.certificate import EmbeddedCertificate
from picardsolve.embedded.control import Control
from picardsolve.embedded.dense import DenseSteps
from picardsolve.embedded.failures import OutOfRounds
from picardsolve.embedded.found import Asked
from picardsolve.embedded.lanes import Limits
from picardsolve.embedded.marches import Marches
from picardsolve.embedded.moving_times import at_moving_times, moving, shifted
from picardsolve.embedded.pair import Coefficients, Pair
from picardsolve.embedded.rows import Asks, Rows
from picardsolve.embedded.stages import Buffered, Recorded, Stages
from picardsolve.integrators.adaptive import AdaptiveMachine, Given, exceeds
from picardsolve.problem.clock import Clock
from picardsolve.problem.events import Event
from picardsolve.problem.problem import Problem
from picardsolve.problem.reach import check_reach
from picardsolve.problem.row_function import RowFunction
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.solution import Occurrences, Result, Solution, SolveError, Stats

_UNSEEN = 1e-4  # in what is allowed: the error of a step that was much too short


@dataclass
class EmbeddedSolve(AdaptiveMachine):
    """The samples of a batch, stepped side by side.

    Attributes:
        pair: the method.
        control: of its steps.
        limits: of the user's.
        function: the drift.
        ts: ``(T,)`` or ``(T, B)`` times that are asked for.
        start: ``(B, D)``.
        allowed: by the user's tolerance.
        events: to be found.
        only_last: whether the solution keeps the last states only.
        given: what gradients may be wanted of; None: none are.
        recording: whether they are.
        marches: of all samples.
    """

    most_rounds: ClassVar[int] = 1_000_000
    records: ClassVar[bool] = True
    pair: Pair
    control: Control
    limits: Limits
    function: RowFunction
    ts: Tensor
    start: Tensor
    allowed: Allowed
    events: Sequence[Event]
    only_last: bool
    given: Given | None
    recording: bool = False
    marches: Marches = field(init=False)

    @classmethod
    def of(
        cls,
        pair: Pair,
        control: Control,
        limits: Limits,
        problem: Problem,
        y: Tensor,
        tolerance: Tolerance,
        events: Sequence[Event],
        only_last: bool,
        given: Given | None,
    ) -> "EmbeddedSolve":
        """Begin a solve; the arguments are those of `AdaptiveMethod.begin`.

        Raises:
            ValueError: the tolerance is below rounding.
        """
        ts, allowed = problem.ts[[0, -1]] if only_last else problem.ts, Allowed.of(tolerance)
        clock = Clock.of(ts, problem.layout)
        problem = replace(problem, args=problem.args if given is None else given.args, parameters=None)
        function = problem.row_function("drift", problem.term.drift, clock=clock)  # pyright: ignore
        sizes = y.abs().cpu().numpy().astype(float)
        check_reach(problem.layout.dtype, sizes, _host(allowed.rtol), _host(allowed.atol))
        return cls(pair, control, limits, function, ts, y, allowed, events, only_last, given)

    def __post_init__(self):
        if self.given is not None and _requires(self.given):
            self.start, self.recording = self.given.start, True
        times = self.ts.numpy() if self.ts.dim() > 1 else self.ts.numpy()[:, None]
        self.times = np.broadcast_to(times, (len(times), len(self.start)))
        asked = Asked(self.times, self.function.layout, self.allowed, self.pair.nodes)
        self.marches = Marches(
            self.pair, self.control, self.limits, self.function, asked, self.events, self._make_stages
        )
        self._moving = moving(None if self.given is None else self.given.ts)
        self._calls, self._rows = self._solving(), None
        self.tell(None)

    def _make_stages(self, coefficients: Coefficients) -> Stages:
        return (Recorded if self.recording else Buffered)(coefficients)

    def _solving(self) -> Asks[None]:
        start = yield from shifted(self.start, self.times[0], self._moving)
        yield from self.marches.calls(start)

    @property
    def done(self) -> bool:
        """Whether every sample is over."""
        return self._rows is None

    @property
    def beyond(self) -> bool:
        """Whether the estimated error of a sample, or twice the deviation by rounding, stays above the tolerance."""
        found, failed = self.marches.found, list(self.marches.failures)
        if found is None:
            return False
        error, _, floor = np.delete(found.worst, failed, 1)
        return bool(exceeds(error, floor).any())

    @property
    def percent(self) -> int:
        """How far the slowest sample has come."""
        lanes = self.marches.march.lanes
        parts = (np.abs(lanes.t - lanes.begin) / np.abs(lanes.end - lanes.begin))[~lanes.over]
        return int(100 * parts.min(initial=1.0))

    @property
    def failed(self) -> bool:
        """Whether samples ended before their time."""
        return bool(self.marches.failures)

    @property
    def steps_left(self) -> float:
        """How many steps the slowest sample is expected to take still; NaN while lengths grow from the first ones."""
        lanes = self.marches.march.lanes
        on, growing = ~lanes.over, lanes.before <= _UNSEEN
        if not on.any() or ((lanes.steps == 0) | growing)[on].any():
            return np.nan
        return float((np.abs(lanes.end - lanes.t) / lanes.h)[on].max())

    def ask(self) -> Rows:
        """Times ``(R,)``, states ``(R, D)`` and sample numbers ``(R,)`` of the next round."""
        assert self._rows is not None
        return self._rows

    def evaluate(self, rows: Rows) -> Tensor:
        """The drift at the rows, ``(R, D)``."""
        first = self.given is not None and self.function.calls == 0
        with torch.set_grad_enabled(rows.recorded and (self.recording or first)):
            slope = self.function(rows.t, rows.y, rows.sample)
        self.recording = self.recording or slope.requires_grad
        return slope

    def tell(self, outputs: Tensor | None) -> None:
        """Take the drifts."""
        try:
            self._rows = self._calls.send(outputs)  # pyright: ignore[reportArgumentType]
        except StopIteration:
            self._rows = None

    @cached_property
    def states(self) -> DenseSteps:
        """The states at any times, once it is over."""
        marches = self.marches
        return marches.asked.dense(marches.march.path.steps()) if marches.found is None else marches.found.marched.dense

    def solution(self, rounds: int, throw: bool) -> Solution:
        """What was found, after so many rounds.

        Raises:
            SolveError: a sample failed, and ``throw`` is true; it carries the solution.
        """
        layout, states, marches = self.function.layout, self.states, self.marches
        failures, found = marches.failures, marches.found
        if not self.done:
            lanes = marches.march.lanes
            failures.update((int(sample), OutOfRounds()) for sample in lanes.sample[~lanes.over])
        failed = min(failures, default=None)
        ended = found is not None and np.isfinite(found.marched.ends).any()
        kept = Result.beyond if self.beyond else Result.solved
        result = (Result.terminated if ended else kept) if failed is None else failures[failed].result
        saved, at = (self.ts[1:], self.times[1:]) if self.only_last else (self.ts, self.times)
        known = None if found is None else found.marched
        path = states.states(saved) if known is None else known.states(known.unknown)[-len(saved) :]
        path = at_moving_times(path, at, self._moving, self.function)
        solution = Solution(
            saved,
            layout.unpack_path(path),
            result,
            Stats(int(states.steps.count.max()) - 1, rounds, self.function.evaluations, self.function.calls, 1),
            notes=self._notes(),
            events=tuple(self._occurrences(e) for e in range(len(self.events))),
            dense=states,
            _certified=partial(EmbeddedCertificate.read, self._certified(), marches.growth, layout.batched),
        )
        if throw and failed is not None:
            time = float(self.times[0, failed] + states.sign[failed] * states.reached[failed])
            which = f"Sample {failed}: " if layout.batched else ""
            raise SolveError(f"{which}{failures[failed].explain(time)} {result.value}", solution, time=time)
        return solution

    def _occurrences(self, event: int) -> Occurrences | tuple[Occurrences, ...]:
        """When an event happened: one for each sample of a batch."""
        out, layout, found = [], self.function.layout, self.marches.found
        for sample, each in enumerate([None] * len(self.start) if found is None else found.marched.occurred):
            t = np.zeros(0) if each is None else each.times[event]
            known = np.zeros((len(t), len(self.start)), bool)
            at = np.where(np.arange(len(self.start)) == sample, t[:, None], self.times[0])
            rows = self.states.at(at, known)[:, sample].detach()
            out.append(Occurrences(torch.from_numpy(t), layout.unpack(rows)))
        return tuple(out) if layout.batched else out[0]

    def _certified(self) -> np.ndarray:
        found = self.marches.found
        return np.full((3, *self.times.shape), np.nan) if found is None else found.certified

    def _notes(self) -> tuple[str, ...]:
        counts = self.marches.counts
        said, again = f"steps of an embedded pair of order {self.pair.order}", int(counts.max()) - 1
        if not again:
            return (said,)
        which = f"{int((counts > 1).sum())} samples were" if self.function.layout.batched else "it was"
        return said, f"errors grow: {which} solved again, up to {again} times, to a sharper tolerance"


def _host(value: float | Tensor) -> np.ndarray:
    return np.asarray(value.cpu() if isinstance(value, Tensor) else value, float)


def _requires(given: Given) -> bool:
    """Whether anything that is given requires gradients."""
    leaves = pytree.tree_leaves((given.start, given.ts, given.args, given.reach))
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)
