"""How many rounds a window will take: the window itself, run on the errors that a pilot makes it expect.

The state of a chain of errors is how far a state is from the sequential one, in units of the tolerance. With
``Y[n+1] = F[n] + C (Y[n] - X[n])`` it obeys ``e_Y[n+1] = (J - C) e_X[n] + C e_Y[n]``, and a pilot has measured
the sizes of the factors: what of a change an iteration does not foresee, and what it carries on.
"""

from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from picardsolve.analysis.pilot import Pilot
from picardsolve.fixed_point.error_estimate import ErrorEstimate
from picardsolve.fixed_point.guesses import FrozenOutput
from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.sweep import Memory, Swept
from picardsolve.fixed_point.window import Settings, Window
from picardsolve.integrators.base import Chain, Evaluated, Hold, Index, Steps
from picardsolve.problem.recurrence import arriving, recurrence
from picardsolve.problem.tolerances import Tolerance

_LARGEST = 1e100  # of an error; more is as bad


@dataclass(frozen=True)
class Forecast:
    """What a window is expected to take.

    Attributes:
        rounds: of all samples.
        evaluations: of the drift at one state of one sample.
        far: the largest change expected in a round, in units of the size of the states.
        loop: seconds that a round takes besides the drift's.
    """

    rounds: float
    evaluations: float
    far: float
    loop: float


@dataclass(frozen=True)
class Errors:
    """Factors and guesses for each of N fine steps of B samples, float64.

    Attributes:
        at: the pilot's coarse grid, carried on to the end.
        unforeseen: ``(V, N, B)`` by how often the step has been seen.
        carried: ``(N, B)``.
        direct: ``(N, B)`` ``h L``, by which an error spoils a guess made from it.
        scale: ``(N, B)`` tolerance at a step over that at the next.
        forgets: whether the stop rule believes what the carried factors say.
    """

    pilot: Pilot
    at: np.ndarray
    unforeseen: Tensor
    carried: Tensor
    direct: Tensor
    scale: Tensor
    forgets: bool

    @property
    def length(self) -> int:
        """Steps of the fine grid, N."""
        return len(self.carried)

    def forecast(self, width: int, most: int) -> Forecast:
        """Run the window for up to ``most`` rounds, and take the rest to go on like that."""
        length, samples = self.carried.shape
        chain = ErrorChain(self)
        stopping = ErrorEstimate(Tolerance(atol=1.0), length, self.forgets)
        y0 = torch.zeros(samples, 1, dtype=torch.float64)
        window = Window(chain, y0, Settings(width, Law(), FrozenOutput(), stopping))
        evaluations, spent = 0, []
        while not window.done and len(spent) < most:
            began, chain.guessing = perf_counter(), 0.0
            rows = len(window.ask().step)
            window.tell(torch.zeros(rows, 1, dtype=torch.float64))
            spent.append(perf_counter() - began - chain.guessing)
            evaluations += rows
        peak = torch.stack([record.increments.amax(0) for record in window.history]).amax(0)
        more = length * samples / max(float(window.begin.sum()), 1.0)
        left = length / max(float(window.begin.min()), 1.0)
        return Forecast(
            len(spent) * left,
            evaluations * more,
            float((peak / self.pilot.size.cpu()).max()),
            median(spent),
        )


@dataclass(frozen=True)
class _ErrorSteps(Steps):
    errors: Errors
    n: Index

    def images(self) -> Tensor:
        raise NotImplementedError("errors have a law, no images.")

    def frozen(self, x: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        raise NotImplementedError("errors have a law, no outputs.")

    def passed(self, change: Tensor) -> Tensor:
        return change


class ErrorChain(Chain):
    """Steps of errors; see `Law` for what they do."""

    def __init__(self, errors: Errors):
        self._errors = errors
        self.length = len(errors.carried)
        self._guesses = Guesses(errors.pilot, errors.at)
        self.guessing = 0.0  # seconds, of which a real guess takes next to none

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The steps of a window."""
        return _ErrorSteps(self._errors, n)

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """The errors of a guess: those of the state and the evaluation that it goes on from, and its own."""
        began = perf_counter()
        own = self._guesses.errors(source.step, n + 1)
        self.guessing += perf_counter() - began
        spoilt = _at(self._errors.direct, n) * source.state
        return (start + spoilt.cumsum(0) + own[..., None]).clamp(max=_LARGEST)

    def predict(self, n: Index, start: Tensor, noise: Tensor | None) -> Tensor | None:
        """The errors of the first window, where something was foreseen."""
        first = self._guesses.first(n + 1)
        return None if first is None else first[..., None]


@dataclass(frozen=True)
class Law(Iteration):
    """``e_Y[n+1] = q_n e_X[n] + c_n e_Y[n]``, q_n by how often the step has been seen."""

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """Errors after a sweep, and the changes and residuals that show."""
        assert isinstance(steps, _ErrorSteps)
        errors, n = steps.errors, steps.n
        x = (x - x[:1]).abs()  # a window solves from its first state, whatever error that was left with
        old = x[:-1]
        zero = torch.zeros_like(old)
        before, left = memory or (zero, zero)
        visit = before.long()[..., 0].clamp(max=len(errors.unforeseen) - 1).numpy()
        at, sample = n + 0 * visit, np.arange(visit.shape[1]) + 0 * visit
        unforeseen = errors.unforeseen[visit, at, sample][..., None]
        carried, scale = _at(errors.carried, n).expand_as(old), _at(errors.scale, n).expand_as(old)
        y = recurrence(scale * carried, scale * unforeseen * old).clamp(max=_LARGEST)
        change = torch.hypot(x[1:], y)
        residual = torch.where(before > 0, left, change)[..., 0]
        slope = carried[..., 0] if errors.forgets else None
        return Swept(y, change, residual, slope, (before + 1, unforeseen * arriving(change)))


def _at(table: Tensor, n: Index) -> Tensor:
    """Entries of ``(N, B)`` at steps ``(W, B)`` or ``(W, 1)``: ``(W, B, 1)``."""
    sample = np.arange(table.shape[1])
    return table[n + 0 * sample, sample + 0 * n][..., None]


class Guesses:
    """The pilot's guess errors, between its times and from steps that it did not reach."""

    def __init__(self, pilot: Pilot, at: np.ndarray):
        self._at, self._first = at, pilot.first
        self._log = _filled(pilot.guess.clamp(1e-12, _LARGEST).log(), pilot.guess.isfinite())

    def errors(self, source: Index, state: Index) -> Tensor:
        """``(L, B)`` of states ``(L, B or 1)`` guessed from evaluations at steps ``(1, B)``."""
        samples = self._log.shape[-1]
        sample = np.arange(samples)
        coarse = np.interp(source, self._at, np.arange(len(self._at)))
        m = np.minimum(coarse.astype(int), len(self._log) - 1)
        count = np.diff(self._at)[m]
        distance = np.interp(state, self._at, np.arange(len(self._at))) - coarse
        # an output is right at its own step, so a guess goes wrong half a step late
        elapsed = np.maximum(distance - 0.5 / count, 0) + 0 * sample
        return torch.from_numpy(_power_law(self._log.numpy(), m + 0 * elapsed.astype(int), elapsed, sample))

    def first(self, state: Index) -> Tensor | None:
        """``(L, B)`` of the states of the first window."""
        if self._first is None:
            return None
        coarse = np.interp(state, self._at, np.arange(len(self._at)))
        low = np.minimum(coarse.astype(int), len(self._first) - 2)
        sample = np.arange(self._first.shape[1]) + 0 * low
        low = low + 0 * sample
        share = torch.from_numpy(coarse - low)
        lower, upper = self._first[low, sample], self._first[np.minimum(low + 1, len(self._first) - 1), sample]
        return torch.lerp(lower, upper, share.expand_as(lower)).nan_to_num(0)


def _power_law(log: np.ndarray, m: np.ndarray, elapsed: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Errors after ``elapsed`` coarse steps, from logarithms after i - 1/2 at ``log[m, i]``, i >= 2."""
    position = np.clip(elapsed + 0.5, 2, log.shape[1] - 1)
    low = np.clip(position.astype(int), 2, max(log.shape[1] - 2, 2))
    high = np.minimum(low + 1, log.shape[1] - 1)
    sample = sample + 0 * low
    below, above = log[m, low, sample], log[m, high, sample]
    step = np.log((low + 0.5) / (low - 0.5))
    power = np.clip((above - below) / step, 0.0, 3.0)
    power = np.where(elapsed < 1.5, np.maximum(power, 1.0), power)
    with np.errstate(divide="ignore"):
        return np.exp(np.minimum(below + power * np.log(elapsed / (low - 0.5)), np.log(_LARGEST)))


def _filled(table: Tensor, known: Tensor) -> Tensor:
    """``(M + 1, M + 1, B)``: where a start, or an end, was not reached, the median over the later half of the starts.

    The last row is for all starts behind the pilot.
    """
    table = torch.where(known, table, torch.nan)
    table = torch.cat([table, torch.full_like(table[:1], torch.nan)])
    usual = _late_median(table, table.isfinite().any(1))
    usual = torch.where(usual.isnan(), usual.nan_to_num(-torch.inf).cummax(0).values, usual)
    return torch.where(table.isnan(), usual, table).nan_to_num(
        neginf=np.log(1e-12), posinf=np.log(_LARGEST), nan=np.log(1e-12)
    )


def _late_median(table: Tensor, known: Tensor) -> Tensor:
    """The median of ``(M, ..., B)`` over the later half of what is known, ``(M, B)``, of each sample."""
    late = known.cumsum(0) > known.sum(0) / 2
    late = late.reshape(len(late), *[1] * (table.dim() - 2), -1)
    return torch.where(late, table, torch.nan).nanmedian(0).values


def errors_of(pilot: Pilot, length: int, multi: bool, forgets: bool) -> Errors:
    """The factors of `MultiSecant`, or of Picard iteration, of all ``length`` steps."""
    at = _to_the_end(pilot.at, length)
    steps = len(at) - 1
    count = np.diff(at)
    fine = np.repeat(np.arange(len(count)), count)
    share = torch.from_numpy(count[fine].astype(float))[:, None]
    contraction = _over_time(_typical(pilot.contraction), steps)
    direct = contraction[fine] / share
    if multi:
        unforeseen = pilot.unforeseen.double()
        unforeseen = torch.stack([_over_time(table, steps) for table in _latest(unforeseen)])[:, fine] / share
        carried = _over_time(_typical(pilot.gain), steps).clamp(max=1.3)[fine] ** (1 / share)
    else:
        # changes of a denoiser's Picard iteration turn into the directions that grow most
        worst = _over_time(pilot.contraction.double().nan_to_num(-torch.inf).amax(0), steps)[fine] / share
        unforeseen, carried = (worst if forgets else direct)[None], torch.ones_like(direct)
    unit = _over_time(pilot.unit.double().cpu(), steps + 1)
    coarse = (unit[:-1] / unit[1:])[fine].clamp(1e-6, 1e6) ** (1 / share)
    return Errors(pilot, at, unforeseen, carried, direct, coarse, forgets)


def _typical(rounds: Tensor) -> Tensor:
    """The median over the rounds, ``(M, B)``."""
    return rounds.double().nanmedian(0).values


def _latest(tables: Tensor) -> Tensor:
    """Each visit's, or that of the visit before where it was not measured, ``(V, M, B)``."""
    rows = [tables[0]]
    for table in tables[1:]:
        rows.append(torch.where(table.isfinite(), table, rows[-1]))
    return torch.stack(rows)


def _to_the_end(at: np.ndarray, length: int) -> np.ndarray:
    """A coarse grid, carried on in steps like its last."""
    stride = at[-1] - at[-2]
    return at if at[-1] == length else np.concatenate([at, np.arange(at[-1] + stride, length, stride), [length]])


def _over_time(table: Tensor, steps: int) -> Tensor:
    """``(steps, B)`` with the median over what is known of a sample where a step is not; 0 where none is."""
    table = torch.cat([table, table.new_full((steps - len(table), table.shape[1]), torch.nan)])
    known = table.isfinite()
    table = torch.where(known, table, torch.nan)
    usual = _late_median(table, known)
    usual = torch.where(usual.isnan(), usual.nanmedian().nan_to_num(0), usual)
    return torch.where(known, table, usual)
