"""Pipelined parareal as a state machine that is asked and told, like `Window`.

Core c starts at step ``start[c]`` from a coarse jump off core c - 1, and takes one fine step in every round. With
``gap[c] = start[c] - start[c - 1]`` it is corrected every ``gap[c]`` steps: core c - 1, as many rounds behind, has then
jumped from the step where core c was corrected last. So nothing waits, all of it follows a schedule, and core c at step
``start[c] + k gap[c]`` has the state of parareal's iteration k (Lions, Maday & Turinici 2001; pipelined, Selvam et
al. 2024); with unequal gaps it is CHORDS (Han et al. 2025).

The leader of a sample is the core whose states are accepted, at first core 0, the sequential solver. Where it reaches
the state from which the next core went on, and finds it within tolerance of its own, the next core leads; the old one
is evaluated once more, for the correction of the new one.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from picardsolve.baselines.parareal import Parareal, checked_cores
from picardsolve.integrators.base import Chain, Evaluated, Index, Rows
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.history import History


@dataclass
class _Jump:
    """A coarse run of one core's state ``(B, D)``, at step ``at`` by now, to the last of the steps ``ahead``."""

    state: Tensor
    at: int
    ahead: list[int]
    leader: int  # of no use under a higher leader
    finite: np.ndarray  # (B,)
    who: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # samples in this round's rows


@dataclass
class Wavefront:
    """The state of one solve.

    Attributes:
        y0: ``(B, D)`` initial states.
        width: most cores there may be.
        states: ``(N + 1, B, D)`` for all that is computed, or None if it need not be kept; see `path`.
        lockstep: a core leads all samples, or none.
        begin: ``(B,)`` steps accepted so far.
        failed: ``(B,)`` whether a step of the leader was not finite.
        stopped: ``(B,)`` whether a sample ended because its iterations were done, not by tolerance.
        history: one record per round; its increments are, for each row in the order of cores, how far the core is from
            the state of the next one where it has just reached it, NaN elsewhere and for coarse rows.
    """

    chain: Chain
    y0: Tensor
    iteration: Parareal
    width: int
    tolerance: Tolerance
    states: Tensor | None = None
    lockstep: bool = False
    begin: Index = field(init=False)
    failed: np.ndarray = field(init=False)
    stopped: np.ndarray = field(init=False)
    history: History = field(init=False, default_factory=History)

    def __post_init__(self):
        samples, length = len(self.y0), self.chain.length
        self._start = np.array(checked_cores(self.iteration, length, self.width))
        cores = len(self._start)
        self._gap = np.diff(self._start, prepend=-length)  # core 0 is never corrected
        self._at, self._corrected_at = self._start.copy(), self._start.copy()
        self._launched, self._final = 1, cores - min(self.iteration.iterations or cores, cores)
        self._state = self.y0.new_full((cores, *self.y0.shape), torch.nan)
        self._state[0] = self.y0
        self._corrected = self._state.clone()
        self._jumps: dict[tuple[int, int, int], _Jump] = {}  # by core and the steps from and to
        self._leader, self.begin = np.zeros((2, samples), dtype=np.int64)
        self.failed, self.stopped = np.zeros((2, samples), dtype=bool)
        self._finite = np.arange(cores)[:, None] == np.zeros(samples)
        self._retiring = np.zeros((cores, samples), dtype=bool)  # has just handed over
        if self.states is not None:
            self.states[0] = self.y0

    @property
    def done(self) -> bool:
        """Whether every sample has reached the end of the grid, or failed."""
        return not self._running().any()

    @property
    def note(self) -> str:
        """How many cores there are, and what of it is the width's doing."""
        cores, wanted = len(self._start), len(self.iteration.cores(self.chain.length, self.chain.length))
        fewer = f", of {wanted}: window={self.width} allows no more" if cores < wanted else ""
        return f"Parareal with {cores} core{'s' * (cores > 1)}{fewer}"

    @property
    def x(self) -> Tensor:
        """The last accepted states, ``(1, B, D)``."""
        return self._state[self._leader, np.arange(len(self._leader))][None]

    @property
    def path(self) -> Tensor | None:
        """``(N + 1, B, D)`` accepted states, NaN where there are none yet; None if they are not kept."""
        if self.states is None or (self.begin == self.chain.length).all():
            return self.states
        beyond = self._on_device(np.arange(len(self.states))[:, None] > self.begin)
        return self.states.masked_fill(beyond[..., None], torch.nan)

    def ask(self) -> Rows:
        """The rows of the next round: a fine step of every core that is of use, then coarse ones."""
        running = self._running()
        self._fine = running & self._finite & self._useful()
        self._core, self._sample = np.nonzero(self._fine)
        self._row = self._on_device(self._core * self._fine.shape[1] + self._sample)
        steps, samples = [self._at[self._core]], [self._sample]
        states = [self._state.flatten(0, 1)[self._row]]
        for jump in self._unfinished():
            jump.who = np.flatnonzero(running & jump.finite & (self._leader <= jump.leader))
            steps.append(np.full_like(jump.who, jump.at))
            samples.append(jump.who)
            states.append(jump.state[self._on_device(jump.who)])
        self._width = np.bincount(np.concatenate(samples), minlength=len(running))
        self._asked = np.concatenate(steps), np.concatenate(samples)
        return Rows(*self._asked, torch.cat(states))

    def tell(self, outputs: Tensor) -> None:
        """Take the outputs of the rows that were asked for, shape ``(R, K)``."""
        running, begin, fine = self._running(), self.begin.copy(), len(self._core)
        self._continue_jumps(outputs[fine:])
        self._begin_jumps(outputs[:fine])
        noise = self._step(outputs[:fine])
        self._correct()
        self._launch()
        self._keep()
        size = self._judge(running, noise)
        self._record(begin, size)

    # ---- tell, step by step

    def _running(self) -> np.ndarray:
        return ~(self.failed | (self.begin == self.chain.length))

    def _useful(self) -> np.ndarray:
        """``(C, B)``: which cores step, or are evaluated for the correction of a leader that has just taken over."""
        ahead = np.arange(len(self._at))[:, None] - self._leader
        due = np.append(self._corrected_at[1:] + self._gap[1:] <= self.chain.length, False)[:, None]
        corrects = self._retiring & (ahead == -1) & due
        return ((ahead >= 0) | corrects) & (self._at < self.chain.length)[:, None]

    def _unfinished(self) -> list[_Jump]:
        return [jump for jump in self._jumps.values() if jump.ahead]

    def _on_device(self, host: np.ndarray) -> Tensor:
        return torch.from_numpy(host).to(self.y0.device)

    def _of_samples(self, rows: Tensor, sample: Index) -> Tensor:
        """Outputs ``(B, K)`` of the samples that have a row, NaN of the others."""
        every = rows.new_full((len(self._leader), rows.shape[-1]), torch.nan)
        return every.index_copy_(0, self._on_device(sample), rows)

    def _increments(self, n: Index, sample: Index, like: Tensor) -> Tensor | None:
        return self.chain.increments(n, sample).to(like) if self.chain.noise_size else None

    def _continue_jumps(self, outputs: Tensor) -> None:
        jumps = self._unfinished()
        for jump, rows in zip(jumps, outputs.split([len(jump.who) for jump in jumps]), strict=True):
            self._advance(jump, self._of_samples(rows, jump.who))

    def _begin_jumps(self, outputs: Tensor) -> None:
        """Jump from where cores were evaluated, if there the next core starts, or a correction will ask for it."""
        count = self._fine.sum(1)
        first = count.cumsum() - count
        for core in np.flatnonzero(count).tolist():
            at, rows = int(self._at[core]), slice(first[core], first[core] + count[core])
            for end, leader in self._jumps_wanted(core, at).items():
                finite = np.ones(len(self._leader), dtype=bool)
                ahead = [at + (end - at) * k // self.iteration.coarse for k in range(1, self.iteration.coarse + 1)]
                jump = _Jump(self._state[core], at, ahead, leader, finite)
                self._advance(jump, self._of_samples(outputs[rows], self._sample[rows]))
                self._jumps[core, at, end] = jump

    def _jumps_wanted(self, core: int, at: int) -> dict[int, int]:
        """Where to jump to, and the highest leader under whom that is of use."""
        wanted, following = {}, core + 1
        if at == self._corrected_at[core] and core:
            wanted[at + int(self._gap[core])] = core
        if following < len(self._at):
            if at == self._corrected_at[following]:
                wanted[at + int(self._gap[following])] = following
            if at == self._start[core]:
                wanted[int(self._start[following])] = following
        return {end: leader for end, leader in wanted.items() if end <= self.chain.length}

    def _advance(self, jump: _Jump, output: Tensor) -> None:
        """One coarse step: the fine ones it covers, with the output held fixed."""
        end = jump.ahead.pop(0)
        n, samples = np.arange(jump.at, end)[:, None], np.arange(len(output))
        every = np.broadcast_arrays(n, samples)
        noise = self._increments(every[0].ravel(), every[1].ravel(), jump.state)
        noise = noise if noise is None else noise.reshape(*every[0].shape, -1)
        held = Evaluated(n[:1], jump.state, output)
        jump.state, jump.at = self.chain.extend(n, "output", jump.state, held, noise)[-1], end

    def _step(self, outputs: Tensor) -> Tensor | None:
        """Step every core, and return the scale of each step's noise, ``(C, B)``."""
        n, states = self._at[self._core], self._state.flatten(0, 1)
        before = states[self._row]
        noise = self._increments(n, self._sample, before)
        steps = self.chain.steps(n[None], before[None], outputs[None], noise if noise is None else noise[None])
        states.index_copy_(0, self._row, steps.images()[0])
        self._moved = (np.arange(len(self._at)) < self._launched) & (self._at < self.chain.length)
        self._at = self._at + self._moved
        scale = steps.noise_scale
        if scale is None:
            return None
        return scale.new_ones(len(states)).index_copy_(0, self._row, scale[0]).reshape(self._state.shape[:2])

    def _correct(self) -> None:
        """Put ``F + (G_new - G_old)`` in the place of F where a core's correction is due."""
        for core in np.flatnonzero(self._moved & (self._at == self._corrected_at + self._gap)).tolist():
            since, at = int(self._corrected_at[core]), int(self._at[core])
            new, old = self._jumps.get((core - 1, since, at)), self._jumps.get((core, since, at))
            if new is not None:
                lost = torch.full_like(new.state, torch.nan)
                corrected = self._state[core] + (new.state - (lost if old is None else old.state))
                # a core that is lost starts anew, but not a leader, whose steps are the solution's; where there is no
                # jump the state stays
                leads = self._on_device(self._leader == core)[:, None]
                instead = torch.where(leads, self._state[core], new.state)
                corrected = torch.where(_is_finite(corrected)[:, None], corrected, instead)
                self._state[core] = torch.where(_is_finite(new.state)[:, None], corrected, self._state[core])
            self._corrected_at[core] = at
            self._corrected[core] = self._state[core]

    def _launch(self) -> None:
        core, since = self._launched, self._start[self._launched - 1]
        if core == len(self._at) or self._at[core - 1] < since + self.iteration.coarse:
            return
        self._launched += 1
        jump = self._jumps.get((core - 1, int(since), int(self._start[core])))
        if jump is not None:  # else the core before is lost, and so is this one until it is corrected
            self._state[core], self._corrected[core] = jump.state, jump.state
            if self.states is not None:
                self.states[self._start[core]] = jump.state

    def _keep(self) -> None:
        """Write down the new states, so that each step has that of the lowest core that has come by."""
        self._jumps = {key: jump for key, jump in self._jumps.items() if self._at[key[0]] < key[2]}
        if self.states is not None:
            kept = self._core >= self._leader[self._sample]
            step, sample = self._on_device(self._at[self._core[kept]]), self._on_device(self._sample[kept])
            self.states[step, sample] = self._state.flatten(0, 1)[self._row[self._on_device(kept)]]

    def _judge(self, running: np.ndarray, noise: Tensor | None) -> np.ndarray:
        """Choose the leaders, and return ``(C, B)``: how far a core is from the next one, where it has met its path."""
        jumps, sample = self._unfinished(), np.arange(len(running))
        met = np.flatnonzero(self._moved[:-1] & (self._at[:-1] == self._corrected_at[1:]))
        met = met[(met + 1 < self._launched) & (self._at[met] < self.chain.length)]
        size, within = np.full(self._fine.shape, np.nan), np.zeros((len(met), len(sample)), dtype=bool)
        if len(met):
            here = self._state[met]
            scale = noise if noise is None else noise[met]
            near, far = self.tolerance.within(here - self._corrected[met + 1], here, scale)
            within, size[met] = near.cpu().numpy(), np.where(self._fine[met], far.cpu().numpy(), np.nan)
        finite = torch.stack([_is_finite(state) for state in (*self._state, *(jump.state for jump in jumps))])
        self._finite, of_jumps = np.split(finite.cpu().numpy(), [len(self._state)])
        for jump, known in zip(jumps, of_jumps, strict=True):
            jump.finite = known
        self._retiring[:] = False
        for core, near in zip(met, within, strict=True):
            hands_over = near & (self._leader == core) & self._finite[core + 1]
            if self.lockstep:
                hands_over &= hands_over.all()
            self._leader[hands_over] = core + 1
            self._retiring[core] = hands_over
        self.failed = self.failed | (running & ~self._finite[self._leader, sample])
        self.begin = np.where(running & ~self.failed, self._at[self._leader], self.begin)
        self._stop()
        return size

    def _stop(self) -> None:
        """End the samples whose iterations are done."""
        for core in np.flatnonzero(self._moved[: self._final + 1] & (self._at[: self._final + 1] == self.chain.length)):
            ends = self._running() & self._finite[core]
            self._leader[ends], self.begin[ends] = core, self.chain.length
            self.stopped = self.stopped | ends

    def _record(self, begin: Index, size: np.ndarray) -> None:
        step, sample = self._asked
        rows = np.full(len(step), np.nan)
        rows[: len(self._core)] = size[self._core, self._sample]
        order = np.argsort(sample, kind="stable")  # the rows of each sample, one below the other
        place = np.arange(len(order)) - (self._width.cumsum() - self._width)[sample[order]], sample[order]
        sizes = np.full((self._width.max(), len(begin)), np.nan)
        steps = np.zeros(sizes.shape, dtype=np.int64)
        sizes[place], steps[place] = rows[order], step[order]
        self.history.append((begin, self.begin - begin, self._width), sizes, step=steps)


def _is_finite(states: Tensor) -> Tensor:
    return torch.isfinite(states).all(-1)
