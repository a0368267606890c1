"""How many steps a round accepts, and what a window does where the iteration diverges."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.placement import Placement
from picardsolve.integrators.backward_euler import PATIENCE
from picardsolve.integrators.base import Index

_BLOW_UP = 10.0  # growth of the largest change in one round that counts as divergence


@dataclass(frozen=True)
class Verdict:
    """What becomes of the states of a round, ``(B,)`` all.

    Attributes:
        accepted: steps that the window moves on by.
        kept: the window goes on from the first ``kept`` states of the round; those behind them are guessed anew.
        failed: whether the first step, which is the sequential solver's, is not finite.
        within: steps up to which the states are within the tolerance, from ``accepted`` to ``kept``.
    """

    accepted: Index
    kept: Index
    failed: np.ndarray
    within: Index


@dataclass
class Acceptance:
    """Counts the steps that may be accepted, and narrows the window of a sample whose iteration diverges.

    A window accepts its leading states that are within the tolerance, and always its first step, which is exact. A
    window that holds all steps that are left would only save rows by that, and no rounds: no step enters. It keeps the
    states that the rule is not sure of, until all of them are within the tolerance. What is let go is frozen, while
    what is kept becomes more exact in every round, and so do all states that follow from it. A
    sample whose changes blow up keeps the states that did not, in a window half as wide. That window then grows by the
    number of accepted steps, or by an eighth: doubled at once it would diverge again every other round.

    The first step of an implicit chain is an equation, and not exact. A sample that does not solve it in `PATIENCE`
    rounds starts it once more from a copy of its state, as the sequential solver does, and fails after that.

    Attributes:
        samples: B.
        widest: most steps of a window.
        implicit: whether steps are equations.
        lockstep: whether all samples move on by the same number of steps.
        width: ``(B,)`` the width that divergence has left of each window.
        restarting: ``(B,)`` whether an implicit first step is to be started anew.
    """

    samples: int
    widest: int
    implicit: bool
    lockstep: bool
    width: Index = field(init=False)
    restarting: np.ndarray = field(init=False)

    def __post_init__(self):
        self.width = np.full(self.samples, self.widest)
        self.restarting, self._restarted = np.zeros((2, self.samples), dtype=bool)
        self._seen = np.zeros(self.samples, dtype=np.int64)  # states ahead that an earlier round has swept
        self._peak = np.zeros(self.samples)  # and the largest change among them, in that round
        self._tries = np.zeros(self.samples, dtype=np.int64)  # rounds since an implicit first step was begun

    def forget(self) -> None:
        """Take the states ahead for new ones."""
        self._seen = np.zeros_like(self._seen)

    def count(
        self,
        within: np.ndarray,
        sure: np.ndarray,
        size: np.ndarray,
        y: Tensor,
        place: Placement,
        failed: np.ndarray,
        left: Index,
        ready: Index | None = None,
    ) -> Verdict:
        """Judge a round.

        Args:
            within: ``(W, B)`` whether each state is within the tolerance.
            sure: ``(W, B)`` whether it may be let go while others are not.
            size: ``(W, B)`` root mean square change of each state.
            y: ``(W, B, D)`` the states.
            place: where they lie.
            failed: ``(B,)`` samples that have failed before.
            left: ``(B,)`` steps from the window's first one to the end of the grid.
            ready: ``(B,)`` steps up to which states were within the tolerance in the last round. No more are accepted
                in a window that slides. None: a single look is enough.
        """
        span, mask, position = place.span, place.mask, place.position
        finite, broken = np.isfinite(size), np.zeros_like(failed)
        sound = bool(finite.all())
        if not sound:  # rare, and the norm of large finite changes may overflow
            finite = torch.isfinite(y).all(-1).cpu().numpy()
            broken = ~finite[0] & mask[0] & (not self.implicit)
            if self.lockstep:
                within, finite, broken = within | broken, finite | broken, np.zeros_like(broken)
        reached, surely = (
            np.minimum(np.logical_and.accumulate(each & finite & mask, 0).sum(0) + (not self.implicit), span)
            for each in (within, sure)
        )
        least = np.minimum(not self.implicit, span)
        accepted = reached if ready is None else np.minimum(reached, np.maximum(ready, least))
        accepted = np.where(span < left, accepted, np.where(reached < span, surely, reached))
        unsettled = ~within & (position < self._seen)
        diverged = np.where(unsettled, size, 0).max(0) > _BLOW_UP * self._peak
        if not sound:
            ends = np.take_along_axis(finite, np.maximum(accepted - 1, 0)[None], 0)[0]
            accepted = np.maximum(accepted - ~ends, 0)  # a step that is not finite is left to be the first of a window
            diverged |= (~finite & mask).any(0)
        if self.lockstep:
            accepted = np.full_like(accepted, accepted.min())
        if self.implicit:
            broken = self._restart(accepted, finite, mask, failed | broken)
            diverged |= self.restarting
        blown_up = (unsettled & (size > _BLOW_UP * self._peak)) | (~finite & mask)
        calm = np.logical_and.accumulate(~blown_up, 0).sum(0)
        fewest = np.minimum(1, span) if self.implicit else accepted
        kept = np.where(diverged, np.clip(calm, fewest, span), span)
        kept[self.restarting] = 0
        grown = np.minimum(self.width + np.maximum(accepted, np.maximum(self.width // 8, 1)), self.widest)
        self.width = np.where(diverged, np.maximum(span // 2, 1), grown)
        self._seen = kept - accepted
        self._peak = np.where((position >= accepted) & (position < kept), size, 0).max(0)
        return Verdict(accepted, kept, broken, np.clip(reached, accepted, kept))

    def _restart(self, accepted: Index, finite: np.ndarray, mask: np.ndarray, failed: np.ndarray) -> np.ndarray:
        """Choose the samples whose implicit first step starts anew; returns those that did so before, and fail."""
        stands = (accepted == 0) & mask[0] & ~failed
        self._tries = np.where(stands, self._tries + 1, 0)
        lost = stands & (~finite[0] | (self._tries >= PATIENCE))
        fails = lost & self._restarted
        self._tries[lost] = 0
        self._restarted = lost | (self._restarted & stands)
        self.restarting = lost & ~fails
        return fails
