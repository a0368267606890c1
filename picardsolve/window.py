"""The sliding window: the one loop of this library, as a state machine that is asked and told.

    window = Window(chain, y0, settings)
    while not window.done:
        rows = window.ask()                      # which states, at which steps
        window.tell(chain.evaluate(rows))        # what the drift made of them: one round

``tell`` sweeps (the iteration), tests (the tolerance), slides, and guesses the states that enter.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from picardsolve.guesses import Guess
from picardsolve.integrators.base import Chain, Evaluated, Rows
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
        begin: ``(B,)`` int64 on the CPU: steps accepted so far.
        failed: ``(B,)`` whether a sequential step of the sample was not finite.
        path: ``(N + 1, B, D)`` accepted states, NaN where there are none yet; None if they are not kept.
        history: one record per round.
    """

    chain: Chain
    x: Tensor
    settings: Settings
    path: Tensor | None = None
    begin: Tensor = field(init=False)
    failed: Tensor = field(init=False)
    history: list[Round] = field(init=False, default_factory=list)

    def __post_init__(self):
        y0, samples = self.x, len(self.x)
        copies = min(self.settings.width, self.chain.length) if self.settings.guess.hold is None else 0
        self.x = y0.expand(copies + 1, *y0.shape)
        if self.path is not None:
            self.path[0] = y0
        self.begin = torch.zeros(samples, dtype=torch.int64)
        self.failed = torch.zeros(samples, dtype=torch.bool)
        self._cap = torch.full((samples,), self.settings.width)  # the width that divergence has left
        self._kept = torch.zeros(samples, dtype=torch.int64)  # states ahead that an earlier round has swept
        self._peak = torch.zeros(samples)  # and the largest change among them, in that round
        self._past: Tensor | None = None
        self._noise: Tensor | None = None
        self._mask = torch.zeros(0, samples, dtype=torch.bool)

    @property
    def done(self) -> bool:
        """Whether every sample has reached the end of the grid, or failed."""
        return bool((self.failed | (self.begin == self.chain.length)).all())

    def ask(self) -> Rows:
        """The rows of the next round. Without a guess yet the window is one step: the exact first one."""
        span = torch.minimum(self._cap, self.chain.length - self.begin).masked_fill(self.failed, 0)
        span = span.clamp(max=len(self.x) - 1 if len(self.x) > 1 else 1)
        position = torch.arange(int(span.max()))[:, None]
        self._mask = position < span
        step, sample = self._steps(len(position)), torch.arange(len(span)).expand(len(position), -1)
        if self._mask.all():
            return Rows(step.flatten(), sample.flatten(), self.x[: len(position)].flatten(0, 1))
        mask = self._mask.to(self.x.device)
        return Rows(step[self._mask], sample[self._mask], self.x[: len(position)][mask])

    def tell(self, outputs: Tensor) -> None:
        """Take the outputs of the rows that were asked for, shape ``(R, K)``."""
        x, width = self._entered(), len(self._mask)
        out = self._arranged(outputs)
        steps = self.chain.steps(self._steps(width), x[:-1], self._with_past(out), self._drawn(width))
        y, change, residual = self.settings.iteration.sweep(steps, x)
        within, size = self.settings.tolerance.within(change, y, steps.noise_scale())
        within, size = within.cpu(), size.cpu()  # the round's one wait for the device
        stride, last = self._judge(within, size, y)
        self._record(stride, size, residual)
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
        self.begin.fill_(step)
        self._kept.fill_(0)
        self.x, self._noise, self._past = y[None], None, None

    # ---- tell, step by step

    def _entered(self) -> Tensor:
        """The old states of the window and the one after it."""
        width = len(self._mask)
        if len(self.x) > width:
            return self.x[: width + 1]
        return torch.cat([self.x, self.x[-1:]])

    def _steps(self, count: int, ahead: Tensor | int = 0) -> Tensor:
        return (self.begin + ahead + torch.arange(count)[:, None]).clamp(max=self.chain.length - 1)

    def _arranged(self, outputs: Tensor) -> Tensor:
        if self._mask.all():
            return outputs.reshape(*self._mask.shape, -1)
        out = outputs.new_zeros(*self._mask.shape, outputs.shape[-1])
        out[self._mask.to(out.device)] = outputs
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
            kept = [] if self._noise is None else [self._noise]
            n = self._steps(missing, width - missing)
            sample = torch.arange(n.shape[1]).expand_as(n)
            new = self.chain.increments(n.flatten(), sample.flatten()).reshape(*n.shape, -1).to(self.x)
            self._noise = torch.cat([*kept, new])
        assert self._noise is not None
        return self._noise[:width]

    def _judge(self, within: Tensor, size: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """How many steps each sample accepts, at least the exact first one, and which state to go on from.

        Normally that is the window's last; a sample that diverges keeps what it accepted, in a window half as wide.
        """
        span, position = self._mask.sum(0), torch.arange(len(size))[:, None]
        finite = torch.isfinite(size)
        if not bool(finite[0].all()):
            broken = ~torch.isfinite(y[0]).all(-1).cpu() & self._mask[0]
            if self.settings.lockstep:
                within, finite = within | broken, finite | broken
            else:
                self.failed |= broken
        leading = (within & finite & self._mask).long().cumprod(0).sum(0)
        stride = torch.minimum(leading + 1, span).masked_fill(self.failed, 0)
        if self.settings.lockstep:
            stride = stride.clamp(max=int(stride.min()))
        moving = size.masked_fill(within | ~self._mask, 0)
        grown = moving.masked_fill(position >= self._kept, 0).amax(0) > _BLOW_UP * self._peak
        diverged = (~finite & self._mask).any(0) | (grown & (self._kept > 0))
        last = torch.where(diverged, stride, span)
        self._cap = torch.where(diverged, span // 2, 2 * self._cap).clamp(1, self.settings.width)
        self._kept = last - stride
        ahead = (position >= stride) & (position < last)
        self._peak = size.masked_fill(~ahead, 0).amax(0)
        return stride, last

    def _record(self, stride: Tensor, size: Tensor, residual: Tensor | None) -> None:
        scale = self.x.shape[-1] ** -0.5
        norms = None if residual is None else torch.linalg.vector_norm(residual, dim=-1).cpu() * scale
        self.history.append(Round(self.begin.clone(), stride, self._mask.sum(0), size, norms))

    def _accept(self, y: Tensor, stride: Tensor) -> None:
        if self.path is None:
            return
        start, steps = int(self.begin[0]), int(stride[0])
        if bool((stride == steps).all() and (self.begin == start).all()):
            self.path[start + 1 : start + 1 + steps] = y[:steps]
            return
        taken = torch.arange(len(y))[:, None] < stride
        step = (self.begin + 1 + torch.arange(len(y))[:, None])[taken]
        sample = torch.arange(len(stride)).expand_as(taken)[taken]
        self.path[step.to(y.device), sample.to(y.device)] = y[taken.to(y.device)]

    def _slide(self, x: Tensor, y: Tensor, out: Tensor, stride: Tensor, last: Tensor) -> None:
        """Move to the new begin; keep what is known of the states ahead and guess the rest."""
        evaluated = (last - 1).clamp(min=0)
        held = Evaluated(self.begin + evaluated, _rows(x, evaluated, 1)[0], _rows(out, evaluated, 1)[0])
        if self.chain.memory:
            self._past = _rows(self._with_past(out), stride, self.chain.memory)
        if self._noise is not None:
            self._noise = _rows(self._noise, stride, len(self._noise) - int(stride.max()))
        self.begin = self.begin + stride
        left = (self.chain.length - self.begin).masked_fill(self.failed, 0)
        width = min(self.settings.width, int(left.max()))
        known = torch.where(left > 0, last - stride, width)
        missing = width - int(known.min())
        states, first = (y, stride - 1) if int(stride.min()) > 0 else (torch.cat([x[:1], y]), stride)
        if missing <= 0:
            self.x = _rows(states, first, width + 1)
            return
        ahead = self._guess(_rows(states, first + known, 1)[0], held, known, missing)
        begin, keep = int(first[0]), int(known[0]) + 1
        if bool((first == begin).all() and (known == keep - 1).all()):
            self.x = torch.cat([states[begin : begin + keep], ahead])
            return
        position = torch.arange(width + 1)[:, None]
        index = torch.where(
            position <= known, (first + position).clamp(max=len(states) - 1), len(states) + position - known - 1
        )
        self.x = _take(torch.cat([states, ahead]), index.clamp(max=len(states) + missing - 1))

    def _guess(self, start: Tensor, held: Evaluated, known: Tensor, count: int) -> Tensor:
        hold = self.settings.guess.hold
        if hold is None:
            return start.expand(count, *start.shape)
        noise = self._drawn(int(known.max()) + count)
        if noise is not None:
            noise = _rows(noise, known, count)
        return self.chain.extend(self._steps(count, known), hold, start, held, noise)


def _rows(source: Tensor, first: Tensor, count: int) -> Tensor:
    """Rows ``first[s] + j`` of each sample s, j < count, held at the last row: ``(count, B, ...)``."""
    start = int(first[0])
    if start + count <= len(source) and bool((first == start).all()):
        return source[start : start + count]
    return _take(source, (first + torch.arange(count)[:, None]).clamp(max=len(source) - 1))


def _take(source: Tensor, index: Tensor) -> Tensor:
    """Rows ``index[j, s]`` of each sample s."""
    samples = source.shape[1]
    flat = (index * samples + torch.arange(samples)).flatten().to(source.device)
    return source.flatten(0, 1).index_select(0, flat).reshape(*index.shape, *source.shape[2:])
