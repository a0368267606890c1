"""The sliding window over a grid, as a state machine that is asked and told.

    window = Window(chain, y0, settings)
    while not window.done:
        rows = window.ask()                      # which states, at which steps
        window.tell(chain.evaluate(rows))        # what the drift made of them: one round

``tell`` sweeps (the iteration), tests (the tolerance), slides, and guesses the states that enter.
Where samples stand is kept in numpy on the host; states stay on their device.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.guesses import Entering, Guess, Trail
from picardsolve.fixed_point.guesses.watched import watched as watched_guess
from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.iterations.watched import watched
from picardsolve.fixed_point.stopping import ErrorEstimate, Stopping
from picardsolve.fixed_point.sweep import Memory
from picardsolve.integrators.backward_euler import PATIENCE
from picardsolve.integrators.base import Chain, Evaluated, Index, Rows
from picardsolve.results.history import History

_BLOW_UP = 10.0  # growth of the largest change in one round that counts as divergence


@dataclass(frozen=True)
class Settings:
    """What decides how many rounds a solve takes.

    Attributes:
        width: steps in the window at first.
        stopping: which states may be left behind; of this solve only, for it remembers its rounds.
        meter: what estimates errors, where the rule for stopping does not; of this solve only, too.
        lockstep: all samples share one position, that of the slowest.
    """

    width: int
    iteration: Iteration
    guess: Guess
    stopping: Stopping
    lockstep: bool = False
    meter: ErrorEstimate | None = None

    @property
    def learning(self) -> tuple[Stopping, ...]:
        """All that learns from a round."""
        return (self.stopping,) if self.meter is None else (self.stopping, self.meter)


@dataclass
class Window:
    """The state of one solve.

    Attributes:
        width: most steps that the next rounds may hold; may be changed between rounds.
        x: ``(width + 1, B, D)``: row j of sample s is its state at step ``begin[s] + j``; row 0 is accepted.
        begin: ``(B,)`` steps accepted so far.
        failed: ``(B,)`` whether a sequential step of the sample was not finite.
        path: ``(N + 1, B, D)`` accepted states, NaN where there are none yet; None if they are not kept.
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
        y0, samples = self.x, len(self.x)
        self._iteration, self._guessed = watched(self.settings.iteration), watched_guess(self.settings.guess)
        self._iteration.directions(y0.shape[-1], 0)  # refuses, before any work, a state that is too large
        self.width = self.settings.width
        widest = min(self.width, self.chain.length)
        self.x = y0[None]
        if self.path is not None:
            self.path[0] = y0
        self.begin = np.zeros(samples, dtype=np.int64)
        self.failed = np.zeros(samples, dtype=bool)
        self._cap = np.full(samples, self.width)  # the width that divergence has left
        self._kept = np.zeros(samples, dtype=np.int64)  # states ahead that an earlier round has swept
        self._peak = np.zeros(samples)  # and the largest change among them, in that round
        self._tries = np.zeros(samples, dtype=np.int64)  # rounds since an implicit first step was begun
        self._lost, self._afresh = np.zeros((2, samples), dtype=bool)  # it is to start anew; it has
        self._memory: Memory = ()
        self._noise: Tensor | None = None
        self._directions: Tensor | None = None
        self._position = np.arange(widest)[:, None]
        self._zero = np.zeros(samples, dtype=np.int64)
        self._sample = np.zeros_like(self._position) + np.arange(samples)
        self._scratch = y0[:0]  # allocating a window anew costs as much as computing one
        self._reach = np.full(samples, widest)  # states ahead that have been guessed
        if widest:
            ahead = self._guessed.first(self._entering(y0, None, None, 0, widest))
            self.x = self.x if ahead is None else torch.cat([self.x, ahead])
        self._take_stock(self._zero)

    @property
    def done(self) -> bool:
        """Whether every sample has reached the end of the grid, or failed."""
        return bool((self.failed | (self.begin == self.chain.length)).all())

    def ask(self) -> Rows:
        """The rows of the next round. Without a guess yet the window is one step: the exact first one."""
        span = np.minimum(np.minimum(np.minimum(self._cap, self.width), self._reach), self.chain.length - self.begin)
        span[self.failed] = 0
        self._take_stock(np.minimum(span, max(len(self.x) - 1, 1)))
        width, mask = len(self._mask), self._mask
        step, sample = self._n + self._zero, self._sample[:width]
        rows, after = self._held(self.x[:width]), None
        if self.chain.implicit:
            self._start_lost_ones_anew()
            after = self._held(self._old_states()[1:])
        self._directions = self._wanted_directions(rows)
        tangents = None if self._directions is None else self._directions[:, None].expand(-1, *rows.shape)
        noise = self._drawn(width) if self.chain.reads_noise else None
        noise = None if noise is None else self._held(noise)
        if self._full:
            return Rows(step.ravel(), sample.ravel(), rows, tangents, after, noise)
        return Rows(step[mask], sample[mask], rows, tangents, after, noise)

    def tell(self, outputs: Tensor) -> None:
        """Take the outputs of the rows that were asked for, shape ``(R, K)``; ``(1 + P, R, K)`` with derivatives."""
        values = outputs if self._directions is None else outputs[0]
        x, out, noise = self._old_states(), self._with_past(self._arranged(values)), self._drawn(len(self._n))
        steps = self.chain.steps(self._n, x[:-1], out, noise)
        if self._directions is not None:
            derivatives = self._arranged(outputs[1:].movedim(0, 1).flatten(1)).unflatten(-1, (len(outputs) - 1, -1))
            steps = self.chain.differentiated(steps, self._n, self._directions, derivatives, noise)
        swept = self._iteration.sweep(steps, x, self._scratch_of(x[1:]), self._remembered(len(self._n)))
        learning, scale = self.settings.learning, steps.noise_scale
        verdicts = [rule.judge(swept, scale) for rule in learning]  # waits for the device
        within, size = verdicts[0]
        proper = steps.admissible
        within = within if proper is None else within & proper.cpu().numpy()
        stride, last = self._judge(within, size, swept.y)
        residual = None if swept.residual is None else swept.residual.cpu().numpy()
        self.history.append((self.begin, stride, self._span), size, residual, learning[-1].estimates)
        self._accept(swept.y, stride)
        self._remember(swept.memory, stride, last)
        for rule in learning:
            rule.slide(stride, last)
        self._slide(x, swept.y, out, stride, last)

    def narrow(self, width: int) -> None:
        """Announce that only the first ``width`` steps of what was asked for will be told."""
        self._take_stock(np.minimum(self._span, width))

    def correct(self, states: Tensor) -> None:
        """Put the first states that were really evaluated, ``(<= W, B, D)``, in the place of those asked for."""
        if len(self.x) == 1:
            self.x = states[:1]
            return
        self.x[: len(states)] = states

    def restart(self, step: int, y: Tensor) -> None:
        """Forget the states ahead and go on from state ``y`` (B, D) at ``step``, all samples alike."""
        self.begin, self._kept = np.full_like(self.begin, step), np.zeros_like(self._kept)
        self.x, self._noise, self.past, self._memory = y[None], None, None, ()
        for rule in self.settings.learning:
            rule.restart()

    def stand(self, y: Tensor, begin: Index, failed: np.ndarray) -> None:
        """Go on from states ``y`` (B, D), which another solver has reached and written into the path."""
        self.x, self.begin, self.failed = y[None], begin, failed

    def _take_stock(self, span: Index) -> None:
        """Note what a round holds: ``span[s]`` steps of sample s."""
        width = int(span.max())
        self._span, self._n = span, self._steps(width)
        self._mask = self._position[:width] < span
        self._full = bool(self._mask.all())

    def _held(self, states: Tensor) -> Tensor:
        """Of states ``(W, B, D)`` those that the round holds, ``(R, D)``."""
        return states.flatten(0, 1) if self._full else states[self._on_device(self._mask)]

    def _start_lost_ones_anew(self) -> None:
        """Put a copy of the window's state behind it, where the sequential solver starts, for samples that are lost."""
        if self._lost.any():
            lost = self._on_device(self._lost)[:, None]
            self.x = torch.cat([self.x[:1], torch.where(lost, self.x[:1], self._old_states()[1:2]), self.x[2:]])

    def _wanted_directions(self, rows: Tensor) -> Tensor | None:
        """None for a window of one step: its state does not change, whatever the derivative."""
        if len(self._mask) == 1:
            return None
        directions = self._iteration.directions(rows.shape[-1], len(self.history))
        return None if directions is None else directions.to(rows)

    # ---- tell, step by step

    def _old_states(self) -> Tensor:
        """The states of the window and the one after it."""
        width = len(self._mask)
        return self.x[: width + 1] if len(self.x) > width else torch.cat([self.x, self.x[-1:]])

    def _scratch_of(self, like: Tensor) -> Tensor:
        if len(self._scratch) < len(like):
            self._scratch = torch.empty_like(like, memory_format=torch.contiguous_format)
        return self._scratch[: len(like)]

    def _steps(self, count: int, ahead: Index | int = 0) -> Index:
        """``(count, B)`` the steps from ``ahead`` of each begin; ``(count, 1)`` where all samples stand alike."""
        first = self.begin + ahead
        first = first[:1] if _alike(first) else first
        return np.minimum(first + self._position[:count], self.chain.length - 1)

    def _on_device(self, host: np.ndarray) -> Tensor:
        return torch.from_numpy(host).to(self.x.device)

    def _arranged(self, outputs: Tensor) -> Tensor:
        if self._full:
            return outputs.reshape(*self._mask.shape, -1)
        out = outputs.new_zeros(*self._mask.shape, outputs.shape[-1])
        out[self._on_device(self._mask)] = outputs
        return out

    def _with_past(self, out: Tensor) -> Tensor:
        if not self.chain.memory:
            return out
        if self.past is None:
            self.past = out.new_zeros(self.chain.memory, *out.shape[1:])
        return torch.cat([self.past, out])

    def _drawn(self, width: int) -> Tensor | None:
        """The increments of the window's steps; drawn once for each step, and dropped behind the window."""
        if not self.chain.noise_size:
            return None
        missing = width if self._noise is None else width - len(self._noise)
        if missing > 0:
            n = self._steps(missing, width - missing) + np.zeros_like(self.begin)
            sample = np.zeros_like(n) + np.arange(len(self.begin))
            new = self.chain.increments(n.ravel(), sample.ravel()).reshape(*n.shape, -1).to(self.x)
            self._noise = new if self._noise is None else torch.cat([self._noise, new])
        assert self._noise is not None
        return self._noise[:width]

    def _judge(self, within: np.ndarray, size: np.ndarray, y: Tensor) -> tuple[Index, Index]:
        """How many steps each sample accepts, and which state to go on from.

        It accepts at least the first one, which is exact, unless it is implicit. It goes on from the window's last
        state; a sample that diverges keeps what did not, in a window half as wide, which then grows by as many steps as
        are accepted, or an eighth: doubled at once it would diverge again every other round of an unstable stretch.
        """
        implicit = self.chain.implicit
        mask, span, position = self._mask, self._span, self._position[: len(size)]
        finite = np.isfinite(size)
        sound = finite.all()
        if not sound:  # rare, and the norm of large finite changes may overflow
            finite = torch.isfinite(y).all(-1).cpu().numpy()
            broken = ~finite[0] & mask[0] & (not implicit)
            if self.settings.lockstep:
                within, finite = within | broken, finite | broken
            else:
                self.failed = self.failed | broken
        leading = np.logical_and.accumulate(within & finite & mask, 0).sum(0)
        stride = np.minimum(leading + (not implicit), span)
        moving = np.where(~within & (position < self._kept), size, 0).max(0)
        diverged = moving > _BLOW_UP * self._peak
        if not sound:
            ends = np.take_along_axis(finite, np.maximum(stride - 1, 0)[None], 0)[0]
            stride = np.maximum(stride - ~ends, 0)  # a step that is not finite is left to be the first of a window
            diverged |= (~finite & mask).any(0)
        if self.settings.lockstep:
            stride = np.full_like(stride, stride.min())
        if implicit:
            self._lost = self._lose(stride, finite)
            diverged |= self._lost
        wild = (~within & (position < self._kept) & (size > _BLOW_UP * self._peak)) | (~finite & mask)
        sane = np.logical_and.accumulate(~wild, 0).sum(0)
        last = np.where(diverged, np.clip(sane, np.minimum(1, span) if implicit else stride, span), span)
        last[self._lost] = 0
        grown = np.minimum(self._cap + np.maximum(stride, np.maximum(self._cap // 8, 1)), self.settings.width)
        self._cap = np.where(diverged, np.maximum(span // 2, 1), grown)
        self._kept = last - stride
        self._peak = np.where((position >= stride) & (position < last), size, 0).max(0)
        return stride, last

    def _lose(self, stride: Index, finite: np.ndarray) -> np.ndarray:
        """Which samples must look for their first step anew; where they already have, they have failed."""
        stands = (stride == 0) & self._mask[0] & ~self.failed
        self._tries = np.where(stands, self._tries + 1, 0)
        lost = stands & (~finite[0] | (self._tries >= PATIENCE))
        self.failed = self.failed | (lost & self._afresh)
        self._tries[lost] = 0
        self._afresh = lost | (self._afresh & stands)
        return lost & ~self.failed

    def _accept(self, y: Tensor, stride: Index) -> None:
        if self.path is None:
            return
        start, steps = int(self.begin[0]), int(stride[0])
        if _alike(stride) and _alike(self.begin):
            self.path[start + 1 : start + 1 + steps] = y[:steps]
            return
        row, sample = np.nonzero(np.arange(len(y))[:, None] < stride)
        step, row, sample = (self._on_device(index) for index in (self.begin[sample] + 1 + row, row, sample))
        self.path[step, sample] = y[row, sample]

    def _remembered(self, width: int) -> Memory:
        """What the iteration remembers of the window's steps, zeros for those that are new."""
        missing = [width - len(part) for part in self._memory]
        return tuple(
            torch.cat([part, part.new_zeros(more, *part.shape[1:])]) if more > 0 else part[:width]
            for part, more in zip(self._memory, missing, strict=True)
        )

    def _remember(self, memory: Memory, stride: Index, last: Index) -> None:
        if _alike(stride) and _alike(last):
            self._memory = tuple(part[int(stride[0]) : int(last[0])] for part in memory)
        else:
            kept = last - stride
            gone = self._on_device(self._position[: int(kept.max())] >= kept)
            moved = [_rows(part, stride, len(gone)) for part in memory]
            self._memory = tuple(
                part.masked_fill_(gone.reshape(*gone.shape, *[1] * (part.dim() - 2)), 0) for part in moved
            )

    def _slide(self, x: Tensor, y: Tensor, out: Tensor, stride: Index, last: Index) -> None:
        """Move to the new begin; keep what is known of the states ahead and guess the rest."""
        if _alike(self.begin) and _alike(stride) and _alike(last) and not self.failed.any():
            self._slide_together(x, y, out, int(stride[0]), int(last[0]))
        else:
            self._slide_apart(x, y, out, stride, last)

    def _slide_together(self, x: Tensor, y: Tensor, out: Tensor, stride: int, last: int) -> None:
        source, memory = max(last - 1, 0), self.chain.memory  # source: the evaluation to go on from
        held = Evaluated(self.begin[None, :1] + source, x[source], out[memory + source])
        if memory:
            self.past = out[stride : stride + memory]
        if self._noise is not None:
            self._noise = self._noise[stride:]
        self.begin = self.begin + stride
        known = last - stride
        self._reach = self._within_reach(np.full_like(self.begin, known))
        width = min(int(self._reach[0]), self.chain.length - int(self.begin[0]))
        states, first = (y, stride - 1) if stride else (torch.cat([x[:1], y]), 0)
        if width <= known:
            self.x = states[first : first + width + 1]
            return
        trail = Trail(x[0], y, np.full_like(self.begin, last))
        ahead = self._guess(states[first + known], held, trail, known, width - known)
        self.x = torch.cat([states[first : first + known + 1], ahead])

    def _slide_apart(self, x: Tensor, y: Tensor, out: Tensor, stride: Index, last: Index) -> None:
        source, memory = np.maximum(last - 1, 0), self.chain.memory
        at = np.minimum(self.begin + source, self.chain.length - 1)  # a sample at its end has no next step
        held = Evaluated(at[None], _rows(x, source, 1)[0], _rows(out, memory + source, 1)[0])
        if memory:
            self.past = _rows(out, stride, memory)
        if self._noise is not None:
            self._noise = _rows(self._noise, stride, len(self._noise) - int(stride.max()))
        self.begin = self.begin + stride
        left = np.where(self.failed, 0, self.chain.length - self.begin)
        self._reach = self._within_reach(last - stride)
        width = int(np.minimum(self._reach, left).max())
        known = np.where(left > 0, last - stride, width)
        missing = width - int(known.min())
        states, first = (y, stride - 1) if stride.min() > 0 else (torch.cat([x[:1], y]), stride)
        if missing <= 0:
            self.x = _rows(states, first, width + 1)
            return
        ahead = self._guess(_rows(states, first + known, 1)[0], held, Trail(x[0], y, last), known, missing)
        position = np.arange(width + 1)[:, None]
        kept = np.minimum(first + position, len(states) - 1)
        index = np.where(position <= known, kept, len(states) + position - known - 1)
        self.x = _take(torch.cat([states, ahead]), np.minimum(index, len(states) + missing - 1))

    def _within_reach(self, known: Index) -> Index:
        width = self.width
        return np.minimum(width, known + self._guessed.most(len(self.history), width))

    def _guess(self, start: Tensor, held: Evaluated, trail: Trail, known: Index | int, count: int) -> Tensor:
        return self._guessed.ahead(self._entering(start, held, trail, known, count))

    def _entering(
        self, start: Tensor, held: Evaluated | None, trail: Trail | None, known: Index | int, count: int
    ) -> Entering:
        noise = self._drawn(int(np.max(known)) + count)
        if noise is not None:
            noise = noise[known : known + count] if isinstance(known, int) else _rows(noise, known, count)
        left = np.where(self.failed, 0, self.chain.length - self.begin)
        wanted = np.maximum(np.minimum(self._reach, left) - known, 0)
        steps = self._steps(count, known)
        return Entering(self.chain, steps, wanted, start, noise, held, trail)


def _alike(index: Index) -> bool:
    return len(index) == 1 or bool((index == index[0]).all())


def _rows(source: Tensor, first: Index, count: int) -> Tensor:
    """Rows ``first[s] + j`` of each sample s, j < count, held at the last row: ``(count, B, ...)``."""
    return _take(source, np.minimum(first + np.arange(count)[:, None], len(source) - 1))


def _take(source: Tensor, index: Index) -> Tensor:
    """Rows ``index[j, s]`` of each sample s."""
    samples = source.shape[1]
    flat = torch.from_numpy((index * samples + np.arange(samples)).ravel()).to(source.device)
    return source.flatten(0, 1).index_select(0, flat).reshape(*index.shape, *source.shape[2:])
