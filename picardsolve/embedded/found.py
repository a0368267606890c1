"""What marches have found: the steps of all samples, the errors at their nodes, and the events between them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from picardsolve.embedded.allowed import Allowed
from picardsolve.embedded.dense import DenseSteps
from picardsolve.embedded.events import Occurred
from picardsolve.embedded.path import Steps
from picardsolve.problem.state import Layout


@dataclass(frozen=True)
class Asked:
    """What a solve is asked for.

    Attributes:
        times: ``(T, B)``.
        layout: of a sample's state.
        allowed: by the user's tolerance.
        k: nodes of the polynomials between steps.
    """

    times: np.ndarray
    layout: Layout
    allowed: Allowed
    k: int

    @cached_property
    def sign(self) -> np.ndarray:
        """Of the directions of time, ``(B,)``."""
        return np.where(self.times[-1] > self.times[0], 1.0, -1.0)

    def dense(self, steps: Steps) -> DenseSteps:
        """The states between steps."""
        reached = self.sign * (steps.t[steps.first + steps.count - 1] - self.times[0])
        return DenseSteps(steps, self.layout, self.k, self.times[0], self.sign, reached)


@dataclass(frozen=True)
class Marched:
    """The steps that marches have taken so far.

    Attributes:
        asked: what the solve is asked for.
        steps: of all samples.
        occurred: the events of samples; None where none were looked for.
    """

    asked: Asked
    steps: Steps
    occurred: Sequence[Occurred | None]

    @cached_property
    def dense(self) -> DenseSteps:
        """The states at all times, up to terminal events."""
        whole = self.asked.dense(self.steps)
        return replace(whole, reached=np.minimum(whole.reached, self.ends))

    @cached_property
    def ends(self) -> np.ndarray:
        """``(B,)`` elapsed times of terminal events, infinity where there are none."""
        if not any(self.occurred):
            return np.full(len(self.occurred), np.inf)
        ends = [np.nan if each is None or each.end is None else each.end for each in self.occurred]
        return np.nan_to_num(self.asked.sign * (np.array(ends) - self.asked.times[0]), nan=np.inf)

    @cached_property
    def nodes(self) -> np.ndarray:
        """The nodes ``(T * B,)`` where the steps begin that hold the times asked for."""
        return self.asked.dense(self.steps).located(self.asked.times)

    def states(self, unknown: np.ndarray | None = None) -> Tensor:
        """States ``(T, B, D)`` at the times that are asked for; NaN where ``unknown``."""
        asked = self.asked
        unknown = np.zeros(asked.times.shape, bool) if unknown is None else unknown
        return self.dense.at(asked.times, unknown, self.nodes)

    @cached_property
    def unknown(self) -> np.ndarray:
        """Whether no march has come to the times asked for, or they are behind a terminal event, ``(T, B)``."""
        return np.isnan(self.dense.elapsed(self.asked.times))

    @cached_property
    def between(self) -> np.ndarray:
        """Errors ``(T, B)`` of the polynomials at the times asked for, in what is allowed: against one node less."""
        asked = self.asked
        full = asked.dense(self.steps)
        if full.nodes(asked.times, self.nodes)[1].all():
            return np.zeros(asked.times.shape)
        unknown, full = np.zeros(asked.times.shape, bool), full.detached()
        states, less = (each.at(asked.times, unknown, self.nodes) for each in (full, replace(full, k=full.k - 1)))
        off = ((states - less).abs() / asked.allowed(states.abs())).amax(-1)
        return off.cpu().numpy().astype(float)

    def rounding(self, unit: float) -> np.ndarray:
        """The rounding of the largest states in what is allowed, ``(B,)``."""
        y = self.steps.y.detach().abs()
        ratio = (unit * y / self.asked.allowed.of_nodes(self.steps.sample, y.device)(y.clone())).amax(-1)
        return np.maximum.reduceat(np.nan_to_num(ratio.cpu().numpy().astype(float)), self.steps.first)


@dataclass(frozen=True)
class Found:
    """What marches have found so far.

    Attributes:
        marched: their steps.
        errors: estimated errors at all nodes, what is allowed there, and rounding: of the component that is furthest
            off, ``(3, M)``.
    """

    marched: Marched
    errors: np.ndarray

    @cached_property
    def at_times(self) -> np.ndarray:
        """The errors at the times asked for: the larger of both ends of the steps there, ``(3, T, B)``."""
        node, times = self.marched.nodes, self.marched.asked.times
        ends = np.minimum(node + 1, self.errors.shape[1] - 1)
        found = np.maximum(self.errors[:, node], self.errors[:, ends]).reshape(3, *times.shape)
        found[0] = np.where(times == times[0], 0.0, found[0] + self.marched.between)
        return found

    @cached_property
    def worst(self) -> np.ndarray:
        """The largest at the times asked for and at events, ``(3, B)``."""
        asked = self.marched.asked
        counts = asked.sign * (asked.times - asked.times[0]) <= self.marched.ends
        worst = np.where(counts, self.at_times, 0).max(1)
        worst[np.isnan(worst)] = np.inf
        for sample, each in enumerate(self.marched.occurred):
            for t in np.concatenate(each.times) if each is not None else ():
                at = np.broadcast_to(t, (1, worst.shape[1]))
                node = int(asked.dense(self.marched.steps).located(at)[sample])
                worst[:, sample] = np.maximum(worst[:, sample], self.errors[:, node : node + 2].max(1))
        return worst

    @property
    def certified(self) -> np.ndarray:
        """Errors, what is allowed, and rounding at the times asked for, ``(3, T, B)``."""
        error, allowed, floor = self.at_times
        return np.stack([np.where(self.marched.unknown, np.nan, error * allowed), allowed, floor * allowed])

    def missed(self, later: Marched) -> np.ndarray:
        """By what factors ``(B,)`` these estimates were too small, as later marches show."""
        old, new = self.marched.states().detach(), later.states().detach()
        largest = later.asked.allowed(torch.maximum(old.abs(), new.abs()))
        moved = ((new - old).abs() / largest).amax(-1).cpu().numpy().astype(float)
        error = self.at_times[0]
        with np.errstate(all="ignore"):
            factor = np.where(error > 0, moved / error, 1.0).max(0)
        return np.where(np.isfinite(factor), np.maximum(factor, 1.0), 1.0)
