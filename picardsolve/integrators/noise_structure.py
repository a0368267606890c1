"""Whether the derivatives of a diffusion are what its kind of noise promises, tried at one state before any work."""

from dataclasses import replace

import numpy as np
import torch

from picardsolve.problem.clock import Clock
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import SDE


def check_noise_structure(problem: Problem, term: SDE, clock: Clock) -> None:
    """Refuse a diffusion whose derivatives are not what its kind of noise promises.

    The diffusion is called for the first sample at the first time, at a state of random numbers from 0.5 to 1.5. Where
    it is not finite there, it is not refused.

    Raises:
        ValueError: noise is "diagonal" and an element depends on others, or "commutative" and columns do not commute.
    """
    problem = replace(problem, parameters=None, crew=None)  # what these calls close over is noted in the solve
    layout, gen = problem.layout, torch.Generator().manual_seed(0)
    size, slack = layout.size, torch.finfo(layout.dtype).eps ** 0.5
    state = (0.5 + torch.rand(1, size, generator=gen, dtype=torch.float64)).to(layout.device, layout.compute_dtype)
    t, sample = problem.ts[:1], np.zeros(1, dtype=np.int64)
    if term.noise == "diagonal" and size > 1:
        signs = torch.where(torch.rand(1, size, generator=gen) < 0.5, -1.0, 1.0).to(state)
        plain = problem.row_function("diffusion", term.diffusion, clock=clock)
        _, all_alike, signed = plain(t, torch.stack([state, torch.ones_like(state), signs]), sample)
        if bool((signed - signs * all_alike).abs().max() > slack * all_alike.abs().max()):
            raise ValueError(
                "diffusion: expected element i of diagonal noise to depend on element i of the state alone, whose "
                "derivatives are needed, got one that depends on others; pass noise='general' with columns."
            )
    if term.noise == "commutative":
        both = problem.row_function("diffusion", term.derivative, 2, clock)
        table = both(t, state, sample).reshape(size, -1, (both.tail or (1, 1))[-1])[:, 1:]
        if bool((table - table.mT).abs().max() > slack * table.abs().max()):
            raise ValueError(
                "noise: expected columns that commute, (dg_k / dy) g_j = (dg_j / dy) g_k, got others; pass "
                "noise='general' and EulerMaruyama() or StochasticHeun()."
            )
