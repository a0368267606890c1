"""Gradients with respect to times: states at fixed times move along the drift where the times do."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.embedded.rows import Asks, Rows
from picardsolve.problem.parameters import recordable
from picardsolve.problem.row_function import RowFunction


def moving(ts: Any) -> Tensor | None:
    """Times with their graph, on the host; None where they have none."""
    wanted = isinstance(ts, Tensor) and ts.requires_grad
    return recordable(ts).to("cpu", torch.float64) if isinstance(ts, Tensor) and wanted else None


def shifted(start: Tensor, begin: np.ndarray, times: Tensor | None) -> Asks[Tensor]:
    """The start, which moves against the drift where its time does: the values are the same, gradients are not."""
    if times is None:
        return start
    slope = yield Rows(torch.from_numpy(begin.copy()), start, np.arange(len(start)), recorded=True)
    first = times[0] - times[0].detach()
    return start - slope * first.to(start.device, start.dtype).reshape(-1, 1)


def at_moving_times(path: Tensor, at: np.ndarray, times: Tensor | None, function: RowFunction) -> Tensor:
    """States ``(T, B, D)`` at times ``(T, B)``, which move along the drift where their times do."""
    if times is None:
        return path
    times = times[-len(path) :]
    sample = np.tile(np.arange(path.shape[1]), len(path))
    slope = function(torch.from_numpy(at.ravel().copy()), path.flatten(0, 1).nan_to_num(0), sample).view(path.shape)
    moved = (times - times.detach()).to(path.device, path.dtype)
    return path + slope * (moved[..., None] if moved.dim() > 1 else moved[:, None, None])
