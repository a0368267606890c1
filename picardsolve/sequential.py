"""The reference: the same integrator, one step at a time."""

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Rows
from picardsolve.progress import Progress


def run(chain: DriftChain, y0: Tensor, path: Tensor | None, progress: Progress) -> tuple[Tensor, np.ndarray]:
    """Step a chain from ``y0`` (B, D) to its end.

    Args:
        chain: what to step.
        y0: initial states.
        path: ``(N + 1, B, D)`` to be filled, or None.
        progress: told of every step.

    Returns:
        The last states ``(B, D)``, and ``(B,)``: how many steps of each sample were finite.
    """
    y, sample = y0, np.arange(len(y0))
    finite_steps = np.full(len(y0), chain.length)
    past: Tensor | None = None
    if path is not None:
        path[0] = y0
    for n in range(chain.length):
        step = np.full_like(sample, n)
        out = chain.evaluate(Rows(step, sample, y))[None]
        if chain.memory:
            past = out.new_zeros(chain.memory, *out.shape[1:]) if past is None else past
            out = torch.cat([past, out])
            past = out[1:]
        noise = chain.increments(step, sample).to(y)[None] if chain.noise_size else None
        y = chain.steps(step[None], y[None], out, noise).images()[0]
        if path is not None:
            path[n + 1] = y
        broken = ~torch.isfinite(y).all(-1).cpu().numpy() & (finite_steps > n)
        finite_steps[broken] = n
        progress.update(n + 1, (n + 1) * chain.rounds)
        if not (finite_steps > n).any():
            break
    return y, finite_steps
