"""The steps of a scheduler as a table of weights: all steps of a window in a few operations.

A table holds for schedulers whose step is linear, apart from a clipped predicted sample (DDPM and DDIM). Sweeps and
guesses use the table. The scheduler itself always takes the pipeline's own steps.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picardsolve.extend import Visit, linear_multistep, linear_multistep_alone
from picardsolve.integrations.diffusers.scheduler.copied_steps import OutputAt


@dataclass(frozen=True)
class Clip:
    """The part ``q clip(c x + d output, -limit, limit)`` of a step; ``q``, ``c``, ``d`` of shape ``(N,)``."""

    q: np.ndarray
    c: np.ndarray
    d: np.ndarray
    limit: float


@dataclass
class SchedulerTable:
    """``Phi_n(x) = sum_k x_k[n] x[n - k] + o_k[n] output[n - k] + s[n] noise[n]``, all weights float64.

    Attributes:
        x: ``(N, K)``, weights of the state and of earlier states.
        o: ``(N, K)``, weights of the output and of earlier outputs.
        s: ``(N,)``, standard deviation of the noise.
        noisy: ``(N,)``, whether the step draws noise.
        clip: the clipped part of the step; None where nothing is clipped.
        lags: the largest k with a nonzero weight.
        noise_dtype: dtype in which the noise is drawn; None for the dtype of the output.
    """

    x: np.ndarray
    o: np.ndarray
    s: np.ndarray
    noisy: np.ndarray
    clip: Clip | None = None
    lags: int = 0
    noise_dtype: torch.dtype | None = None

    def images(
        self, first: int, x: Tensor, outputs: Tensor, noise: Tensor | None, past: Sequence[Visit] = ()
    ) -> Tensor:
        """Steps ``first ...``, each from its own state in ``x``, ``(W, B, D)``."""
        p, q, s, clipped = self._weights(slice(first, first + len(x)), x)
        inputs = [(s, noise)]
        if self.clip is not None:
            r, c, d = clipped
            inputs.insert(0, (r, (c * x).addcmul_(d, outputs).clamp_(-self.clip.limit, self.clip.limit)))
        return linear_multistep(p, x, q, outputs, *inputs, past=past)

    def _weights(
        self, at: slice, like: Tensor
    ) -> tuple[list[Tensor | None], list[Tensor | None], Tensor, tuple[Tensor, ...]]:
        """Of some steps, ``(W, 1, 1)`` each, in one copy: of states, of outputs, of the noise; ``q``, ``c``, ``d``.

        Lags that no step uses have None.
        """
        x, o = self.x[at, : self.lags + 1].T, self.o[at, : self.lags + 1].T
        clip = [] if self.clip is None else [self.clip.q[at], self.clip.c[at], self.clip.d[at]]
        packed = torch.from_numpy(np.concatenate([*x, *o, self.s[at], *clip]))
        every, count = packed.to(like.device, like.dtype).view(-1, x.shape[1], 1, 1).unbind(0), self.lags + 1
        p, q = (
            [weight if k == 0 or row.any() else None for k, (weight, row) in enumerate(zip(of, rows, strict=True))]
            for of, rows in ((every[:count], x), (every[count : 2 * count], o))
        )
        return p, q, every[2 * count], every[2 * count + 1 :]

    def path(
        self, first: int, start: Tensor, given: Sequence[OutputAt], noise: Tensor | None, past: Sequence[Visit] = ()
    ) -> Tensor:
        """Steps ``first ...`` one after the other from ``start``, ``(B, D)``."""
        path, visits, y = start.new_empty(len(given), *start.shape), deque(past, self.lags + 1), start
        for j, output in enumerate(given):
            n = first + j
            visits.append((y, output(n, y)))
            p, q = self.x[n, : self.lags + 1].tolist(), self.o[n, : self.lags + 1].tolist()
            inputs: list[tuple[float, Tensor | None]] = [(float(self.s[n]), None if noise is None else noise[j])]
            if self.clip is not None:
                sample = torch.mul(y, float(self.clip.c[n])).add_(visits[-1][1], alpha=float(self.clip.d[n]))
                inputs.insert(0, (float(self.clip.q[n]), sample.clamp_(-self.clip.limit, self.clip.limit)))
            y = linear_multistep_alone(p, q, visits, *inputs, out=path[j])
        return path

    def path_of_one_output(
        self, first: int, count: int, start: Tensor, output: Tensor, past: Sequence[Visit] = ()
    ) -> Tensor | None:
        """The path from ``start`` with one output for all steps; None where a step draws noise or clips."""
        if self.clip is not None or self.noisy[first : first + count].any():
            return None
        states, outputs = ([visit[k] for visit in past] for k in (0, 1))
        known = len(past)
        # row j: weights of the j-th state on earlier states, start, earlier outputs, and the output
        rows = np.eye(known + 1 + count, known + 1 + known + 1)
        rows[known + 1 :] = 0.0
        for j in range(count):
            n, at = first + j, known + 1 + j
            for k in range(min(self.lags, at - 1) + 1):
                rows[at] += self.x[n, k] * rows[at - 1 - k]
                rows[at, -1 if k <= j else known + 1 + known - (k - j)] += self.o[n, k]
        basis = torch.stack([row.to(start.dtype) for row in (*states, start, *outputs, output)])
        weights = torch.from_numpy(rows[known + 1 :]).to(start.device, start.dtype)
        return torch.tensordot(weights, basis, 1)
