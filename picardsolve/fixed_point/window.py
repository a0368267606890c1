"""The sliding window over a grid: the loop that this library is about.

    window = Window(chain, y0, settings)
    while not window.done:
        rows = window.ask()                    # which states, at which steps
        window.tell(window.evaluate(rows))     # one batched evaluation of the drift: a round

`Window.tell` is the method: it applies the step map to all states of the window, sweeps (the iteration), accepts the
leading states that are within the tolerance (the stopping rule), slides the window behind them, and fills in the states
that enter (the guess). Positions of samples are NumPy arrays on the host; states stay on their device.
"""

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.acceptance import Acceptance
from picardsolve.fixed_point.checked_sweep import checked
from picardsolve.fixed_point.grid_machine import GridMachine
from picardsolve.fixed_point.guesses import Entering, Trail
from picardsolve.fixed_point.guesses.checked_guess import checked as checked_guess
from picardsolve.fixed_point.increments import Increments
from picardsolve.fixed_point.placement import Placement, alike, extended, on_device, padded, rows_from, shifted
from picardsolve.fixed_point.settings import Settings
from picardsolve.fixed_point.sweep import Memory
from picardsolve.integrators.base import Chain, DriftChain, Evaluated, Index, Rows, Steps
from picardsolve.results.history import History


@dataclass
class Window(GridMachine):
    """The state of one solve by fixed-point iteration.

    Attributes:
        chain: the steps that are solved.
        x: ``(W + 1, B, D)``: row j of sample s is its state at step ``begin[s] + j``; row 0 is accepted.
        settings: see `Settings`.
        path: ``(N + 1, B, D)`` accepted states, NaN where there are none yet; None if they are not kept.
        width: most steps that the next rounds may hold; may be changed between rounds.
        begin: ``(B,)`` steps accepted so far.
        failed: ``(B,)`` whether a sequential step of the sample was not finite.
        history: one record per round.
        past: ``(memory, B, K)`` outputs of the steps before ``begin``; None where none are needed, or known.
    """

    chain: Chain
    x: Tensor
    settings: Settings
    path: Tensor | None = None
    width: int = field(init=False)
    begin: Index = field(init=False)
    failed: np.ndarray = field(init=False)
    history: History = field(init=False, default_factory=History)
    past: Tensor | None = field(init=False, default=None)

    def __post_init__(self):
        y0, samples, settings = self.x, len(self.x), self.settings
        self._iteration, self._guess = checked(settings.iteration), checked_guess(settings.guess)
        self._iteration.directions(y0.shape[-1], 0)  # refuses, before any work, a state that is too large
        self.width = settings.width
        self.acceptance = Acceptance(samples, self.width, self.chain.implicit, settings.lockstep)
        self.begin = np.zeros(samples, dtype=np.int64)
        self.failed, self.stopped = np.zeros((2, samples), dtype=bool)
        self._increments = Increments(self.chain)
        self._memory: Memory = ()
        self._directions: Tensor | None = None
        self._workspace = y0[:0]  # to allocate a window's memory costs as much as to compute it
        self.x = y0[None]
        if self.path is not None:
            self.path[0] = y0
        widest = min(self.width, self.chain.length)
        if widest:
            ahead = self._guess.first(self._entering(y0, np.zeros_like(self.begin), widest))
            self.x = self.x if ahead is None else torch.cat([self.x, ahead])
        self._place = self._placed(np.zeros_like(self.begin))

    @property
    def done(self) -> bool:
        """Whether every sample has reached the end of the grid, or failed."""
        return bool((self.failed | (self.begin == self.chain.length)).all())

    def ask(self) -> Rows:
        """The rows of the next round. Before the first evaluation, without a guess, it is one step: the exact first."""
        span = np.minimum(np.minimum(self.acceptance.width, self.width), self.chain.length - self.begin)
        span[self.failed] = 0
        place = self._place = self._placed(np.minimum(span, max(len(self.x) - 1, 1)))
        width, after = len(place.n), None
        rows = place.packed(self.x[:width])
        if self.chain.implicit:
            self._restart_equations()
            after = place.packed(self._states()[1:])
        self._directions = None
        if width > 1:  # the state of a single step does not change, whatever the derivative
            wanted = self._iteration.directions(rows.shape[-1], len(self.history))
            self._directions = None if wanted is None else wanted.to(rows)
        tangents = None if self._directions is None else self._directions[:, None].expand(-1, *rows.shape)
        noise = self._noise(width) if self.chain.reads_noise else None
        noise = None if noise is None else place.packed(noise)
        return Rows(place.step, place.sample, rows, tangents, after, noise)

    def evaluate(self, rows: Rows) -> Tensor:
        """The drift's outputs at the rows."""
        return cast(DriftChain, self.chain).evaluate(rows)

    def tell(self, outputs: Tensor) -> None:
        """Take the outputs of the rows that were asked for, shape ``(R, K)``; ``(1 + P, R, K)`` with derivatives."""
        place, x = self._place, self._states()
        values = self._with_past(outputs if self._directions is None else outputs[0])
        steps = self._steps(x, values, outputs)  # F[n] = Phi_n(X[n])
        swept = self._iteration.sweep(steps, x, self._workspace_of(x[1:]), padded(self._memory, len(x) - 1))  # Y
        scale = steps.noise_scale
        verdicts = [rule.judge(swept, scale) for rule in self.settings.rules]  # waits for the device
        (within, size), valid = verdicts[0], steps.admissible
        within = within if valid is None else within & valid.cpu().numpy()
        verdict = self.acceptance.count(within, size, swept.y, place, self.failed)
        accepted, kept = verdict.accepted, verdict.kept
        residual = None if swept.residual is None else swept.residual.cpu().numpy()
        self.history.append((self.begin, accepted, place.span), size, residual, self.settings.rules[-1].estimates)
        self.failed = self.failed | verdict.failed
        self._write(swept.y, accepted)
        self._memory = shifted(swept.memory, accepted, kept)
        for rule in self.settings.rules:
            rule.slide(accepted, kept)
        self._slide(x, swept.y, values, accepted, kept)

    # ---- for a solve that another loop drives

    def narrow(self, width: int) -> None:
        """Announce that only the first ``width`` steps of what was asked for will be evaluated."""
        self._place = self._placed(np.minimum(self._place.span, width))

    def correct(self, states: Tensor) -> None:
        """Put the first states that were really evaluated, ``(<= W, B, D)``, in the place of those asked for."""
        if len(self.x) == 1:
            self.x = states[:1]
            return
        self.x[: len(states)] = states

    def restart(self, step: int, y: Tensor) -> None:
        """Forget the states ahead and go on from state ``y`` (B, D) at ``step``, all samples alike."""
        self.begin = np.full_like(self.begin, step)
        self.acceptance.forget()
        self._increments.forget()
        self.x, self.past, self._memory = y[None], None, ()
        for rule in self.settings.rules:
            rule.restart()

    def stand(self, y: Tensor, begin: Index, failed: np.ndarray) -> None:
        """Go on from states ``y`` (B, D), which another solver has reached and written into the path."""
        self.x, self.begin, self.failed = y[None], begin, failed

    # ---- the parts of a round

    def _placed(self, span: Index) -> Placement:
        return Placement(self._numbers(int(span.max())), span)

    def _numbers(self, count: int, ahead: Index | int = 0) -> Index:
        """``(count, B)`` the steps from ``ahead`` of each begin; ``(count, 1)`` where all samples stand alike."""
        first = self.begin + ahead
        first = first[:1] if alike(first) else first
        return np.minimum(first + np.arange(count)[:, None], self.chain.length - 1)

    def _noise(self, count: int) -> Tensor | None:
        return self._increments.first(count, self._numbers, self.x)

    def _states(self) -> Tensor:
        """The states of the window and the one after it, ``(W + 1, B, D)``."""
        width = len(self._place.n)
        return self.x[: width + 1] if len(self.x) > width else torch.cat([self.x, self.x[-1:]])

    def _restart_equations(self) -> None:
        """Put a copy of the accepted state behind it, where the sequential solver starts an implicit step."""
        restarting = self.acceptance.restarting
        if restarting.any():
            anew = on_device(restarting, self.x)[:, None]
            self.x = torch.cat([self.x[:1], torch.where(anew, self.x[:1], self._states()[1:2]), self.x[2:]])

    def _steps(self, x: Tensor, values: Tensor, outputs: Tensor) -> Steps:
        noise = self._noise(len(self._place.n))
        steps = self.chain.steps(self._place.n, x[:-1], values, noise)
        if self._directions is None:
            return steps
        derivatives = self._place.unpacked(outputs[1:].movedim(0, 1).flatten(1)).unflatten(-1, (len(outputs) - 1, -1))
        return self.chain.differentiated(steps, self._place.n, self._directions, derivatives, noise)

    def _with_past(self, values: Tensor) -> Tensor:
        out = self._place.unpacked(values)
        if not self.chain.memory:
            return out
        if self.past is None:
            self.past = out.new_zeros(self.chain.memory, *out.shape[1:])
        return torch.cat([self.past, out])

    def _workspace_of(self, like: Tensor) -> Tensor:
        if len(self._workspace) < len(like):
            self._workspace = torch.empty_like(like, memory_format=torch.contiguous_format)
        return self._workspace[: len(like)]

    def _write(self, y: Tensor, accepted: Index) -> None:
        """Keep the accepted states."""
        if self.path is None:
            return
        start, count = int(self.begin[0]), int(accepted[0])
        if alike(accepted) and alike(self.begin):
            self.path[start + 1 : start + 1 + count] = y[:count]
            return
        row, sample = np.nonzero(np.arange(len(y))[:, None] < accepted)
        step, row, sample = (on_device(index, y) for index in (self.begin[sample] + 1 + row, row, sample))
        self.path[step, sample] = y[row, sample]

    def _slide(self, x: Tensor, y: Tensor, values: Tensor, accepted: Index, kept: Index) -> None:
        """Move on by the accepted steps, keep what is known of the states ahead, and guess the rest."""
        source, memory = np.maximum(kept - 1, 0), self.chain.memory  # source: the evaluation to extrapolate from
        step = np.minimum(self.begin + source, self.chain.length - 1)
        held = Evaluated(
            step[None, :1] if alike(step) else step[None],
            rows_from(x, source, 1)[0],
            rows_from(values, memory + source, 1)[0],
        )
        if memory:
            self.past = rows_from(values, accepted, memory)
        self._increments.slide(accepted)
        self.begin = self.begin + accepted
        left = np.where(self.failed, 0, self.chain.length - self.begin)
        width = int(np.minimum(self.width, left).max())
        known = np.where(left > 0, kept - accepted, width)
        missing = width - int(known.min())
        states, first = (y, accepted - 1) if accepted.min() > 0 else (torch.cat([x[:1], y]), accepted)
        if missing <= 0:
            self.x = rows_from(states, first, width + 1)
            return
        trail = Trail(x[0], y, kept)
        entering = self._entering(rows_from(states, first + known, 1)[0], known, missing, held, trail)
        self.x = extended(states, first, known, self._guess.ahead(entering), width + 1)

    def _entering(
        self, start: Tensor, known: Index, count: int, held: Evaluated | None = None, trail: Trail | None = None
    ) -> Entering:
        noise = self._noise(int(known.max()) + count)
        noise = None if noise is None else rows_from(noise, known, count)
        left = np.where(self.failed, 0, self.chain.length - self.begin)
        wanted = np.maximum(np.minimum(self.width, left) - known, 0)
        return Entering(self.chain, self._numbers(count, known), wanted, start, noise, held, trail)
