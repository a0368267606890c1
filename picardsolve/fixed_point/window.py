"""The sliding window over a grid: the loop that this library is about.

    window = Window(chain, y0, settings)
    while not window.done:
        rows = window.ask()                    # which states, at which steps
        window.tell(window.evaluate(rows))     # one batched evaluation of the drift: a round

`Window.tell` is the method: it applies the step map to all states of the window, sweeps (the iteration), accepts the
leading states that are within the tolerance (the stopping rule), slides the window behind them, and fills in the states
that enter (the guess). Positions of samples are NumPy arrays on the host; states stay on their device.
"""

from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.acceptance import Acceptance, Verdict
from picardsolve.fixed_point.checked_sweep import checked
from picardsolve.fixed_point.grid_machine import GridMachine
from picardsolve.fixed_point.guesses import Entering, Trail
from picardsolve.fixed_point.guesses.checked_guess import checked as checked_guess
from picardsolve.fixed_point.increments import Increments
from picardsolve.fixed_point.placement import Placement, moved
from picardsolve.fixed_point.settings import Settings
from picardsolve.fixed_point.slide import Slide, steps_from
from picardsolve.fixed_point.stopping import on_host
from picardsolve.fixed_point.sweep import Memory, Swept
from picardsolve.integrators.base import Chain, DriftChain, Evaluated, Index, Rows, Steps
from picardsolve.problem.autocast import without_autocast
from picardsolve.problem.index import DeviceIndex, on_device
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
        reached: ``(B,)`` steps up to which states have been within the tolerance.
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
    reached: Index = field(init=False)
    failed: np.ndarray = field(init=False)
    history: History = field(init=False, default_factory=History)
    past: Tensor | None = field(init=False, default=None)

    def __post_init__(self):
        y0, samples, settings = self.x, len(self.x), self.settings
        self._iteration, self._guess = checked(settings.iteration), checked_guess(settings.guess)
        self._iteration.directions(y0.shape[-1], 0)  # refuses, before any work, a state that is too large
        self.width = settings.width
        self.acceptance = Acceptance(samples, self.width, self.chain.implicit, settings.lockstep)
        self.begin, self.reached, self._ready = np.zeros((3, samples), dtype=np.int64)
        self.failed, self.stopped = np.zeros((2, samples), dtype=bool)
        self._increments = Increments(self.chain)
        self._memory: Memory = ()
        self._directions: Tensor | None = None
        self._along: tuple[Tensor, Tensor] | None = None  # directions as the iteration gave them, and as they were sent
        self._workspace = y0[:0]  # to allocate a window's memory costs as much as to compute it
        self.x = y0[None]
        if self.path is not None:
            self.path[0] = y0
        widest = min(self.width, self.chain.length)
        if widest:
            n, wanted = self._numbers(widest), np.full_like(self.begin, widest)
            ahead = self._guess.first(Entering(self.chain, n, wanted, y0, self._noise(widest), None, None))
            self.x = self.x if ahead is None else torch.cat([self.x, ahead])
        self._place = Placement(self._numbers(0), np.zeros_like(self.begin))

    @property
    def done(self) -> bool:
        """Whether every sample has reached the end of the grid, or failed."""
        return bool((self.failed | (self.begin == self.chain.length)).all())

    def ask(self) -> Rows:
        """The rows of the next round. Before the first evaluation, without a guess, it is one step: the exact first."""
        span = np.minimum(self.acceptance.width, self.width) + self._waiting(self.begin)
        span = np.minimum(span, self.chain.length - self.begin)
        span[self.failed] = 0
        place = self._place = self._placed(np.minimum(span, max(len(self.x) - 1, 1))).sent(self.x.device)
        width, after = len(place.n), None
        rows = place.packed(self.x[:width])
        if self.chain.implicit:
            self._restart_equations()
            after = place.packed(self._states()[1:])
        self._directions = None
        if width > 1:  # the state of a single step does not change, whatever the derivative
            wanted = self._iteration.directions(rows.shape[-1], len(self.history))
            self._directions = None if wanted is None else self._sent(wanted, rows)
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
        memory = tuple(part[: len(x) - 1] for part in self._memory)
        with without_autocast(x.device):  # which is meant for the drift
            swept = self._iteration.sweep(steps, x, self._workspace_of(x[1:]), memory)  # Y
        swept = replace(swept, old=x[1:])
        rules, scale, valid = self.settings.rules, steps.noise_scale, steps.admissible
        seen, valid = on_host(rules, swept, scale, *(() if valid is None else (valid,)))  # waits for the device
        verdicts = [
            rule.judge(swept, scale, each) if each.norms else rule.judge(swept, scale)
            for rule, each in zip(rules, seen, strict=True)
        ]
        within, size = verdicts[0]
        within = within & (valid[0] > 0) if valid else within
        sure = rules[0].sure
        sure = within if sure is None else within & sure
        left = self.chain.length - self.begin
        ready = self._ready if rules[0].patient else None
        verdict = self.acceptance.count(within, sure, size, swept.y, place, self.failed, left, ready)
        self._note_reached(verdict)
        self.history.append((self.begin, verdict.accepted, place.span), size, seen[0].residual, rules[-1].estimates)
        self.failed = self.failed | verdict.failed
        for rule in rules:
            rule.slide(verdict.accepted, verdict.kept)
        self._slide(x, swept, values, verdict)

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
        self.reached, self._ready = self.begin, np.zeros_like(self.begin)
        self.acceptance.forget()
        self._increments.forget()
        self.x, self.past, self._memory = y[None], None, ()
        for rule in self.settings.rules:
            rule.restart()

    def stand(self, y: Tensor, begin: Index, failed: np.ndarray) -> None:
        """Go on from states ``y`` (B, D), which another solver has reached and written into the path."""
        self.x, self.begin, self.failed = y[None], begin, failed
        self.reached, self._ready = begin, np.zeros_like(begin)

    # ---- the parts of a round

    def _waiting(self, begin: Index) -> Index:
        """Steps at the beginning of a window that wait for a second look, beside those of its width."""
        return (self.reached - begin) * self.settings.stopping.patient

    def _note_reached(self, verdict: Verdict) -> None:
        """Remember how far the states of the round are within the tolerance."""
        self._ready = verdict.within - verdict.accepted
        self.reached = np.clip(self.reached, self.begin + verdict.within, self.begin + verdict.kept)
        if self.settings.lockstep:
            self._ready, self.reached = (np.full_like(each, each.min()) for each in (self._ready, self.reached))

    def _sent(self, directions: Tensor, like: Tensor) -> Tensor:
        """Directions where the states are; the same tensor is sent once."""
        if self._along is None or self._along[0] is not directions:
            self._along = directions, directions.to(like)
        return self._along[1]

    def _placed(self, span: Index) -> Placement:
        n, before = self._numbers(int(span.max())), self._place
        place = Placement(n, span)
        if before.full and place.full and before.mask.shape == place.mask.shape:
            return Placement(n, span, before.sample)
        return place

    def _numbers(self, count: int, ahead: int = 0) -> DeviceIndex:
        return steps_from(self.begin + ahead, count, self.chain.length)

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
            anew = on_device(restarting, self.x.device)[:, None]
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

    def _slide(self, x: Tensor, swept: Swept, values: Tensor, verdict: Verdict) -> None:
        """Keep the accepted states, move on behind them with what is known of the states ahead, and guess the rest."""
        chain, y, accepted, kept = self.chain, swept.y, verdict.accepted, verdict.kept
        left = np.where(self.failed, 0, chain.length - self.begin - accepted)
        widest = self.width + self._waiting(self.begin + accepted)
        slide = Slide(self.begin, accepted, kept, left, len(y), widest, chain.length, chain.memory)
        drawn = self._increments.pick(accepted)
        slide.sent(y.device, self.path is not None, drawn)
        self._write(y, slide)
        self._memory = moved(swept.memory, slide.remembered, len(y))
        if chain.memory:
            self.past = slide.past.of(values)
        self._increments.slide(drawn)
        self.begin = self.begin + accepted
        states = torch.cat([x[:1], y]) if slide.before else y
        if not slide.missing:
            self.x = slide.states.of(states)
            return
        held = Evaluated(slide.evaluated, slide.state.of(x)[0], slide.output.of(values)[0])
        start = slide.start.of(states)[0]
        noise = self._noise(int(slide.known.max()) + slide.missing)
        noise = None if noise is None else slide.noise.of(noise)
        entering = Entering(chain, slide.n, slide.wanted, start, noise, held, Trail(x[0], y, kept))
        ahead = self._guess.ahead(entering)
        if slide.states.rows is not None:
            self.x = torch.cat([slide.states.of(states), ahead])
        else:
            self.x = slide.states.of(torch.cat([states, ahead]))

    def _write(self, y: Tensor, slide: Slide) -> None:
        """Keep the accepted states."""
        if self.path is None:
            return
        if slide.together:
            start, count = int(slide.begin[0]), int(slide.accepted[0])
            self.path[start + 1 : start + 1 + count].copy_(y[:count])
            return
        rows, to = (index.on(y.device) for index in slide.written)
        self.path.view(-1, y.shape[-1]).index_copy_(0, to, y.flatten(0, 1).index_select(0, rows))
