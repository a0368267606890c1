"""The marches of a solve: all samples once, and again those whose errors at the times asked for are too large."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from picardsolve.embedded.control import Control
from picardsolve.embedded.events import Occurred, occurred
from picardsolve.embedded.failures import Failure, Unreachable
from picardsolve.embedded.found import Asked, Found, Marched
from picardsolve.embedded.halving import halved
from picardsolve.embedded.lanes import Lanes, Limits
from picardsolve.embedded.local_errors import local_errors
from picardsolve.embedded.march import March
from picardsolve.embedded.pair import Coefficients, Pair
from picardsolve.embedded.path import Recorder, Steps
from picardsolve.embedded.propagation import Linearised, linearised
from picardsolve.embedded.rows import Asks
from picardsolve.embedded.stages import Stages
from picardsolve.embedded.watch import Watch
from picardsolve.integrators.adaptive import ENOUGH
from picardsolve.problem.events import Event, EventFunction
from picardsolve.problem.index import on_device
from picardsolve.problem.row_function import RowFunction

_MARCHES = 5  # at most
_AIM = 0.4  # tolerances that another march aims at
_SHARPER = 1e-2  # times the tolerance of a step, at most, from one march to the next
_FINEST = 4.0  # units of rounding: the least error of a step
_HOPELESS = 10.0  # tolerances
_DOUBTED = 100.0  # tolerances up to which an error may be a wrong estimate, so that its steps are halved
# Errors at the end may be many times what local errors are carried on to, where they grow or cancel. Chosen on
# pendulums, orbits, Van der Pol and a Brusselator, 96 samples each: of 3456 solves 2 are beyond the tolerance, 1.15 at
# most, for 15 % more calls; without, 169 are, 7.5 at most.
_CARRIED = 8.0  # local errors as they were estimated
_HALVED = 6.0  # those that steps of half the length show
_AT_ONCE = 2**22  # numbers in the states of steps that are halved together


@dataclass
class Marches:
    """All marches of a solve.

    Attributes:
        pair: the method.
        control: of its steps.
        limits: of the user's.
        function: the drift.
        asked: what the solve is asked for.
        events: to be found.
        make_stages: after the first call makes what combines slopes.
        march: the present one.
        found: by those that are over; None before the first one is.
        growth: ``(B,)`` the factor by which an error at the start has grown at the end; NaN where not known.
        failures: why samples ended before their time, by number.
        counts: ``(B,)`` how often every sample was marched.
    """

    pair: Pair
    control: Control
    limits: Limits
    function: RowFunction
    asked: Asked
    events: Sequence[Event]
    make_stages: Callable[[Coefficients], Stages]
    march: March = field(init=False)
    found: Found | None = None
    growth: np.ndarray = field(init=False)
    failures: dict[int, Failure] = field(default_factory=dict)
    counts: np.ndarray = field(init=False)

    def __post_init__(self):
        samples = self.asked.times.shape[1]
        self.growth, self.counts = np.full(samples, np.nan), np.zeros(samples, np.int64)
        self._scale = np.full(samples, self.pair.first)  # tolerances that a step may be off by
        self._may_stop = True  # at events

    def calls(self, start: Tensor) -> Asks[None]:
        """March from states ``(B, D)``, as often as it takes; asks for the drift at rows."""
        pending, coefficients = np.arange(len(start)), Coefficients.of(self.pair, start)
        while len(pending):
            self.counts[pending] += 1
            everyone = len(pending) == len(start)
            begin = start if everyone else start.index_select(0, on_device(pending, start.device))
            self.march = self._prepared(pending, begin, coefficients)
            yield from self.march.calls(begin)
            yield from self._judge(pending, coefficients)
            pending = self._again(pending)

    def _prepared(self, samples: np.ndarray, begin: Tensor, coefficients: Coefficients) -> March:
        """A march of some samples, from states ``(R, D)``."""
        times, every, scale = self.asked.times, len(self._scale), self._scale[samples]
        one = (scale == scale[0]).all()
        factor = float(scale[0]) if one else torch.from_numpy(scale[:, None]).to(begin.device, begin.dtype)
        allowed = self.asked.allowed
        allowed = allowed if len(samples) == every else allowed.at(on_device(samples, begin.device))
        watch = Watch.of(self.events, self.function) if self._may_stop else None
        return March(
            self.pair,
            self.control,
            self.limits,
            allowed.scaled(factor),
            coefficients,
            self.make_stages,
            Lanes.of(samples, times[0, samples], times[-1, samples]),
            Recorder(every),
            self.function.clock.ladder[0],
            self.failures,
            watch,
        )

    def _judge(self, marched: np.ndarray, coefficients: Coefficients) -> Asks[None]:
        """Find the errors and the events of samples that were marched."""
        new = self.march.path.steps()
        plain = new.detached()
        linear = yield from linearised(plain, self.pair, self.asked.allowed, self._unit, len(self._scale))
        local = _CARRIED * local_errors(plain, self.pair, linear.own)
        errors, growth = linear.worst(local)
        merge = self._merging(new, marched)
        found = merge(errors)
        doubted = self._doubted(found, marched)
        if len(doubted):
            part, node, step = linear.part(doubted)
            own = local.index_select(0, on_device(step, local.device))
            errors[:, node], _ = yield from self._looked_at_again(part, own, coefficients)
            found = merge(errors)
        self.found = found
        self.growth[marched] = growth[marched]

    def _looked_at_again(
        self, linear: Linearised, local: Tensor, coefficients: Coefficients
    ) -> Asks[tuple[np.ndarray, np.ndarray]]:
        """The errors of samples by halved steps, as `Linearised.worst` has them; ``local`` as they were estimated."""
        steps, dtype, fine = linear.steps, self.march.time_dtype, []
        every, most = None if linear.flow is not None else linear.directions(local), max(_AT_ONCE // local.shape[1], 1)
        for first in range(0, len(local), most):
            some = np.arange(first, min(first + most, len(local)))
            beside = None if every is None else every[first : first + most]
            errors, moved = yield from halved(steps, some, self.pair, coefficients, beside, dtype)
            fine.append(_HALVED * errors)
            if beside is not None and moved is not None:
                linear = linear.growing(some, beside, moved)
        return linear.worst(torch.cat(fine))

    @property
    def _unit(self) -> float:
        return torch.finfo(self.function.layout.dtype).eps

    def _merging(self, new: Steps, marched: np.ndarray) -> Callable[[np.ndarray], Found]:
        """Put the steps of samples in the place of older ones; returns what does so with their errors ``(3, M)``."""
        before = self.found
        if before is None:
            path = Marched(self.asked, new, self._events(new, marched))
            return partial(Found, path)
        steps, order = before.marched.steps.replaced(new, marched)
        path = Marched(self.asked, steps, self._events(steps, marched))
        missed = np.ones((3, len(new.t)))
        missed[0] = before.missed(path)[new.sample]
        return lambda errors: Found(path, np.concatenate([before.errors, errors * missed], 1)[:, order])

    def _doubted(self, found: Found, marched: np.ndarray) -> np.ndarray:
        """The samples whose errors are too large, but not by much."""
        error = found.worst[0, marched]
        doubted = marched[(error > ENOUGH) & (error <= _DOUBTED)]
        return doubted[[sample not in self.failures for sample in doubted.tolist()]]

    def _events(self, steps: Steps, marched: np.ndarray) -> Sequence[Occurred | None]:
        """The events of samples, of some anew; a failure after a terminal one does not count."""
        happened: list[Occurred | None] = (
            [None] * len(self._scale) if self.found is None else [*self.found.marched.occurred]
        )
        if not self.events:
            return happened
        dense, function = self.asked.dense(steps), self.function
        for sample in marched.tolist():
            args = function.args_of(sample)
            watched = [EventFunction(each, function.layout, function.clock, args) for each in self.events]
            happened[sample] = each = occurred(dense, sample, watched)
            if each.end is not None:
                self.failures.pop(sample, None)
        return happened

    def _again(self, marched: np.ndarray) -> np.ndarray:
        """The samples that need another march."""
        failures, found = self.failures, self.found
        assert found is not None
        first = [s for s in marched.tolist() if s in failures and failures[s].may_pass and self.counts[s] == 1]
        stuck = np.array(first, np.int64)
        for sample in first:
            del failures[sample]
        self._scale[stuck] *= _SHARPER
        early = self.march.stopped[~np.isfinite(found.marched.ends[self.march.stopped])]
        if len(early):  # at what only looked like an event
            self._may_stop = False
        going = marched[[sample not in failures for sample in marched.tolist()]]
        going = going[~np.isin(going, np.concatenate([stuck, early]))]
        return np.sort(np.concatenate([self._missing(going), stuck, early]))

    def _missing(self, going: np.ndarray) -> np.ndarray:
        """The samples of these that miss the tolerance, and may not the next time; the tolerance of their steps."""
        assert self.found is not None
        error, _, floor = self.found.worst[:, going]
        if not ((error > ENOUGH) | (floor > _HOPELESS)).any():
            return going[:0]
        scale, counts = self._scale[going], self.counts[going]
        rounding = self.found.marched.rounding(self._unit)[going]
        with np.errstate(all="ignore"):
            factor = np.maximum(np.maximum(_AIM / np.maximum(error, 1e-300), _SHARPER), _FINEST * rounding / scale)
        beyond = (error > _HOPELESS) & ((factor >= 1) | (counts >= _MARCHES))
        hopeless = beyond | ((floor > _HOPELESS) & (counts > 2))
        for sample, off in zip(going[hopeless], np.maximum(error, floor)[hopeless], strict=True):
            self.failures[int(sample)] = self._unreachable(float(off))
        again = ~hopeless & (error > ENOUGH) & (factor < 1) & (counts < _MARCHES)
        self._scale[going[again]] *= factor[again]
        return going[again]

    def _unreachable(self, off: float) -> Unreachable:
        rtol, atol = (float(torch.as_tensor(x).max()) * off for x in (self.asked.allowed.rtol, self.asked.allowed.atol))
        return Unreachable(rtol if rtol < 1 and np.isfinite(off) else None, atol)
