"""Samples that step side by side, each with lengths of its own, from their starts to their ends."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from picardsolve.embedded.allowed import Allowed
from picardsolve.embedded.control import Control, first_length, trial_length
from picardsolve.embedded.failures import Failure, OutOfSteps, Stiff, Stuck
from picardsolve.embedded.lanes import Lanes, Limits
from picardsolve.embedded.pair import Coefficients, Pair
from picardsolve.embedded.path import Recorder
from picardsolve.embedded.rows import Asks, Rows
from picardsolve.embedded.stages import Stages
from picardsolve.embedded.watch import Watch
from picardsolve.problem.index import on_device

_FULL = 0.75  # of the rows have to be of samples that are not over
_STIFF = 3.0  # -rate times length, from which on stability may hold steps down
_STEPS_IN_A_ROW = 15  # that look stiff
_TOO_MANY = 3000  # steps that are predicted: a stiff equation is not solved by so many
_PREDICTED_EVERY = 8  # tries


@dataclass
class March:
    """One pass over the spans of some samples.

    Attributes:
        pair: the method.
        control: of its steps.
        limits: of the user's.
        allowed: error of a step.
        coefficients: of the method, on the device.
        make_stages: after the first call makes what combines slopes.
        lanes: the samples.
        path: gets the nodes.
        failures: gets why samples ended before their time, by number.
        time_dtype: in which the drift gets times.
        watch: sees terminal events; None: there are none to be seen.
        stopped: samples that ended at events.
    """

    pair: Pair
    control: Control
    limits: Limits
    allowed: Allowed
    coefficients: Coefficients
    make_stages: Callable[[Coefficients], Stages]
    lanes: Lanes
    path: Recorder
    time_dtype: torch.dtype
    failures: dict[int, Failure]
    watch: Watch | None
    stopped: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    stages: Stages = field(init=False)
    _some: np.ndarray | None = None  # the samples of a part of the rows
    _tries: int = 0
    _long: np.ndarray | None = None  # which samples will take too many steps; None: none will

    def calls(self, y: Tensor) -> Asks[None]:
        """Step from states ``(R, D)``: asks for the drift at rows."""
        lanes, slope = self.lanes, y
        slope = yield Rows(self._times(lanes.t, y), y, lanes.sample, recorded=True)
        self.stages = self.make_stages(self.coefficients)
        self.path.add(lanes.sample, lanes.t, lanes.t, (y, slope, torch.zeros_like(y)), ~lanes.over, begins=True)
        self._look_for_ends(lanes.t, y, ~lanes.over)
        yield from self._first_lengths(y, slope)
        while not self.lanes.over.all():
            y, slope = yield from self._step(*self._compacted(y, slope))

    def _times(self, t: np.ndarray, like: Tensor) -> Tensor:
        return torch.from_numpy(t).to(like.device, self.time_dtype, non_blocking=True)

    def _beside(self, t: np.ndarray, towards: np.ndarray) -> np.ndarray:
        """The next times that the drift can tell apart from these."""
        kind = np.float64 if self.time_dtype == torch.float64 else np.float32
        return np.nextafter(t.astype(kind), towards.astype(kind)).astype(float)

    def _first_lengths(self, y: Tensor, slope: Tensor) -> Asks[None]:
        """Choose the first lengths; costs a call, with one row more, which shows a drift that mixes its rows."""
        lanes = self.lanes
        span = np.abs(lanes.end - lanes.begin)
        if self.limits.first is not None:
            lanes.h = np.minimum(self.limits.first, span)
            return
        y, slope = y.detach(), slope.detach()
        allowed = self.allowed(y.abs())
        size, speed = _sizes(torch.stack([y, slope]) / allowed)
        trial = trial_length(size, speed, span)
        moved = y + self._lengths(trial * lanes.sign, y) * slope
        t = np.append(lanes.t + trial * lanes.sign, lanes.t[:1])
        other = yield Rows(self._times(t, y), torch.cat([moved, y[:1]]), np.append(lanes.sample, lanes.sample[:1]))
        (bend,) = _sizes(((other[:-1] - slope) / allowed)[None])
        lanes.h = np.minimum(first_length(size, speed, bend / trial, trial, self.pair.order), span)

    def _lengths(self, h: np.ndarray, like: Tensor) -> Tensor:
        return torch.from_numpy(h[:, None]).to(like.device, like.dtype, non_blocking=True)

    def _compacted(self, y: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Without the samples that are over, once they are many."""
        over = self.lanes.over
        if np.count_nonzero(over) < (1 - _FULL) * len(over):
            return y, slope
        rows, self._long = np.flatnonzero(~over), None
        index = on_device(rows, y.device)
        self.lanes, self.allowed = self.lanes.kept(rows), self.allowed.at(index)
        return y.index_select(0, index), slope.index_select(0, index)

    def _step(self, y: Tensor, slope: Tensor) -> Asks[tuple[Tensor, Tensor]]:
        """Try a step of every sample."""
        lanes = self.lanes
        reached, jumps = self.limits.targets(lanes)
        h = reached - lanes.t
        times = lanes.t + self._places * h
        times[-2:] = reached if jumps is None else np.where(jumps, self._beside(reached, lanes.t), reached)
        new, after = yield from self._stepped(times, h, y, slope)
        error, local = self._measured(y, new)
        accepted = self._decided(np.abs(h), reached, error)
        whole = accepted.all()
        if not whole:
            if not accepted.any():
                return y, slope
            if self.stages.recorded and not np.isfinite(error).all():
                new, after = yield from self._alone(accepted, times, h, y, slope)
        self.path.add(lanes.sample, reached, times[-1], (new, after, local), accepted)
        self._look_for_ends(reached, new, accepted)
        if not whole:
            rows = on_device(accepted, y.device)[:, None]
            new, after = torch.where(rows, new, y), torch.where(rows, after, slope)
        if jumps is not None and (accepted & jumps).any():
            after = yield from self._crossed(accepted & jumps, new, after)
        return new, after

    def _look_for_ends(self, t: np.ndarray, y: Tensor, nodes: np.ndarray) -> None:
        """Stop the samples whose terminal events have happened; where ``nodes``, there are new ones."""
        over = None if self.watch is None else self.watch.add(self.lanes.sample, t, y, nodes)
        if over is not None:
            ended = over[self.lanes.sample] & ~self.lanes.over
            self.lanes.over |= ended
            self.stopped = np.concatenate([self.stopped, self.lanes.sample[ended]])

    def _crossed(self, crossed: np.ndarray, y: Tensor, slope: Tensor) -> Asks[Tensor]:
        """The slopes, of some samples beyond the jump of the drift that their steps ended at."""
        lanes = self.lanes
        t = self._beside(lanes.t, lanes.end)
        beyond = yield Rows(self._times(t, y), y, lanes.sample, recorded=True)
        slope = torch.where(on_device(crossed, y.device)[:, None], beyond, slope)
        self.path.add(lanes.sample, lanes.t.copy(), t, (y, slope, torch.zeros_like(y)), crossed, begins=True)
        return slope

    @cached_property
    def _places(self) -> np.ndarray:
        return np.array(self.pair.c)[:, None]

    def _stepped(self, times: np.ndarray, h: np.ndarray, y: Tensor, slope: Tensor) -> Asks[tuple[Tensor, Tensor]]:
        """The states after steps with stages at times ``(s, R)``, and their slopes."""
        at, length = self._sent(times, h, y)
        self.stages.begin(y, slope, length)
        new = after = y
        for i in range(1, self.pair.stages):
            new = self.stages.state(i)
            after = yield Rows(at[i], new, self.lanes.sample if self._some is None else self._some, recorded=True)
            self.stages.put(i, after)
        return new, after

    def _alone(
        self, accepted: np.ndarray, times: np.ndarray, h: np.ndarray, y: Tensor, slope: Tensor
    ) -> Asks[tuple[Tensor, Tensor]]:
        """The accepted steps once more by themselves: a graph through what is not finite would have no gradients."""
        rows = np.flatnonzero(accepted)
        index = on_device(rows, y.device)
        self._some = self.lanes.sample[rows]
        part = y.index_select(0, index), slope.index_select(0, index)
        new, after = yield from self._stepped(times[:, rows], h[rows], *part)
        self._some = None
        return y.index_copy(0, index, new), slope.index_copy(0, index, after)

    def _sent(self, times: np.ndarray, h: np.ndarray, like: Tensor) -> tuple[Tensor, Tensor]:
        """Times of the stages ``(s, R)`` and lengths ``(R, 1)``, in one copy where they have one dtype."""
        if self.time_dtype == like.dtype:
            both = torch.from_numpy(np.concatenate([times, h[None]])).to(like.device, like.dtype, non_blocking=True)
            return both[:-1], both[-1].unsqueeze(1)
        return self._times(times, like), self._lengths(h, like)

    @torch.no_grad()
    def _measured(self, y: Tensor, new: Tensor) -> tuple[np.ndarray, Tensor]:
        """Errors ``(R,)`` in what is allowed, and signed local errors ``(R, D)``: one wait."""
        looks = self.stages.combined(self.coefficients.errors)
        allowed = self.allowed(torch.maximum(y.detach().abs(), new.detach().abs()))
        errors = torch.linalg.vector_norm(looks / allowed, torch.inf, -1).cpu().numpy().astype(float)
        if self._tries % _PREDICTED_EVERY == 0:
            long = self.lanes.predicted > _TOO_MANY
            self._long = long if long.any() else None
        self._tries += 1
        if self._long is not None:
            self._look_for_stiffness(allowed)
        if len(errors) == 1:
            return errors[0], looks[0]
        with np.errstate(all="ignore"):
            part = errors[0] / np.hypot(errors[0], 0.1 * errors[1])
        return errors[0] * part, looks[0] * self._lengths(np.nan_to_num(part), y)

    def _look_for_stiffness(self, allowed: Tensor) -> None:
        """Count the steps in a row whose lengths stability may hold down."""
        assert self._long is not None
        apart, along = self.stages.combined(self.coefficients.twins) / allowed
        square, product = torch.stack([apart * apart, along * apart]).sum(-1).cpu().numpy().astype(float)
        with np.errstate(all="ignore"):
            rate = np.where(square > 0, product / square, 0.0)
        self.lanes.stiff = np.where(self._long & (rate < -_STIFF), self.lanes.stiff + 1, 0)

    def _decided(self, h: np.ndarray, reached: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Which steps are accepted; the lanes go on."""
        lanes, limits = self.lanes, self.limits
        accepted = error <= 1  # not where it is not finite
        if limits.least > 0:
            rounding = 4 * np.finfo(float).eps * np.abs(reached)  # of the length, a difference of times
            accepted |= np.isfinite(error) & (h <= limits.least + rounding)
        accepted &= ~lanes.over
        lanes.h = h * self.control.factor(error, lanes.before, lanes.again)
        if accepted.all():
            lanes.before, lanes.t = np.maximum(error, 1e-4), reached
        else:
            lanes.before = np.where(accepted, np.maximum(error, 1e-4), lanes.before)
            lanes.t = np.where(accepted, reached, lanes.t)
        lanes.again = ~accepted
        lanes.steps = lanes.steps + accepted
        lanes.over = lanes.over | (lanes.t == lanes.end)
        self._fail(accepted, error)
        return accepted

    def _fail(self, accepted: np.ndarray, error: np.ndarray) -> None:
        """Give up samples that do not get on."""
        lanes = self.lanes
        if np.isfinite(self.limits.steps):
            for row in np.flatnonzero(~lanes.over & (lanes.steps >= self.limits.steps)).tolist():
                self._give_up(row, OutOfSteps())
        if self._long is not None:
            for row in np.flatnonzero(~lanes.over & (lanes.stiff >= _STEPS_IN_A_ROW)).tolist():
                self._give_up(row, Stiff(float(lanes.predicted[row])))
        if not accepted.all():
            for row in np.flatnonzero(~accepted & ~lanes.over & (lanes.h < lanes.shortest)).tolist():
                self._give_up(row, Stuck(float(lanes.t[row]), bool(np.isfinite(error[row]))))

    def _give_up(self, row: int, failure: Failure) -> None:
        self.lanes.over[row] = True
        self.failures[int(self.lanes.sample[row])] = failure


def _sizes(scaled: Tensor) -> np.ndarray:
    """The largest components of ``(k, R, D)``, on the host: ``(k, R)``."""
    return scaled.abs().amax(-1).cpu().numpy().astype(float)
