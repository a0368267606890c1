"""Pipelined parareal: cores along the grid, each some steps behind the next one's start.

Core c starts at step ``start[c]`` from a coarse jump of core c - 1, and takes one fine step in every round. With
``gap[c] = start[c] - start[c - 1]``, core c is corrected every ``gap[c]`` steps. By then core c - 1, which is as many
rounds behind, has jumped from the step of core c's last correction. So no core waits: the rounds follow a schedule, and
core c at step ``start[c] + k gap[c]`` has the state of parareal's iteration k (Lions, Maday & Turinici 2001; pipelined,
Selvam et al. 2024). With unequal gaps the method is CHORDS (Han et al. 2025).

The leader of a sample is the core whose states are accepted, at first core 0, the sequential solver. The next core
leads once the leader reaches the state from which that core continued, and the two states agree within tolerance. The
old leader is evaluated once more, for the correction of the new one.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from picardsolve.baselines.coarse_jump import CoarseJump
from picardsolve.fixed_point.grid_machine import GridMachine
from picardsolve.integrators.base import DriftChain, Index, Rows
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.history import History


@dataclass
class Wavefront(GridMachine):
    """The state of one solve with C cores; see `GridMachine`.

    Attributes:
        path: also has states beyond ``begin``, which are not accepted yet.
        starts: the steps where cores start, 0 first.
        coarse: number of steps of a coarse jump.
        iterations: stop when the core that makes this iteration reaches the end; None: stop by tolerance only.
        lockstep: a core leads all samples, or none.
        history: for each row, in the order of cores, the distance of the core from the next core's state that it has
            just reached; NaN elsewhere and for coarse rows.
    """

    chain: DriftChain
    y0: Tensor
    path: Tensor | None
    starts: tuple[int, ...]
    coarse: int
    iterations: int | None
    tolerance: Tolerance
    lockstep: bool = False
    notes: tuple[str, ...] = ()
    history: History = field(init=False, default_factory=History)

    def __post_init__(self):
        samples, cores, length = len(self.y0), len(self.starts), self.chain.length
        self._start = np.array(self.starts)
        self._gap = np.diff(self._start, prepend=-length)  # core 0 is never corrected
        self._at = self._start.copy()
        self._corrected_at = self._start - np.where(self._start > 0, self._gap, 0)  # below start: not launched yet
        self._final = cores - min(self.iterations or cores, cores)
        self._state = self.y0.new_full((cores, *self.y0.shape), torch.nan)
        self._state[0] = self.y0
        self._corrected = self._state.clone()  # each core's state at its last correction
        self._jumps: dict[tuple[int, int, int], CoarseJump] = {}  # by core, first step and last step
        self._leader, self.begin = np.zeros((2, samples), dtype=np.int64)
        self.failed, self.stopped = np.zeros((2, samples), dtype=bool)
        self._finite = np.arange(cores)[:, None] == np.zeros(samples)
        self._retiring = np.zeros((cores, samples), dtype=bool)  # has just lost the lead
        self.x = self.y0[None]
        if self.path is not None:
            self.path[0] = self.y0

    @property
    def done(self) -> bool:
        """Whether every sample has reached the end of the grid, or failed."""
        return not self._running().any()

    def ask(self) -> Rows:
        """The rows of the next round: a fine step of every useful core, then coarse steps."""
        running = self._running()
        self._fine = running & self._finite & self._useful()
        self._core, self._sample = np.nonzero(self._fine)
        self._row = self._on_device(self._core * self._fine.shape[1] + self._sample)
        steps, samples = [self._at[self._core]], [self._sample]
        states = [self._state.flatten(0, 1)[self._row]]
        for jump in self._unfinished():
            jump.sample = np.flatnonzero(running & jump.finite & (self._leader <= jump.leader))
            steps.append(np.full_like(jump.sample, jump.at))
            samples.append(jump.sample)
            states.append(jump.state[self._on_device(jump.sample)])
        self._asked = np.concatenate(steps), np.concatenate(samples)
        return Rows(*self._asked, torch.cat(states))

    def evaluate(self, rows: Rows) -> Tensor:
        """The drift's outputs at the rows, ``(R, K)``."""
        return self.chain.evaluate(rows)

    def tell(self, outputs: Tensor) -> None:
        """Process the outputs of the requested rows, ``(R, K)``."""
        running, begin, fine = self._running(), self.begin, len(self._core)
        unfinished = self._unfinished()
        coarse = outputs[fine:].split([len(jump.sample) for jump in unfinished])
        for jump, rows in zip(unfinished, coarse, strict=True):
            jump.advance(self.chain, rows)
        self._begin_jumps(outputs[:fine])
        noise = self._step(outputs[:fine])
        launched = self._correct()
        self._keep(launched)
        distance = self._choose_leaders(running, noise)
        self._stop()
        self.x = self._state[self._leader, np.arange(len(begin))][None]
        self._record(begin, distance)

    # ---- tell, step by step

    def _running(self) -> np.ndarray:
        return ~(self.failed | (self.begin == self.chain.length))

    def _useful(self) -> np.ndarray:
        """``(C, B)``: the cores that step, or whose evaluation corrects a new leader."""
        ahead = np.arange(len(self._at))[:, None] - self._leader
        due = np.append(self._corrected_at[1:] + self._gap[1:] <= self.chain.length, False)[:, None]
        corrects = self._retiring & (ahead == -1) & due
        return ((ahead >= 0) | corrects) & (self._at < self.chain.length)[:, None]

    def _unfinished(self) -> list[CoarseJump]:
        return [jump for jump in self._jumps.values() if jump.ahead]

    def _on_device(self, host: np.ndarray) -> Tensor:
        return torch.from_numpy(host).to(self.y0.device)

    def _begin_jumps(self, outputs: Tensor) -> None:
        """Jump from evaluated states where a correction of this core or of the next one starts."""
        everyone = np.ones(len(self._leader), dtype=bool)
        for core in np.unique(self._core).tolist():
            at, rows = int(self._at[core]), slice(*np.searchsorted(self._core, (core, core + 1)))
            starts = [k for k in (core, core + 1) if 0 < k < len(self._at) and at == self._corrected_at[k]]
            for end, leader in {at + int(self._gap[k]): k for k in starts}.items():
                if end > self.chain.length:
                    continue
                ahead = [at + (end - at) * k // self.coarse for k in range(1, self.coarse + 1)]
                jump = CoarseJump(self._state[core], at, ahead, leader, everyone, self._sample[rows])
                jump.advance(self.chain, outputs[rows])
                self._jumps[core, at, end] = jump

    def _step(self, outputs: Tensor) -> Tensor | None:
        """Step every core, and return the scale of each step's noise, ``(C, B)``."""
        n, states = self._at[self._core], self._state.flatten(0, 1)
        before = states[self._row]
        noise = self.chain.increments(n, self._sample).to(before)[None] if self.chain.noise_size else None
        steps = self.chain.steps(n[None], before[None], outputs[None], noise)
        states.index_copy_(0, self._row, steps.images()[0])
        self._moved = (self._corrected_at >= self._start) & (self._at < self.chain.length)
        self._at = self._at + self._moved
        scale = steps.noise_scale
        if scale is None:
            return None
        return scale.new_ones(len(states)).index_copy_(0, self._row, scale[0]).reshape(self._state.shape[:2])

    def _correct(self) -> np.ndarray:
        """Correct F to ``F + (G_new - G_old)`` where due, or G_new where a core starts; return the launched cores."""
        to, launched = self._corrected_at + self._gap, np.zeros(len(self._at), dtype=bool)
        arrived = self._moved & (self._at == np.append(self._corrected_at[1:], 0) + self.coarse)
        for core in (np.flatnonzero(arrived[:-1] & (to[1:] <= self.chain.length)) + 1).tolist():
            since, end = int(self._corrected_at[core]), int(to[core])
            new, old = self._jumps.get((core - 1, since, end)), self._jumps.get((core, since, end))
            launched[core], self._corrected_at[core] = since < self._start[core], end
            if new is not None:  # otherwise the core before is not finite, and this core continues uncorrected
                here = self._state[core]
                corrected = here + (new.state - (torch.nan if old is None else old.state))
                # a core that is not finite restarts, but a leader does not: its steps are the solution's
                instead = torch.where(self._on_device(self._leader == core)[:, None], here, new.state)
                corrected = torch.where(_is_finite(corrected)[:, None], corrected, instead)
                self._state[core] = torch.where(_is_finite(new.state)[:, None], corrected, here)
            self._corrected[core] = self._state[core]
        return launched

    def _keep(self, launched: np.ndarray) -> None:
        """Store the new states; each step has the state of the lowest core that has passed it."""
        self._jumps = {key: jump for key, jump in self._jumps.items() if self._at[key[0]] < key[2]}
        if self.path is not None:
            cores = np.arange(len(self._at))[:, None]
            core, sample = np.nonzero((self._fine | launched[:, None]) & (cores >= self._leader))
            step, core, sample = (self._on_device(index) for index in (self._at[core], core, sample))
            self.path[step, sample] = self._state[core, sample]

    def _choose_leaders(self, running: np.ndarray, noise: Tensor | None) -> np.ndarray:
        """Return ``(C, B)``: distance of a core from the next core's path, where it has just reached that path."""
        unfinished, sample = self._unfinished(), np.arange(len(running))
        met = self._moved[:-1] & (self._at[:-1] == self._corrected_at[1:]) & (self._at[:-1] < self.chain.length)
        met = np.flatnonzero(met)
        distance, within = np.full(self._fine.shape, np.nan), np.zeros((len(met), len(sample)), dtype=bool)
        if len(met):
            here = self._state[met]
            scale = None if noise is None else noise[met]
            near, far = self.tolerance.within(here - self._corrected[met + 1], here, scale)
            within, distance[met] = near.cpu().numpy(), np.where(self._fine[met], far.cpu().numpy(), np.nan)
        finite = torch.stack([_is_finite(state) for state in (*self._state, *(jump.state for jump in unfinished))])
        self._finite, of_jumps = np.split(finite.cpu().numpy(), [len(self._state)])
        for jump, known in zip(unfinished, of_jumps, strict=True):
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
        return distance

    def _stop(self) -> None:
        """End the samples whose iterations are complete."""
        for core in np.flatnonzero(self._moved[: self._final + 1] & (self._at[: self._final + 1] == self.chain.length)):
            ends = self._running() & self._finite[core]
            self._leader[ends], self.begin[ends] = core, self.chain.length
            self.stopped = self.stopped | ends

    def _record(self, begin: Index, distance: np.ndarray) -> None:
        """Record the round, with the rows of each sample below each other."""
        step, sample = self._asked
        rows = np.full(len(step), np.nan)
        rows[: len(self._core)] = distance[self._core, self._sample]
        width = np.bincount(sample, minlength=len(begin))
        order = np.argsort(sample, kind="stable")
        place = np.arange(len(order)) - (width.cumsum() - width)[sample[order]], sample[order]
        sizes = np.full((width.max(), len(begin)), np.nan)
        steps = np.zeros(sizes.shape, dtype=np.int64)
        sizes[place], steps[place] = rows[order], step[order]
        self.history.append((begin, self.begin - begin, width), sizes, step=steps)


def _is_finite(states: Tensor) -> Tensor:
    return torch.isfinite(states).all(-1)
