"""A few rounds on a coarser grid, and what they show of the steps: how a solve would go is told from them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from picardsolve.analysis.sightings import Sightings
from picardsolve.fixed_point.error_estimate import ErrorEstimate
from picardsolve.fixed_point.guesses import FrozenSample, guess_for
from picardsolve.fixed_point.iterations import MultiSecant, Secant, iteration_for
from picardsolve.fixed_point.sequential import run
from picardsolve.fixed_point.window import Settings, Window
from picardsolve.integrators import RK4, DriftChain, Euler, Heun, Integrator
from picardsolve.integrators.base import Evaluated, Hold, Rows
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import Denoiser
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.progress import Progress

_WIDTH = 32  # coarse steps in the pilot's window
_ROUNDS = 7
_WINDOWS = 4  # that the pilot may get through, where one does not hold all
_STRETCH = 4.0  # Picard number of a window that so many rounds can deal with
_SETTLED = 0.1  # of the states: a change that is small
_LOOSE = 1e-2  # of the state: an ODE or SDE need not be known any better to see what its steps do

T = TypeVar("T")


@dataclass(frozen=True)
class Seconds:
    """What was measured, warm.

    Attributes:
        step: one step of all samples, with all that the sequential solver does for it.
        call: one evaluation of a window, whatever its rows; ``row``: more for each of them.
        draw: noise for a round; ``drawn``: more for each of its steps.
        sweep: what the pilot's iteration takes for each step of the window.
    """

    step: float
    call: float
    row: float
    draw: float
    drawn: float
    sweep: float


@dataclass(frozen=True)
class Pilot:
    """What was seen of M coarse steps of B samples; NaN where nothing was.

    Attributes:
        at: ``(M + 1,)`` int64: the fine steps that the coarse ones lead from and to; not always as far as the end.
        contraction: ``(K, M, B)`` in each round, ``|dF - dX| / |dX|``: of a change, what Picard does not foresee, h L.
        one_sided: ``(K, M, B)`` ``<dX, dF - dX> / <dX, dX>``.
        gain: ``(K, M, B)`` ``|dF| / |dX|``.
        exponent: ``(B,)`` logarithm of what became of a random change on its way through the steps that were reached.
        unforeseen: ``(K, M, B)`` of a change, what secants did not foresee, by how often it had seen the step.
        guess: ``(M, M + 1, B)`` error of the guess from the evaluation of step m at the state i further on, in units of
            the tolerance.
        first: ``(M + 1, B)`` error of what was foreseen before any evaluation, likewise; None where nothing was.
        unit: ``(M + 1, B)`` the root mean square of a change that is as large as the tolerance.
        size: ``(B,)`` the root mean square of all states, in those units.
        seconds: what calls took.
        calls: of the drift; ``evaluations``: of it at one state.
    """

    at: np.ndarray
    contraction: Tensor
    one_sided: Tensor
    gain: Tensor
    exponent: Tensor
    unforeseen: Tensor
    guess: Tensor
    first: Tensor | None
    unit: Tensor
    size: Tensor
    seconds: Seconds
    calls: int
    evaluations: int


@torch.no_grad()
def fly(problem: Problem, y0: Tensor, integrator: Integrator, tolerance: Tolerance) -> Pilot:
    """Run the pilot: about ten drift calls.

    Args:
        problem: what is to be solved.
        y0: ``(B, D)``.
        integrator: of the solve; on an ODE, in the place of a method of several stages, Euler's is run.
        tolerance: of the solve.
    """
    single = Euler() if isinstance(integrator, Heun | RK4) else integrator
    at, spare = _grid(problem, y0, single)
    chain = single.chain(replace(problem, ts=problem.ts[at]))
    denoiser, usual = isinstance(problem.term, Denoiser), iteration_for(None, chain)
    secants = usual if isinstance(usual, Secant) else MultiSecant()  # of Picard iteration nothing is foreseen
    allowed = tolerance if denoiser else Tolerance(atol=_LOOSE, rtol=_LOOSE)
    guess, stopping = guess_for(None, problem, chain), ErrorEstimate(allowed, chain.length, denoiser)
    path = y0.new_full((chain.length + 1, *y0.shape), torch.nan)
    window = Window(chain, y0, Settings(_width(problem, y0), secants, guess, stopping), path)
    foreseen = window.x.clone() if len(window.x) > 1 else None
    seen, spent = Sightings.none(chain, y0, _ROUNDS), []
    while not window.done and len(spent) < _ROUNDS:
        rows = window.ask()
        outputs, call = _timed(lambda rows=rows: chain.evaluate(rows))
        seen.note(chain, rows, outputs)
        _, sweep = _timed(lambda outputs=outputs: window.tell(outputs))
        seen.compare(window.history[-1])
        spent.append((len(rows.step), call, sweep))
    seconds = _seconds(chain, y0, seen.output[0], spent)
    calls, evaluations = (a + b for a, b in zip(spare, chain.counts(), strict=True))
    states = _states(window, path)
    unit = 1 / tolerance.measure(torch.ones_like(states), states, None)[0]
    hold = "sample" if isinstance(guess, FrozenSample) else "output"
    errors = _guess_errors(chain, hold, seen, states, tolerance)
    first = None if foreseen is None else _first_errors(foreseen, states, tolerance)
    size = (states.square().mean(-1).sqrt() / unit).nanmean(0)
    return Pilot(at, *seen.ratios(states), errors, first, unit, size, seconds, calls, evaluations)


def _width(problem: Problem, y0: Tensor) -> int:
    most = _WIDTH if problem.max_batch is None else max(problem.max_batch // len(y0), 2)
    return min(_WIDTH, most, len(problem.ts) - 1)


def _grid(problem: Problem, y0: Tensor, integrator: Integrator) -> tuple[np.ndarray, tuple[int, int]]:
    """Which times the pilot keeps, ``_width`` steps over all or as many as it can deal with; what finding out cost."""
    length, width = len(problem.ts) - 1, _width(problem, y0)
    at = np.linspace(0, length, width + 1).round().astype(np.int64)
    chain = integrator.chain(replace(problem, ts=problem.ts[at]))
    run(chain, y0, None, Progress(1, False), 0, 1)  # the first call of many is slow
    if not isinstance(problem.term, Denoiser):
        number = width * _contraction(chain, y0)
        if number > _STRETCH:
            stride = max(int(length / width * _STRETCH / number), 1)
            at = np.arange(0, min(length, _WINDOWS * width * stride) + 1, stride)
    return at, chain.counts()


def _contraction(chain: DriftChain, y0: Tensor) -> float:
    """``|dF - dX| / |dX|`` of the first step, after two steps of power iteration from changes small against ``y0``."""
    sample = np.arange(len(y0))
    step, small = np.zeros_like(sample), torch.finfo(y0.dtype).eps ** 0.5 * (1 + y0.abs().amax(-1, keepdim=True))
    generator = torch.Generator().manual_seed(0)
    along = torch.randn(y0.shape, generator=generator, dtype=torch.float64).to(y0)
    largest, base = 0.0, None
    for _ in range(2):
        along = small * along / along.abs().amax(-1, keepdim=True)
        state = torch.cat([y0, y0 + along]) if base is None else y0 + along
        many = len(state) // len(y0)
        rows = Rows(np.tile(step, many), np.tile(sample, many), state)
        images = chain.step(rows)[0]
        if base is None:
            base, images = images[: len(y0)], images[len(y0) :]
        excess = images - base - along
        ratio = excess.norm(dim=-1) / along.norm(dim=-1)
        largest = max(largest, float(ratio.nan_to_num(0, 0, 0).max()))  # of a sample that is not finite, nothing
        along = torch.where(excess.abs().amax(-1, keepdim=True) > 0, excess, along)
    return largest


def _states(window: Window, path: Tensor) -> Tensor:
    """The states that are about known, ``(M + 1, B, D)``: accepted, or hardly changed by the last round; NaN others."""
    states, last = path.clone(), window.history[-1]
    size = path[path.isfinite().all(-1)].square().mean().sqrt()
    for sample, begin in enumerate(window.begin):
        shift = int(last.stride[sample])
        moved = last.increments[shift : int(last.width[sample]), sample].to(size)
        count = int((moved < _SETTLED * size).long().cumprod(0).sum())
        states[begin : begin + count + 1, sample] = window.x[: count + 1, sample]
    return states


def _guess_errors(chain: DriftChain, hold: Hold, seen: Sightings, states: Tensor, tolerance: Tolerance) -> Tensor:
    """Guess from each step's evaluation to the end, and see how far off that is."""
    length, samples = chain.length, states.shape[1]
    errors = torch.full((length, length + 1, samples), torch.nan, dtype=torch.float64)
    known = states.isfinite().all(-1).any(-1)
    last = int(known.nonzero()[-1])
    everyone = np.arange(samples)
    noise = None
    if chain.noise_size:
        n = np.repeat(np.arange(last), samples)
        noise = chain.increments(n, np.tile(everyone, last)).to(states).reshape(last, samples, -1)
    for m in range(last):
        source = Evaluated(np.full((1, samples), m), seen.state[m], seen.output[m])
        n = np.arange(m, last)[:, None]
        ahead = chain.extend(n, hold, states[m].clone(), source, None if noise is None else noise[m:])
        off = ahead - states[m + 1 : last + 1]
        errors[m, 1 : last + 1 - m] = tolerance.measure(off, states[m + 1 : last + 1], None)[0].double().cpu()
    return errors


def _first_errors(foreseen: Tensor, states: Tensor, tolerance: Tolerance) -> Tensor:
    return tolerance.measure(foreseen - states[: len(foreseen)], states[: len(foreseen)], None)[0].double().cpu()


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    began = perf_counter()
    result = call()
    if isinstance(result, Tensor) and result.device.type != "cpu":
        result.reshape(-1)[:1].tolist()  # a device goes on computing behind our back
    return result, perf_counter() - began


def _seconds(chain: DriftChain, y0: Tensor, outputs: Tensor, spent: list[tuple[int, float, float]]) -> Seconds:
    """``t(w) = call + row w`` through the least times of one step and of the widest round."""
    samples, widest = len(y0), max(rows for rows, _, _ in spent)
    everyone, steps = np.arange(samples), widest // samples
    rows = Rows(np.zeros_like(everyone), everyone, y0)
    step = min(_timed(lambda: run(chain, y0, None, Progress(1, False), 0, 1))[1] for _ in range(2))
    rest = _least(lambda: chain.image(rows, outputs))
    one = min(max(step - rest, 0.0), *(call for count, call, _ in spent if count == samples), step)
    wide = min(call for count, call, _ in spent if count == widest)
    sweep = min(sweep for count, _, sweep in spent if count == widest)
    row = max(wide - one, 0.0) / (widest - samples) if steps > 1 else 0.0
    draw = drawn = 0.0
    if chain.noise_size:
        n = np.repeat(np.arange(steps), samples)
        draw = _least(lambda: chain.increments(rows.step, rows.sample))
        many = _least(lambda: chain.increments(n, np.tile(everyone, steps)))
        drawn = max(many - draw, 0.0) / max(steps - 1, 1)
    return Seconds(step, max(one - row * samples, 0.0), row, draw, drawn, sweep / steps)


def _least(call: Callable[[], object]) -> float:
    return min(_timed(call)[1] for _ in range(3))
