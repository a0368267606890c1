"""The sliding window: the one loop of this library, as a state machine that is asked and told.

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

from picardsolve.guesses import Guess
from picardsolve.integrators.base import Chain, Evaluated, Index, Rows
from picardsolve.iterations.base import Iteration
from picardsolve.solution import Round
from picardsolve.tolerances import Tolerance

_BLOW_UP = 10.0  # growth of the largest change in one round that counts as divergence


@dataclass(frozen=True)
class Settings:
    """What decides how many rounds a solve takes.

    Attributes:
        width: steps in the window.
        lockstep: all samples share one position, that of the slowest.
    """

    width: int
    iteration: Iteration
    guess: Guess
    tolerance: Tolerance
    lockstep: bool = False


@dataclass
class Window:
    """The state of one solve.

    Attributes:
        x: ``(width + 1, B, D)``: row j of sample s is its state at step ``begin[s] + j``; row 0 is accepted.
        begin: ``(B,)`` steps accepted so far.
        failed: ``(B,)`` whether a sequential step of the sample was not finite.
        path: ``(N + 1, B, D)`` accepted states, NaN where there are none yet; None if they are not kept.
        history: one record per round.
    """

    chain: Chain
    x: Tensor
    settings: Settings
    path: Tensor | None = None
    begin: Index = field(init=False)
    failed: np.ndarray = field(init=False)
    history: list[Round] = field(init=False, default_factory=list)

    def __post_init__(self):
        y0, samples = self.x, len(self.x)
        copies = min(self.settings.width, self.chain.length) if self.settings.guess.hold is None else 0
        self.x = y0.expand(copies + 1, *y0.shape)
        if self.path is not None:
            self.path[0] = y0
        self.begin = np.zeros(samples, dtype=np.int64)
        self.failed = np.zeros(samples, dtype=bool)
        self._cap = np.full(samples, self.settings.width)  # the width that divergence has left
        self._kept = np.zeros(samples, dtype=np.int64)  # states ahead that an earlier round has swept
        self._peak = np.zeros(samples)  # and the largest change among them, in that round
        self._past: Tensor | None = None
        self._noise: Tensor | None = None
        self._mask = np.zeros((0, samples), dtype=bool)
        self._scratch = y0[:0]  # allocating a window anew costs as much as computing one

    @property
    def done(self) -> bool:
        """Whether every sample has reached the end of the grid, or failed."""
        return bool((self.failed | (self.begin == self.chain.length)).all())

    def ask(self) -> Rows:
        """The rows of the next round. Without a guess yet the window is one step: the exact first one."""
        span = np.where(self.failed, 0, np.minimum(self._cap, self.chain.length - self.begin))
        span = np.minimum(span, max(len(self.x) - 1, 1))
        width = int(span.max())
        self._mask = np.arange(width)[:, None] < span
        step = self._steps(width) + np.zeros_like(span)
        sample = np.zeros_like(step) + np.arange(len(span))
        if self._mask.all():
            return Rows(step.ravel(), sample.ravel(), self.x[:width].flatten(0, 1))
        return Rows(step[self._mask], sample[self._mask], self.x[:width][self._on_device(self._mask)])

    def tell(self, outputs: Tensor) -> None:
        """Take the outputs of the rows that were asked for, shape ``(R, K)``."""
        x, width = self._old_states(), len(self._mask)
        out = self._arranged(outputs)
        steps = self.chain.steps(self._steps(width), x[:-1], self._with_past(out), self._drawn(width))
        y, change, residuals = self.settings.iteration.sweep(steps, x, self._scratch_of(x[1:]))
        within, size = self.settings.tolerance.within(change, y, steps.noise_scale())
        stride, last = self._judge(within.cpu().numpy(), size.cpu().numpy(), y)  # the round's one wait for the device
        self.history.append(Round.of(self.begin, stride, self._mask.sum(0), size, residuals))
        self._accept(y, stride)
        self._slide(x, y, out, stride, last)

    def narrow(self, width: int) -> None:
        """Announce that only the first ``width`` steps of what was asked for will be told."""
        self._mask = self._mask[:width]

    def correct(self, states: Tensor) -> None:
        """Put the states that were really evaluated, ``(W, B, D)``, in the place of those that were asked for."""
        self.x = torch.cat([states, self.x[len(states) :]])

    def restart(self, step: int, y: Tensor) -> None:
        """Forget the states ahead and go on from state ``y`` (B, D) at ``step``, all samples alike."""
        self.begin, self._kept = np.full_like(self.begin, step), np.zeros_like(self._kept)
        self.x, self._noise, self._past = y[None], None, None

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
        return np.minimum(first + np.arange(count)[:, None], self.chain.length - 1)

    def _on_device(self, host: np.ndarray) -> Tensor:
        return torch.from_numpy(host).to(self.x.device)

    def _arranged(self, outputs: Tensor) -> Tensor:
        if self._mask.all():
            return outputs.reshape(*self._mask.shape, -1)
        out = outputs.new_zeros(*self._mask.shape, outputs.shape[-1])
        out[self._on_device(self._mask)] = outputs
        return out

    def _with_past(self, out: Tensor) -> Tensor:
        if not self.chain.memory:
            return out
        if self._past is None:
            self._past = out.new_zeros(self.chain.memory, *out.shape[1:])
        return torch.cat([self._past, out])

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
        """How many steps each sample accepts, at least the exact first one, and which state to go on from.

        Normally that is the window's last; a sample that diverges keeps what it accepted, in a window half as wide.
        """
        mask, span, position = self._mask, self._mask.sum(0), np.arange(len(size))[:, None]
        finite = np.isfinite(size)
        if not finite.all():  # rare, and the norm of large finite changes may overflow
            finite = torch.isfinite(y).all(-1).cpu().numpy()
            broken = ~finite[0] & mask[0]
            if self.settings.lockstep:
                within, finite = within | broken, finite | broken
            else:
                self.failed = self.failed | broken
        leading = np.logical_and.accumulate(within & finite & mask, 0).sum(0)
        stride = np.minimum(leading + 1, span)
        ends = np.take_along_axis(finite, np.maximum(stride - 1, 0)[None], 0)[0]
        stride = np.maximum(stride - ~ends, 0)  # a step that is not finite is left to be the first of a window
        if self.settings.lockstep:
            stride = np.full_like(stride, stride.min())
        moving = np.where(mask & ~within & (position < self._kept), size, 0).max(0)
        diverged = (~finite & mask).any(0) | (moving > _BLOW_UP * self._peak)
        last = np.where(diverged, stride, span)
        self._cap = np.clip(np.where(diverged, span // 2, 2 * self._cap), 1, self.settings.width)
        self._kept = last - stride
        self._peak = np.where((position >= stride) & (position < last), size, 0).max(0)
        return stride, last

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

    def _slide(self, x: Tensor, y: Tensor, out: Tensor, stride: Index, last: Index) -> None:
        """Move to the new begin; keep what is known of the states ahead and guess the rest."""
        source = np.maximum(last - 1, 0)  # the evaluation to go on from
        held = Evaluated((self.begin + source)[None], _rows(x, source, 1)[0], _rows(out, source, 1)[0])
        if self.chain.memory:
            self._past = _rows(self._with_past(out), stride, self.chain.memory)
        if self._noise is not None:
            self._noise = _rows(self._noise, stride, len(self._noise) - int(stride.max()))
        self.begin = self.begin + stride
        left = np.where(self.failed, 0, self.chain.length - self.begin)
        width = min(self.settings.width, int(left.max()))
        known = np.where(left > 0, last - stride, width)
        missing = width - int(known.min())
        states, first = (y, stride - 1) if stride.min() > 0 else (torch.cat([x[:1], y]), stride)
        if missing <= 0:
            self.x = _rows(states, first, width + 1)
            return
        ahead = self._guess(_rows(states, first + known, 1)[0], held, known, missing)
        if _alike(first) and _alike(known):
            self.x = torch.cat([states[int(first[0]) : int(first[0] + known[0]) + 1], ahead])
            return
        position = np.arange(width + 1)[:, None]
        kept = np.minimum(first + position, len(states) - 1)
        index = np.where(position <= known, kept, len(states) + position - known - 1)
        self.x = _take(torch.cat([states, ahead]), np.minimum(index, len(states) + missing - 1))

    def _guess(self, start: Tensor, held: Evaluated, known: Index, count: int) -> Tensor:
        hold = self.settings.guess.hold
        if hold is None:
            return start.expand(count, *start.shape)
        noise = self._drawn(int(known.max()) + count)
        if noise is not None:
            noise = _rows(noise, known, count)
        return self.chain.extend(self._steps(count, known), hold, start, held, noise)


def _alike(index: Index) -> bool:
    return len(index) == 1 or bool((index == index[0]).all())


def _rows(source: Tensor, first: Index, count: int) -> Tensor:
    """Rows ``first[s] + j`` of each sample s, j < count, held at the last row: ``(count, B, ...)``."""
    if _alike(first) and first[0] + count <= len(source):
        return source[int(first[0]) : int(first[0]) + count]
    return _take(source, np.minimum(first + np.arange(count)[:, None], len(source) - 1))


def _take(source: Tensor, index: Index) -> Tensor:
    """Rows ``index[j, s]`` of each sample s."""
    samples = source.shape[1]
    flat = torch.from_numpy((index * samples + np.arange(samples)).ravel()).to(source.device)
    return source.flatten(0, 1).index_select(0, flat).reshape(*index.shape, *source.shape[2:])
