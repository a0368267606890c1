"""All steps of a window at once, where a step is a linear map (with a clipped sample, for DDPM and DDIM).

Guesses and sweeps may use a table; the pipeline's real steps are always the scheduler's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrations.diffusers.walk import Held

Past = Sequence[tuple[Tensor, Tensor]]  # states and outputs of the steps before, the latest last


@dataclass(frozen=True)
class Clip:
    """The part ``q clip(c x + d output, -limit, limit)`` of a step; ``q``, ``c``, ``d`` of shape ``(N,)``."""

    q: np.ndarray
    c: np.ndarray
    d: np.ndarray
    limit: float


@dataclass
class StepTable:
    """``Phi_n(x) = sum_k x_k[n] x[n - k] + o_k[n] output[n - k] + s[n] noise[n]``, all coefficients float64.

    Attributes:
        x: ``(N, K)`` coefficients of the state and of those before it.
        o: ``(N, K)`` coefficients of the output and of those before it.
        s: ``(N,)`` size of the noise.
        noisy: ``(N,)`` whether the step draws noise.
        clip: the clipped part of the step, if any.
        lags: the largest k with a coefficient.
        noise_dtype: what the noise is drawn in; None for the type of the output.
    """

    x: np.ndarray
    o: np.ndarray
    s: np.ndarray
    noisy: np.ndarray
    clip: Clip | None = None
    lags: int = field(default=0)
    noise_dtype: torch.dtype | None = None

    def images(self, first: int, x: Tensor, outputs: Tensor, noise: Tensor | None, past: Past = ()) -> Tensor:
        """Steps ``first ...``, each from its own state of ``x``, shape ``(W, B, D)``."""
        at = slice(first, first + len(x))
        y = (_column(self.x[at, 0], x) * x).addcmul_(_column(self.o[at, 0], x), outputs)
        for k in range(1, self.lags + 1):
            if not self.x[at, k].any() and not self.o[at, k].any():
                continue
            inside = slice(first + k, first + len(x))
            y[k:].addcmul_(_column(self.x[inside, k], x), x[:-k]).addcmul_(_column(self.o[inside, k], x), outputs[:-k])
            for j in range(max(0, k - len(past)), min(k, len(x))):
                self._add_lag(y[j], first + j, k, past[j - k])
        if self.clip is not None:
            c, d, q = (_column(v[at], x) for v in (self.clip.c, self.clip.d, self.clip.q))
            sample = (c * x).addcmul_(d, outputs).clamp_(-self.clip.limit, self.clip.limit)
            y.addcmul_(q, sample)
        return y if noise is None else y.addcmul_(_column(self.s[at], x), noise)

    def path(self, first: int, start: Tensor, held: list[Held], noise: Tensor | None, past: Past = ()) -> Tensor:
        """Steps ``first ...`` one after the other from ``start``, ``(B, D)``."""
        y, before, out = start, list(past), start.new_empty(len(held), *start.shape)
        for j, output in enumerate(held):
            n, given = first + j, output(first + j, y)
            new = torch.mul(y, float(self.x[n, 0]), out=out[j]).add_(given, alpha=float(self.o[n, 0]))
            for k in range(1, min(self.lags, len(before)) + 1):
                self._add_lag(new, n, k, before[-k])
            if self.clip is not None:
                sample = torch.mul(y, float(self.clip.c[n])).add_(given, alpha=float(self.clip.d[n]))
                new.add_(sample.clamp_(-self.clip.limit, self.clip.limit), alpha=float(self.clip.q[n]))
            if noise is not None:
                new.add_(noise[j], alpha=float(self.s[n]))
            if self.lags:
                before.append((y, given))
            y = new
        return out

    def held(self, first: int, count: int, start: Tensor, output: Tensor, past: Past = ()) -> Tensor | None:
        """The path from ``start`` with one output for all steps, by two products; None where noise or a limit is."""
        if self.clip is not None or self.noisy[first : first + count].any():
            return None
        states, outputs = ([visit[k] for visit in past] for k in (0, 1))
        known = len(past)
        # each state as a combination of those before, of start, of the outputs before, and of the output held
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

    def _add_lag(self, y: Tensor, n: int, k: int, earlier: tuple[Tensor, Tensor]) -> None:
        y.add_(earlier[0], alpha=float(self.x[n, k])).add_(earlier[1], alpha=float(self.o[n, k]))


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device, like.dtype)[:, None, None]
