"""A second look at steps: two steps of half the length in the place of each, all of them at once."""

import numpy as np
import torch
from torch import Tensor

from picardsolve.embedded.pair import Coefficients, Pair
from picardsolve.embedded.path import Steps
from picardsolve.embedded.rows import Asks, Rows
from picardsolve.embedded.stages import Buffered
from picardsolve.problem.index import on_device


def halved(
    steps: Steps,
    some: np.ndarray,
    pair: Pair,
    coefficients: Coefficients,
    beside: Tensor | None,
    time_dtype: torch.dtype,
) -> Asks[tuple[Tensor, Tensor | None]]:
    """Signed errors of some steps, ``(Q, D)``, and what becomes of displacements ``beside`` of where they begin.

    It asks as often as two steps do, less once without displacements.

    Args:
        steps: of a path.
        some: ``(Q,)`` numbers of steps.
        pair: the method.
        coefficients: of the method.
        beside: ``(Q, D)``; None: there are none.
        time_dtype: in which the drift gets times.
    """
    node, stages = steps.begins[some], Buffered(coefficients)
    at = on_device(node, steps.y.device)
    begin, reached, sample = steps.t[node], steps.inside[node + 1], steps.sample[node]
    y, slope = steps.y.index_select(0, at), steps.slope.index_select(0, at)
    if beside is not None:
        other = yield Rows(torch.from_numpy(steps.inside[node]), y + beside, sample)
        y, slope = torch.cat([y, y + beside]), torch.cat([slope, other])
        begin, reached, sample = (np.concatenate([part, part]) for part in (begin, reached, sample))
    half = (reached - begin) / 2
    length = torch.from_numpy(half[:, None]).to(y.device, y.dtype, non_blocking=True)
    for start, last in ((begin, False), (begin + half, True)):
        times = start + np.array(pair.c)[:, None] * half
        times[-2:] = reached if last else times[-1]
        t = torch.from_numpy(times).to(y.device, time_dtype, non_blocking=True)
        stages.begin(y, slope, length)
        for i in range(1, pair.stages):
            y = stages.state(i)
            if last and i == pair.stages - 1:
                break
            slope = yield Rows(t[i], y, sample)
            stages.put(i, slope)
    fine = y[: len(some)]
    errors = (steps.y.index_select(0, at + 1) - fine) / (1 - 0.5**pair.order)
    return errors, None if beside is None else y[len(some) :] - fine
