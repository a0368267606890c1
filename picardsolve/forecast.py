"""How many rounds a solve will take, from those it has taken."""

from collections.abc import Sequence

import torch
from torch import Tensor

from picardsolve.history import Round

_RECENT = 3  # rounds that the pace of a sliding window is taken from


def predicted_rounds(history: Sequence[Round], steps: int) -> tuple[float, ...]:
    """After each round, the rounds that the whole solve is expected to take; the slowest sample's.

    While steps lie beyond the window, the rest of the grid goes by at the pace of the last rounds. Once the window
    reaches its end, what is left is how far the estimated errors are above what was allowed, ``x``. It falls from round
    to round by the factorial law of Picard iteration, ``x[k+1] / x[k] = L / (k + 1)`` (methods C6), with L refitted
    each round; where it is not known, by the pace again.

    Args:
        history: the rounds.
        steps: of the grid, N.
    """
    found: list[float] = []
    excess: Tensor | None = None
    for k, record in enumerate(history, 1):
        done = record.begin + record.stride
        left = steps - done
        before, excess = excess, _excess(record)
        recent = history[max(k - _RECENT, 0) : k]
        pace = torch.stack([r.stride for r in recent]).double().mean(0)
        to_go = left / pace
        if before is not None:
            ending = (record.begin + record.width == steps) & (left > 0)
            to_go = torch.where(ending, torch.minimum(_by_factorial_law(k, before, excess), to_go), to_go)
        to_go = torch.where(left > 0, to_go.clamp(min=1), 0).ceil()
        found.append(k + float(to_go.max()))
    return tuple(found)


def _excess(record: Round) -> Tensor:
    """The largest error among the steps not accepted, in units of what is allowed, ``(B,)``; infinite if unknown."""
    if record.estimates is None:
        return torch.full(record.begin.shape, torch.inf, dtype=torch.float64)
    excess = record.estimates.excess.double().nan_to_num(torch.inf)
    position = torch.arange(len(excess))[:, None]
    ahead = (position >= record.stride) & (position < record.width)
    return torch.where(ahead, excess, 0).amax(0)


def _by_factorial_law(k: int, before: Tensor, now: Tensor, most: int = 1000) -> Tensor:
    """The fewest m with ``now prod_{i=1}^{m} L / (k + i) <= 1``, ``L = k now / before``."""
    number = (k * now / before).nan_to_num(torch.inf, torch.inf)
    left, found = now.clone(), torch.full_like(now, torch.inf)
    for m in range(1, most):
        left = left * number / (k + m)
        found = torch.where((left <= 1) & found.isinf(), m, found)
        if bool((found.isfinite() | number.isinf() | now.isinf()).all()):
            break
    return found
