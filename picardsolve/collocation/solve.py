"""A whole solve by collocation, from the validated problem to its `Solution`."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from picardsolve.collocation.estimate import CollocationCertificate
from picardsolve.collocation.events import Event, Reading
from picardsolve.collocation.march import March, Stuck
from picardsolve.collocation.method import Collocation
from picardsolve.collocation.refinement import Unreachable
from picardsolve.collocation.samples import Choice, Posed, Sample, Stiff, run
from picardsolve.collocation.trajectory import Trajectory
from picardsolve.problem.clock import Clock
from picardsolve.problem.row_function import RowFunction
from picardsolve.problem.state import Layout
from picardsolve.problem.terms import ODE, SecondOrderODE, SemilinearODE
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.progress import Progress
from picardsolve.results.solution import Occurrences, Result, Solution, SolveError, Stats

_REACH = 16.0  # units of rounding that a tolerance may ask for
_ROUNDS = 10_000
_NUMBERS = 2**22  # in the states of a drift call: it may hold many more numbers on its way than there are in states
_SCALES = 5.0  # of a segment: more than the time that a drift on it takes to change by its own size


def collocate(
    term: ODE | SecondOrderODE | SemilinearODE,
    layout: Layout,
    y: Tensor,
    ts: Tensor,
    args: object,
    method: Collocation,
    choice: Choice | None,
    tolerance: Tolerance,
    events: Sequence[Event],
    max_batch: int | None,
    only_last: bool,
    max_rounds: int | None,
    progress: bool,
    throw: bool,
) -> tuple[Solution, Trajectory]:
    """Solve; where gradients are recorded, also look for what the drift has gradients by.

    Args:
        term: what is solved.
        layout: of a sample's state.
        y: ``(B, D)`` where samples start.
        ts: ``(T,)``, or ``(T, B)``: times of the solution.
        args: passed on to the drift; without gradients.
        method: nodes, order and steps.
        choice: the iteration; None: chosen.
        tolerance: of which ``rtol`` and ``atol`` are meant.
        events: to be found.
        max_batch: as in `picardsolve.solve`.
        only_last: whether nothing is asked for but the states at the last time.
        max_rounds: likewise.
        progress: likewise.
        throw: likewise.
    """
    most = max_batch or max(_NUMBERS // layout.size, 1)
    ts, saved = (ts[[0, -1]], ts[-1:]) if only_last else (ts, ts)
    clock = Clock.of(ts, layout)
    noted = [] if torch.is_grad_enabled() else None
    function = RowFunction(*("drift", term.drift, layout, clock, args, term.takes), max_batch=most, parameters=noted)  # pyright: ignore
    readings = [[Reading(event, layout, clock, function.args_of(i)) for event in events] for i in range(layout.batch)]
    samples = _posed(term, layout, y, ts, tolerance, method, choice, readings)

    def drift(t: np.ndarray, states: np.ndarray, sample: np.ndarray) -> np.ndarray:
        on = {"device": layout.device, "dtype": layout.compute_dtype}
        lengths = [segment.h for each in samples if not each.over for segment in each.refinement.march.queue]
        clock.resolves(float(np.abs(t).max()), _SCALES * min(lengths, default=np.inf))
        with torch.no_grad():
            rows = function(torch.from_numpy(t), torch.from_numpy(states).to(**on), torch.from_numpy(sample))
        return rows.to("cpu", torch.float64).numpy()

    with Progress(100, progress, "%") as bar:
        update = partial(_show, bar, samples) if progress else lambda rounds: None
        rounds, width = run(samples, drift, max_rounds or _ROUNDS, update)
    steps = max(len(sample.refinement.march.accepted) for sample in samples)
    stats = Stats(steps, rounds, function.evaluations, function.calls, width)
    trajectory = Trajectory(samples, function, tuple(noted or ()))
    return _finished(trajectory, saved, stats, len(events), throw), trajectory


def _posed(
    term: ODE | SecondOrderODE | SemilinearODE,
    layout: Layout,
    y: Tensor,
    ts: Tensor,
    tolerance: Tolerance,
    method: Collocation,
    choice: Choice | None,
    readings: Sequence[Sequence[Reading]],
) -> list[Sample]:
    unit = torch.finfo(layout.dtype).eps
    starts, grid = y.to("cpu", torch.float64).numpy(), ts.numpy()
    rtol, atol = (_by_component(value, starts.shape) for value in (tolerance.rtol, tolerance.atol))
    samples = []
    for i, start in enumerate(starts):
        _check_reach(layout, np.abs(start), rtol[i], atol[i])
        times = grid if grid.ndim == 1 else grid[:, i]
        posed = Posed(start, times, rtol[i], atol[i], unit, isinstance(term, SecondOrderODE))
        samples.append(Sample(posed, method, choice, readings[i]))
    return samples


def _by_component(value: float | Tensor, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(value.cpu() if isinstance(value, Tensor) else value, float)
    return np.broadcast_to(values[:, None] if values.ndim == 1 else values, shape)


def _check_reach(layout: Layout, sizes: np.ndarray, rtol: np.ndarray, atol: np.ndarray) -> None:
    """Refuse less than rounding leaves of any component at the start; of one that is 0 nothing is known."""
    unit = torch.finfo(layout.dtype).eps
    least = _REACH * unit * sizes
    known = sizes > 0 if sizes.any() else np.ones_like(sizes, bool)
    beyond = np.where(known & (rtol * sizes + atol <= least), sizes, -1.0)
    worst = int(beyond.argmax())
    if beyond[worst] >= 0:
        raise ValueError(
            f"rtol, atol: got {rtol[worst]:g} and {atol[worst]:g}, less than {layout.dtype} can reach with states of "
            f"size {sizes[worst]:.1e}; pass rtol >= {1.1 * _REACH * unit:.1e}, or atol >= "
            f"{max(1.1 * least[worst], 1e-300):.1e}."
        )


def _show(bar: Progress, samples: list[Sample], rounds: int) -> None:
    parts = [sample.refinement.march.reached / sample.refinement.march.span for sample in samples if not sample.over]
    bar.update(int(100 * min(parts, default=1.0)), rounds)


def _finished(trajectory: Trajectory, ts: Tensor, stats: Stats, events: int, throw: bool) -> Solution:
    samples, layout = trajectory.samples, trajectory.function.layout
    failures = [(i, sample) for i, sample in enumerate(samples) if sample.failure is not None or not sample.over]
    result = Result.terminated if any(sample.terminated for sample in samples) else Result.solved
    result, message, time = (result, "", None) if not failures else _explained(*failures[0], layout)
    solution = Solution(
        ts,
        layout.unpack_path(trajectory.states(ts)),
        result,
        stats,
        notes=tuple(note for sample in samples for note in _notes(sample)),
        events=tuple(_occurrences(samples, layout, event) for event in range(events)),
        dense=trajectory.course,
        _certified=partial(CollocationCertificate.of, samples, layout),
    )
    if throw and failures:
        raise SolveError(message, solution, time=time)
    return solution


def _occurrences(samples: list[Sample], layout: Layout, event: int) -> Occurrences | tuple[Occurrences, ...]:
    """Of an event, in each sample."""
    out = []
    for sample in samples:
        found = [] if sample.refinement.watch is None else sample.refinement.watch.found[event]
        times = sample.posed.user_clock(np.array([t for t, _ in found]))
        states = np.array([state for _, state in found]).reshape(len(found), -1 if found else layout.size)
        rows = torch.from_numpy(states).to(layout.device, layout.compute_dtype)
        out.append(Occurrences(torch.from_numpy(times), layout.unpack(rows)))
    return tuple(out) if layout.batched else out[0]


def _notes(sample: Sample) -> list[str]:
    march = sample.refinement.march
    again = sample.refinement.marches - 1
    said = [f"{sample.used} iteration on {march.nodes.n} {march.nodes.kind} nodes", *sample.notes]
    return said + ([f"solved again {again} times to a sharper tolerance, for errors grow"] if again else [])


def _explained(i: int, sample: Sample, layout: Layout) -> tuple[Result, str, float]:
    """What went wrong with a sample: the result, the sentence and the time."""
    march, posed, failure = sample.refinement.march, sample.posed, sample.failure
    time = float(posed.ts[0] + posed.sign * march.reached)
    which = f"Sample {i}: " if layout.batched else ""
    if isinstance(failure, Unreachable):
        said = f"{which}errors grow so much that {_reachable(posed, failure.factor)} can be reached."
        return Result.unreachable, f"{said} {Result.unreachable.value}", time
    if isinstance(failure, Stiff):
        said = f"{which}{failure} rounds are foreseen; t = {time:g} was reached. {Result.stiff.value}"
        return Result.stiff, said, time
    if not isinstance(failure, Stuck):
        return Result.max_rounds, f"{which}t = {time:g} was reached. {Result.max_rounds.value}", time
    bad = march.not_finite
    largest, grown = _growth(march)
    if bad is not None:
        at = float(posed.ts[0] + posed.sign * bad)
        result, said = Result.nonfinite_drift, f"{which}the drift is not finite at t = {at:.6g}."
    elif grown > 1e4:
        result, said = Result.diverged, f"{which}the state grows to {largest:.1e} at t = {time:.6g}."
    else:
        result, said = Result.unresolved, f"{which}no step is short enough at t = {time:.6g}."
    return result, f"{said} {result.value}", time


def _reachable(posed: Posed, factor: float) -> str:
    """What tolerance a solve could have held."""
    rtol, atol = (posed.rtol * factor).max(), (posed.atol * factor).max()
    if not rtol < 1 or not np.isfinite(factor):
        return "not one digit"
    least = (posed.atol * factor).min()
    of_several = f"{least:.1e} to " if least < atol else ""
    return f"rtol={rtol:.1e}, atol={of_several}{atol:.1e} is what"


def _growth(march: March) -> tuple[float, float]:
    """The largest value of the component that has grown the most since half of the time, and by what factor."""
    if not march.accepted:
        return 0.0, 0.0
    early = [segment.scale for segment in march.accepted if segment.end <= march.reached / 2]
    before = np.maximum(np.abs(march.start), np.max([np.zeros_like(march.start), *early], 0))
    now = march.accepted[-1].scale
    factors = now / (before + march.bounds.allowed(before))
    most = int(factors.argmax())
    return float(now[most]), float(factors[most])
