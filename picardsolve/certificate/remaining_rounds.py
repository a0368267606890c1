"""Predicted number of rounds of a solve, from the rounds so far."""

from collections.abc import Sequence

import torch
from torch import Tensor

from picardsolve.results.history import Round
from picardsolve.theory.rounds import fitted_contraction, predicted_rounds

_RECENT = 3  # rounds, at least, that the pace of a sliding window is the mean of


def rounds_expected(history: Sequence[Round], steps: int) -> tuple[float, ...]:
    """After each round, the rounds that the slowest sample of the whole solve is expected to take.

    While steps lie beyond the window, the rest of the grid is expected to take as long per step as the later half of
    the rounds so far. Once the window has reached the end of the grid, estimated errors are expected to decay to the
    allowed ones by the factorial law of Picard iteration, refitted each round (`theory.predicted_rounds`). Where the
    law cannot be fitted, the pace is used again.

    Args:
        history: the rounds.
        steps: of the grid, N.
    """
    rounds = list(history)
    return tuple(expected_after(rounds, k, steps) for k in range(1, len(rounds) + 1))


def expected_after(history: Sequence[Round], k: int, steps: int) -> float:
    """The last of `rounds_expected` after the first k >= 1 rounds."""
    record = history[k - 1]
    left = steps - record.begin - record.stride
    recent = history[min(max(k - _RECENT, 0), k // 2) : k]
    reached, came = _reached(record), recent[0].begin
    if recent[0] is not history[0]:
        came = _reached(history[k - len(recent) - 1])
    to_go = (steps - reached) * len(recent) / (reached - came).double().clamp(min=len(recent) / _RECENT)
    before, excess = None if k == 1 else _excess(history[k - 2]), _excess(record)
    slowest = int(torch.where(left > 0, excess, 0).argmax())
    if before is not None and left[slowest] > 0 and record.begin[slowest] + record.width[slowest] == steps:
        fitted = _by_factorial_law(k, float(before[slowest]), float(excess[slowest]))
        to_go = torch.full_like(to_go, fitted).minimum(to_go)
    return k + float(torch.where(left > 0, to_go.clamp(min=1), 0).ceil().max())


def _reached(record: Round) -> Tensor:
    """The step that each sample has come to, ``(B,)``; behind those accepted steps may wait that are within."""
    accepted = record.begin + record.stride
    if record.estimates is None:
        return accepted
    position = torch.arange(len(record.estimates.excess))[:, None]
    within = (record.estimates.excess <= 1) | (position < record.stride)
    come = (within & (position < record.width)).long().cumprod(0).sum(0)
    return torch.maximum(accepted, record.begin + come)


def _excess(record: Round) -> Tensor:
    """The largest error of a step not accepted, relative to the allowed error, ``(B,)``; infinite if unknown."""
    if record.estimates is None:
        return torch.full(record.begin.shape, torch.inf, dtype=torch.float64)
    excess = record.estimates.excess.nan_to_num(torch.inf)
    position = torch.arange(len(excess))[:, None]
    ahead = (position >= record.stride) & (position < record.width)
    return torch.where(ahead, excess, 0).amax(0)


def _by_factorial_law(done: int, before: float, now: float) -> float:
    if not 0 < now < float("inf") or not 0 < before < float("inf"):
        return float("inf")
    return predicted_rounds(now, fitted_contraction(now, before, done), 1.0, done) - done
