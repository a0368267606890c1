"""A whole solve by steps of an embedded pair: marches, the errors at their ends, sharper marches where they are due."""

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
from picardsolve.embedded.events import Occurred, occurred
from picardsolve.embedded.failures import Failure, OutOfRounds, Unreachable
from picardsolve.embedded.lanes import Lanes, Limits
from picardsolve.embedded.march import March
from picardsolve.embedded.pair import Coefficients, Pair
from picardsolve.embedded.path import Recorder, Steps
from picardsolve.embedded.propagation import Propagated, propagated
from picardsolve.embedded.rows import Asks, Rows
from picardsolve.embedded.stages import Buffered, Recorded, Stages
from picardsolve.integrators.adaptive import AdaptiveMachine, Given
from picardsolve.problem.clock import Clock
from picardsolve.problem.events import Event, EventFunction
from picardsolve.problem.index import on_device
from picardsolve.problem.parameters import recordable
from picardsolve.problem.problem import Problem
from picardsolve.problem.reach import check_reach
from picardsolve.problem.row_function import RowFunction
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.solution import Occurrences, Result, Solution, SolveError, Stats

_MARCHES = 5  # at most
_ENOUGH = 1.0  # tolerances that the estimated error may be
_AIM = 0.4  # tolerances that another march aims at
_SHARPER = 1e-2  # times the tolerance of a step, at most, from one march to the next
_FINEST = 4.0  # units of rounding: the least error of a step
_HOPELESS = 10.0  # tolerances


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
        path: of the present march.
        steps: of all samples, once a march is over.
        errors: estimated errors at all nodes, what is allowed there, and rounding: of the component that is furthest
            off, ``(3, M)``.
        growth: ``(B,)``.
        failures: why samples ended before their time, by number.
        marches: ``(B,)`` how often every sample was marched.
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
    path: Recorder = field(init=False)
    steps: Steps | None = None
    errors: np.ndarray = field(default_factory=lambda: np.zeros((3, 0)))
    growth: np.ndarray = field(init=False)
    failures: dict[int, Failure] = field(default_factory=dict)
    marches: np.ndarray = field(init=False)

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
        samples = len(self.start)
        times = self.ts.numpy() if self.ts.dim() > 1 else self.ts.numpy()[:, None]
        self.times = np.broadcast_to(times, (len(times), samples))
        self.sign = np.where(self.times[-1] > self.times[0], 1.0, -1.0)
        self.growth, self.marches = np.full(samples, np.nan), np.zeros(samples, np.int64)
        self.between = np.zeros(self.times.shape)
        self.occurred: list[Occurred | None] = [None] * samples
        self._calls, self._rows = self._solving(), None
        self.tell(None)

    @property
    def done(self) -> bool:
        """Whether every sample is over."""
        return self._rows is None

    @property
    def percent(self) -> int:
        """How far the slowest sample has come."""
        lanes = self._march.lanes
        parts = (np.abs(lanes.t - lanes.begin) / np.abs(lanes.end - lanes.begin))[~lanes.over]
        return int(100 * parts.min(initial=1.0))

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

    def _solving(self) -> Asks[None]:
        """March; and march samples again, whose errors are beyond the tolerance."""
        samples = len(self.start)
        scale = np.full(samples, self.pair.first)
        pending, before = np.arange(samples), None
        coefficients = Coefficients.of(self.pair, self.start)
        start = yield from self._shifted(self.start)

        def make(coefficients: Coefficients) -> Stages:
            return (Recorded if self.recording else Buffered)(coefficients)

        while len(pending):
            self.marches[pending] += 1
            everyone = len(pending) == samples
            index = on_device(pending, self.start.device)
            begin = start if everyone else start.index_select(0, index)
            factor = self.pair.first if before is None else self._column(scale[pending])
            allowed = (self.allowed if everyone else self.allowed.at(index)).scaled(factor)
            lanes = Lanes.of(pending, self.times[0, pending], self.times[-1, pending])
            dtype, self.path = self.function.clock.ladder[0], Recorder(samples)
            march = self._march = March(
                self.pair,
                self.control,
                self.limits,
                allowed,
                coefficients,
                make,
                lanes,
                self.path,
                dtype,
                self.failures,
            )
            yield from march.calls(begin)
            pending, scale = yield from self._judged(pending, scale)
            before = self.steps

    def _shifted(self, start: Tensor) -> Asks[Tensor]:
        """The start, which moves against the drift where its time does: the values are the same, gradients are not."""
        times = self._given_times
        if times is None:
            return start
        t = torch.from_numpy(self.times[0].copy())
        slope = yield Rows(t, start, np.arange(len(start)), recorded=True)
        first = times[0] - times[0].detach()
        return start - slope * first.to(start.device, start.dtype).reshape(-1, 1)

    @property
    def _given_times(self) -> Tensor | None:
        """The times with their graph, on the host; None where they have none."""
        ts = None if self.given is None else self.given.ts
        wanted = isinstance(ts, Tensor) and ts.requires_grad
        return recordable(ts).to("cpu", torch.float64) if isinstance(ts, Tensor) and wanted else None

    def _with_times(self, path: Tensor, saved: Tensor) -> Tensor:
        """States ``(T, B, D)`` at times, which move along the drift where their times do."""
        times = self._given_times
        if times is None:
            return path
        times = times[-len(saved) :]
        sample = np.tile(np.arange(path.shape[1]), len(path))
        t = torch.from_numpy(self.times[-len(saved) :].ravel().copy())
        slope = self.function(t, path.flatten(0, 1).nan_to_num(0), sample).view(path.shape)
        moved = (times - times.detach()).to(path.device, path.dtype)
        return path + slope * (moved[..., None] if moved.dim() > 1 else moved[:, None, None])

    def _column(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values[:, None]).to(self.start.device, self.start.dtype)

    def _judged(self, marched: np.ndarray, scale: np.ndarray) -> Asks[tuple[np.ndarray, np.ndarray]]:
        """The samples that need another march, and by what they multiply the tolerance of a step."""
        found, unit = self.path.steps(), torch.finfo(self.function.layout.dtype).eps
        plain = replace(found, y=found.y.detach(), slope=found.slope.detach())
        carried = yield from propagated(plain, self.pair, self.allowed, unit, len(self.start))
        errors, growth = _worst(carried)
        before, self.growth[marched] = self.steps, growth[marched]
        if before is None:
            self.steps, self.errors = found, errors
        else:
            missed = self._missed(before, found, marched)
            errors[0] *= missed[found.sample]
            self.steps, self.errors = before.replaced(found, marched, (self.errors, errors))
        self.between = self._between()
        self._look_for_events(marched)
        return self._again(marched, scale, unit)

    def _look_for_events(self, marched: np.ndarray) -> None:
        """Find the events of samples; a failure after a terminal one does not count."""
        assert self.steps is not None
        if not self.events:
            return
        dense, function = self._dense(self.steps), self.function
        for sample in marched.tolist():
            watched = [
                EventFunction(each, function.layout, function.clock, function.args_of(sample)) for each in self.events
            ]
            self.occurred[sample] = found = occurred(dense, sample, watched)
            if found.end is not None:
                self.failures.pop(sample, None)

    @property
    def ends(self) -> np.ndarray:
        """``(B,)`` elapsed times of terminal events, infinity where there are none."""
        ends = [np.nan if each is None or each.end is None else each.end for each in self.occurred]
        return np.where(np.isnan(ends), np.inf, self.sign * (np.array(ends) - self.times[0]))

    def _at_events(self, k: int) -> np.ndarray:
        """The largest of row k of the errors at events, ``(B,)``."""
        assert self.steps is not None
        out, dense = np.zeros(len(self.start)), self._dense(self.steps)
        for sample, each in enumerate(self.occurred):
            for t in np.concatenate(each.times) if each is not None else ():
                node = int(dense.located(np.broadcast_to(t, (1, len(out))))[sample])
                out[sample] = max(out[sample], *self.errors[k][node : node + 2])
        return out

    def _between(self) -> np.ndarray:
        """Errors ``(T, B)`` of the polynomials at the times asked for, in what is allowed: against one node less."""
        assert self.steps is not None
        full = self._dense(self.steps)
        if full.nodes(self.times)[1].all():
            return np.zeros(self.times.shape)
        unknown = np.zeros(self.times.shape, bool)
        full = full.detached()
        states = full.at(self.times, unknown)
        less = replace(full, k=full.k - 1).at(self.times, unknown)
        off = ((states - less).abs() / self.allowed(states.abs())).amax(-1)
        return off.cpu().numpy().astype(float)

    def _missed(self, before: Steps, found: Steps, marched: np.ndarray) -> np.ndarray:
        """By what factors ``(B,)`` the estimates of the march before were too small, as the new one shows."""
        unknown = np.zeros(self.times.shape, bool)
        all_new, _ = before.replaced(found, marched, (self.errors, np.zeros((3, len(found.t)))))
        old, new = (self._dense(steps).at(self.times, unknown).detach() for steps in (before, all_new))
        error = self.at_times(0)
        largest = self.allowed(torch.maximum(old.abs(), new.abs()))
        moved = ((new - old).abs() / largest).amax(-1).cpu().numpy().astype(float)
        with np.errstate(all="ignore"):
            factor = np.where(error > 0, moved / error, 1.0).max(0)
        return np.where(np.isfinite(factor), np.maximum(factor, 1.0), 1.0)

    def _again(self, marched: np.ndarray, scale: np.ndarray, unit: float) -> tuple[np.ndarray, np.ndarray]:
        stuck = [
            s for s in marched.tolist() if s in self.failures and self.failures[s].may_pass and self.marches[s] == 1
        ]
        for sample in stuck:
            del self.failures[sample]
        going = marched[[sample not in self.failures and sample not in stuck for sample in marched.tolist()]]
        with np.errstate(all="ignore"):
            counts = self.sign * (self.times - self.times[0]) <= self.ends
            worst = (np.where(counts, self.at_times(k), 0).max(0) for k in (0, 2))
            error, floor = (
                np.maximum(np.nan_to_num(w, nan=np.inf), self._at_events(k))[going]
                for w, k in zip(worst, (0, 2), strict=True)
            )
        rounding = self._rounding(unit)[going]
        factor = np.maximum(np.maximum(_AIM / np.maximum(error, 1e-300), _SHARPER), _FINEST * rounding / scale[going])
        hopeless = ((floor > _HOPELESS) & (self.marches[going] > 2)) | (
            (error > _HOPELESS) & ((factor >= 1) | (self.marches[going] >= _MARCHES))
        )
        for sample, off in zip(going[hopeless], np.maximum(error, floor)[hopeless], strict=True):
            self.failures[int(sample)] = self._unreachable(float(off))
        again = ~hopeless & (error > _ENOUGH) & (factor < 1) & (self.marches[going] < _MARCHES)
        scale = scale.copy()
        scale[going[again]] *= factor[again]
        scale[stuck] *= _SHARPER
        return np.sort(np.concatenate([going[again], np.array(stuck, np.int64)])), scale

    def _rounding(self, unit: float) -> np.ndarray:
        """The rounding of the largest states in what is allowed, ``(B,)``."""
        steps = self.steps
        assert steps is not None
        ratio = (
            unit
            * steps.y.detach().abs()
            / self.allowed.at(on_device(steps.sample, steps.y.device))(steps.y.detach().abs())
        )
        ratio = ratio.amax(-1).cpu().numpy().astype(float)
        return np.maximum.reduceat(np.nan_to_num(ratio), steps.first)

    def _unreachable(self, off: float) -> Unreachable:
        rtol, atol = (float(np.max(_host(value))) * off for value in (self.allowed.rtol, self.allowed.atol))
        return Unreachable(rtol if rtol < 1 and np.isfinite(off) else None, atol)

    def at_times(self, k: int) -> np.ndarray:
        """Row k of the errors at the times asked for: the larger of both ends of the steps there, ``(T, B)``."""
        assert self.steps is not None
        node = self._dense(self.steps).located(self.times)
        ends = np.minimum(node + 1, len(self.steps.t) - 1)
        value = np.maximum(self.errors[k][node], self.errors[k][ends]).reshape(self.times.shape)
        return np.where(self.times == self.times[0], 0.0, value + self.between) if k == 0 else value

    def _dense(self, steps: Steps) -> DenseSteps:
        last = steps.t[steps.first + steps.count - 1]
        reached = self.sign * (last - self.times[0])
        return DenseSteps(steps, self.function.layout, self.pair.nodes, self.times[0], self.sign, reached)

    @cached_property
    def states(self) -> DenseSteps:
        """The states at any times, once it is over."""
        dense = self._dense(self.path.steps() if self.steps is None else self.steps)
        return replace(dense, reached=np.minimum(dense.reached, self.ends))

    def solution(self, rounds: int, throw: bool) -> Solution:
        """What was found, after so many rounds.

        Raises:
            SolveError: a sample failed, and ``throw`` is true; it carries the solution.
        """
        layout, states = self.function.layout, self.states
        if not self.done:
            self.failures.update((int(s), OutOfRounds()) for s in self._march.lanes.sample[~self._march.lanes.over])
        failed = min(self.failures, default=None)
        result = Result.terminated if np.isfinite(self.ends).any() else Result.solved
        result = result if failed is None else self.failures[failed].result
        saved = self.ts[1:] if self.only_last else self.ts
        path = self._with_times(states.states(saved), saved)
        steps = int(states.steps.count.max()) - 1
        solution = Solution(
            saved,
            layout.unpack_path(path),
            result,
            Stats(steps, rounds, self.function.evaluations, self.function.calls, 1),
            notes=self._notes(),
            events=tuple(self._occurrences(e) for e in range(len(self.events))),
            dense=states,
            _certified=partial(EmbeddedCertificate.read, self._certified(), self.growth, layout.batched),
        )
        if throw and failed is not None:
            time = float(self.times[0, failed] + self.sign[failed] * states.reached[failed])
            which = f"Sample {failed}: " if layout.batched else ""
            raise SolveError(f"{which}{self.failures[failed].explain(time)} {result.value}", solution, time=time)
        return solution

    def _occurrences(self, event: int) -> Occurrences | tuple[Occurrences, ...]:
        """When an event happened: one for each sample of a batch."""
        out, layout = [], self.function.layout
        for sample, each in enumerate(self.occurred):
            t = np.zeros(0) if each is None else each.times[event]
            known = np.zeros((len(t), len(self.start)), bool)
            at = np.where(np.arange(len(self.start)) == sample, t[:, None], self.times[0])
            rows = self.states.at(at, known)[:, sample].detach()
            out.append(Occurrences(torch.from_numpy(t), layout.unpack(rows)))
        return tuple(out) if layout.batched else out[0]

    def _certified(self) -> np.ndarray:
        if self.steps is None:
            return np.full((3, *self.times.shape), np.nan)
        error, allowed, floor = (self.at_times(k) for k in range(3))
        unknown = np.isnan(self.states.elapsed(self.ts))
        return np.stack([np.where(unknown, np.nan, error * allowed), allowed, floor * allowed])

    def _notes(self) -> tuple[str, ...]:
        said, again = f"steps of an embedded pair of order {self.pair.order}", int(self.marches.max()) - 1
        if not again:
            return (said,)
        which = f"{int((self.marches > 1).sum())} samples were" if self.function.layout.batched else "it was"
        return said, f"errors grow: {which} solved again, up to {again} times, to a sharper tolerance"


def _worst(carried: Propagated) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the component that is furthest off, ``(3, M)``, and growth, on the host: one wait."""
    error, at = carried.error.nan_to_num(torch.inf).max(-1, keepdim=True)
    parts = torch.cat([error, carried.allowed.gather(1, at), carried.floor.gather(1, at)], 1).double()
    return parts.T.cpu().numpy().copy(), carried.growth.cpu().numpy().astype(float)


def _host(value: float | Tensor) -> np.ndarray:
    return np.asarray(value.cpu() if isinstance(value, Tensor) else value, float)


def _requires(given: Given) -> bool:
    """Whether anything that is given requires gradients."""
    leaves = pytree.tree_leaves((given.start, given.ts, given.args, given.reach))
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)
