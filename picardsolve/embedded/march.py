"""Samples that step side by side, each with lengths of its own, from their starts to their ends."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from picardsolve.embedded.allowed import Allowed
from picardsolve.embedded.control import Control, first_length, trial_length
from picardsolve.embedded.failures import Failure, OutOfSteps, Stiff, Stuck
from picardsolve.embedded.lanes import Lanes, Limits
from picardsolve.embedded.pair import Pair
from picardsolve.embedded.path import Recorder
from picardsolve.embedded.rows import Asks, Rows
from picardsolve.embedded.stages import Stages
from picardsolve.problem.index import on_device

_FULL = 0.75  # of the rows have to be of samples that are not over
_STIFF = 3.0  # -rate times length, from which on stability may hold steps down
_STEPS_IN_A_ROW = 15  # that look stiff
_TOO_MANY = 3000  # steps that are predicted: a stiff equation is not solved by so many


@dataclass
class March:
    """One pass over the spans of some samples.

    Attributes:
        pair: the method.
        control: of its steps.
        limits: of the user's.
        allowed: error of a step.
        make_stages: after the first call makes what combines slopes.
        lanes: the samples.
        path: gets the nodes.
        failures: gets why samples ended before their time, by number.
        time_dtype: in which the drift gets times.
    """

    pair: Pair
    control: Control
    limits: Limits
    allowed: Allowed
    make_stages: Callable[[], Stages]
    lanes: Lanes
    path: Recorder
    time_dtype: torch.dtype
    failures: dict[int, Failure] = field(default_factory=dict)
    stages: Stages = field(init=False)
    _some: np.ndarray | None = None  # the samples of a part of the rows

    def calls(self, y: Tensor) -> Asks[None]:
        """Step from states ``(R, D)``: asks for the drift at rows."""
        lanes, slope = self.lanes, y
        slope = yield Rows(self._times(lanes.t, y), y, lanes.sample, recorded=True)
        self.stages = self.make_stages()
        self.path.add(lanes.sample, lanes.t, lanes.t, (y, slope, torch.zeros_like(y)), ~lanes.over, begins=True)
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
        going = ~self.lanes.over
        if going.sum() > _FULL * len(going):
            return y, slope
        rows = np.flatnonzero(going)
        index = on_device(rows, y.device)
        self.lanes, self.allowed = self.lanes.kept(rows), self.allowed.at(index)
        return y.index_select(0, index), slope.index_select(0, index)

    def _step(self, y: Tensor, slope: Tensor) -> Asks[tuple[Tensor, Tensor]]:
        """Try a step of every sample."""
        lanes, pair = self.lanes, self.pair
        reached, jumps = self._targets()
        h = reached - lanes.t
        times = lanes.t + np.array(pair.c)[:, None] * h
        times[-2:] = np.where(jumps, self._beside(reached, lanes.t), reached)
        new, after = yield from self._stepped(times, h, y, slope)
        error, rate, local = self._measured(y, new)
        accepted = self._decided(np.abs(h), reached, error, rate)
        if self.stages.recorded and accepted.any() and not np.isfinite(error).all():
            new, after = yield from self._alone(accepted, times, h, y, slope)
        if not accepted.any():
            return y, slope
        self.path.add(lanes.sample, reached, times[-1], (new, after, local), accepted)
        crossed = accepted & jumps
        y, slope = _where(accepted, new, y), _where(accepted, after, slope)
        if crossed.any():
            t = self._beside(lanes.t, lanes.end)
            beyond = yield Rows(self._times(t, y), y, lanes.sample, recorded=True)
            slope = _where(crossed, beyond, slope)
            self.path.add(lanes.sample, lanes.t.copy(), t, (y, slope, torch.zeros_like(y)), crossed, begins=True)
        return y, slope

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

    def _targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Where steps end, and whether the drift jumps there."""
        lanes, limits = self.lanes, self.limits
        h = np.clip(lanes.h, limits.least, limits.most)
        stop, jumps = limits.next_stop(lanes.t, lanes.sign, lanes.end)
        left = np.abs(stop - lanes.t)
        reached = np.where(1.01 * h >= left, stop, lanes.t + lanes.sign * np.where(2 * h > left, left / 2, h))
        reached = np.where(lanes.over, lanes.t, reached)
        return reached, jumps & (reached == stop)

    def _sent(self, times: np.ndarray, h: np.ndarray, like: Tensor) -> tuple[Tensor, Tensor]:
        """Times of the stages ``(s, R)`` and lengths ``(R, 1)``, in one copy where they have one dtype."""
        if self.time_dtype == like.dtype:
            both = torch.from_numpy(np.concatenate([times, h[None]])).to(like.device, like.dtype, non_blocking=True)
            return both[:-1], both[-1].unsqueeze(1)
        return self._times(times, like), self._lengths(h, like)

    @torch.no_grad()
    def _measured(self, y: Tensor, new: Tensor) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """Errors ``(R,)`` in what is allowed, rates times lengths ``(R,)``, and signed local errors ``(R, D)``.

        One wait.
        """
        looks = self.stages.looks()
        scaled = looks / self.allowed(torch.maximum(y.detach().abs(), new.detach().abs()))
        sizes = scaled[:-2].abs().amax(-1)
        products = (scaled[-2:] * scaled[-2:-1]).sum(-1)
        found = torch.cat([sizes, products]).cpu().numpy().astype(float)
        *errors, square, along = found
        with np.errstate(all="ignore"):
            part = 1.0 if len(errors) == 1 else errors[0] / np.hypot(errors[0], 0.1 * errors[1])
            rate = np.where(square > 0, along / square, 0.0)
        local = looks[0].clone() if len(errors) == 1 else looks[0] * self._lengths(np.nan_to_num(part), y)
        return errors[0] * part, rate, local

    def _decided(self, h: np.ndarray, reached: np.ndarray, error: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """Which steps are accepted; the lanes go on."""
        lanes, limits = self.lanes, self.limits
        finite = np.isfinite(error)
        accepted = ~lanes.over & finite & ((error <= 1) | (h <= limits.least))
        lanes.h = np.where(lanes.over, lanes.h, h * self.control.factor(error, lanes.before, lanes.again))
        lanes.finite = finite | lanes.over
        lanes.before = np.where(accepted, np.maximum(error, 1e-4), lanes.before)
        lanes.again = ~accepted
        lanes.t = np.where(accepted, reached, lanes.t)
        lanes.steps = lanes.steps + accepted
        lanes.stiff = np.where(accepted, np.where(rate < -_STIFF, lanes.stiff + 1, 0), lanes.stiff)
        lanes.over = lanes.over | (lanes.t == lanes.end)
        self._fail(accepted)
        return accepted

    def _fail(self, accepted: np.ndarray) -> None:
        """Give up samples that do not get on."""
        lanes = self.lanes
        stuck = ~accepted & ~lanes.over & (lanes.h < lanes.shortest)
        spent = ~lanes.over & (lanes.steps >= self.limits.steps)
        with np.errstate(all="ignore"):
            predicted = lanes.steps * np.abs(lanes.end - lanes.begin) / np.abs(lanes.t - lanes.begin)
        stiff = ~lanes.over & (lanes.stiff >= _STEPS_IN_A_ROW) & (predicted > _TOO_MANY)
        for row in np.flatnonzero(stuck | spent | stiff):
            sample = int(lanes.sample[row])
            if stuck[row]:
                self.failures[sample] = Stuck(float(lanes.t[row]), bool(lanes.finite[row]))
            else:
                self.failures[sample] = Stiff(float(predicted[row])) if stiff[row] else OutOfSteps()
            lanes.over[row] = True


def _sizes(scaled: Tensor) -> np.ndarray:
    """The largest components of ``(k, R, D)``, on the host: ``(k, R)``."""
    return scaled.abs().amax(-1).cpu().numpy().astype(float)


def _where(rows: np.ndarray, new: Tensor, old: Tensor) -> Tensor:
    """Some rows of one, the others of the other."""
    if rows.all():
        return new
    return torch.where(on_device(rows, new.device)[:, None], new, old) if rows.any() else old
