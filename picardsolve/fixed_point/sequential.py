"""The reference: the same integrator, one step at a time."""

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Rows
from picardsolve.results.progress import Progress


def run(
    chain: DriftChain,
    y0: Tensor,
    path: Tensor | None,
    progress: Progress,
    begin: int = 0,
    end: int | None = None,
    past: Tensor | None = None,
) -> tuple[Tensor, np.ndarray]:
    """Step a chain from ``y0`` (B, D) to its end.

    Args:
        chain: what to step.
        y0: states at step ``begin``.
        path: ``(N + 1, B, D)`` to be filled, or None.
        progress: told of every step.
        begin: the step to start from.
        end: stop before this step; None: the chain's end.
        past: ``(memory, B, K)`` outputs of the steps before ``begin``; None for zeros.

    Returns:
        The last states ``(B, D)``, and ``(B,)``: how many steps of each sample were finite.
    """
    y, sample = y0, np.arange(len(y0))
    end = chain.length if end is None else min(end, chain.length)
    finite_steps = np.full(len(y0), end)
    if path is not None:
        path[begin] = y0
    for n in range(begin, end):
        step = np.full_like(sample, n)
        y, out = chain.step(Rows(step, sample, y), past)
        if chain.memory:
            past = out.new_zeros(chain.memory, *out.shape) if past is None else past
            past = torch.cat([past, out[None]])[1:]
        if path is not None:
            path[n + 1] = y
        broken = ~torch.isfinite(y).all(-1).cpu().numpy() & (finite_steps > n)
        finite_steps[broken] = n
        progress.update(n + 1, (n + 1) * chain.rounds)
        if not (finite_steps > n).any():
            break
    return y, finite_steps
