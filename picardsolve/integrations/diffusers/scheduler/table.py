"""The steps of a scheduler as a table of weights: all steps of a window in a few operations.

A table holds for schedulers whose step is linear, apart from a clipped predicted sample (DDPM and DDIM). Sweeps and
guesses use the table. The scheduler itself always takes the pipeline's own steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.extend import Visit, linear_multistep, recurrence, without_autocast

_SMALL = 1e-6  # of the weights of a clipped part
_WIDE = 4096  # elements of a row above which, on a CPU, computing it takes longer than starting an operation


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
        on_path: whether it holds only where the step before led to the state that a step starts from.
    """

    x: np.ndarray
    o: np.ndarray
    s: np.ndarray
    noisy: np.ndarray
    clip: Clip | None = None
    lags: int = 0
    noise_dtype: torch.dtype | None = None
    on_path: bool = False
    _columns: dict[Any, Tensor] = field(default_factory=dict, repr=False)
    _carries: dict[Any, Tensor] = field(default_factory=dict, repr=False)

    def held_slopes(self) -> Tensor:
        """Derivative of each step with respect to its state, at a fixed output, ``(N,)`` float64.

        The predicted sample counts as not clipped.
        """
        return torch.from_numpy(self.x[:, 0] + (0 if self.clip is None else self.clip.q * self.clip.c))

    def forget(self) -> None:
        """Forget what was copied to a device: the table has grown."""
        self._columns.clear()
        self._carries.clear()

    def images(
        self, first: int, x: Tensor, outputs: Tensor, noise: Tensor | None, past: Sequence[Visit] = ()
    ) -> Tensor:
        """Steps ``first ...``, each from its own state in ``x``, ``(W, B, D)``."""
        at, lags = slice(first, first + len(x)), self.lags + 1
        columns = self._on(x)[:, at].unbind(0)
        p, q = (
            [column if k == 0 or weights[at, k].any() else None for k, column in enumerate(part)]
            for weights, part in ((self.x, columns[:lags]), (self.o, columns[lags : 2 * lags]))
        )
        inputs = [(columns[2 * lags], noise)]
        if self.clip is not None:
            r, c, d = columns[-3:]
            inputs.insert(0, (r, (c * x).addcmul_(d, outputs).clamp_(-self.clip.limit, self.clip.limit)))
        return linear_multistep(p, x, q, outputs, *inputs, past=past)

    def path(
        self,
        first: int,
        x: Tensor,
        outputs: Tensor,
        noise: Tensor | None,
        past: Sequence[Visit] = (),
        half: torch.dtype | None = None,
    ) -> Tensor:
        """Steps ``first ...`` one after the other from ``x[0]``, with outputs ``(W, B, D)``.

        Args:
            first: the first step.
            x: ``(W, B, D)``; all but the first may be any states, best those that the path is near to.
            outputs: ``(W, B, D)``.
            noise: ``(W, B, D)``; None for none.
            past: the steps before.
            half: every state is rounded to it, as the scheduler's steps round it: small steps may vanish.
        """
        if self.clip is not None or half is not None or (x.device.type == "cpu" and x[0].numel() >= _WIDE):
            return self._path_by_steps(first, x[0], outputs, noise, past, half)
        images = self.images(first, x, outputs, noise, past)
        if len(x) == 1:
            return images
        # how the states that the steps start from change; where they do not, the path is the images exactly
        at, lags, columns = slice(first, first + len(x)), self.lags + 1, self._on(x)
        changes = torch.sub(images[:-1], x[1:])
        if lags == 1:
            changes = recurrence(columns[0, at][:-1], changes)
        else:
            later = slice(first + 1, first + len(x))
            finite = changes.nan_to_num(0, 0, 0)  # zero times what is not finite would spoil the values before it
            with without_autocast(x.device):
                changes.add_(torch.tensordot(self._carried(x)[later, later], finite, 1))
        for age in range(min(lags, len(changes))):
            if self.x[at, age][age + 1 :].any():
                images[age + 1 :].addcmul_(columns[age, at][age + 1 :], changes[: len(changes) - age])
        return images

    def _path_by_steps(
        self,
        first: int,
        start: Tensor,
        outputs: Tensor,
        noise: Tensor | None,
        past: Sequence[Visit],
        half: torch.dtype | None,
    ) -> Tensor:
        lags, columns = self.lags + 1, self._on(start)[:, first : first + len(outputs)].unbind(0)
        q = [
            None if k and not self.o[first : first + len(outputs), k].any() else columns[lags + k] for k in range(lags)
        ]
        # the part that does not follow the states: the outputs take the place of the states in the formula
        known = linear_multistep(q[:1], outputs, [None, *q[1:]], outputs, (columns[2 * lags], noise), past=past)
        if self.clip is None and lags == 1 and half is None:
            return recurrence(columns[0], known, start)
        samples = [] if self.clip is None else (columns[-1] * outputs).unbind(0)
        states = [*[state for state, _ in past], start]
        for j, row in enumerate(known.unbind(0)):
            for state, weight in zip(reversed(states), self.x[first + j, :lags].tolist(), strict=False):
                if weight:
                    row.add_(state, alpha=weight)
            if self.clip is not None:
                r, c, limit = float(self.clip.q[first + j]), float(self.clip.c[first + j]), self.clip.limit
                row.add_(samples[j].add_(states[-1], alpha=c).clamp_(-limit, limit), alpha=r)
            if half is not None:
                row.copy_(row.to(half))
            states.append(row)
        return known

    def path_of_one(
        self,
        first: int,
        start: Tensor,
        held: Tensor,
        output: Sequence[tuple[float, float]],
        noise: Tensor | None,
        past: Sequence[Visit] = (),
    ) -> Tensor | None:
        """Steps ``first ...`` one after the other with one thing held, such as the output: a product with a matrix.

        Args:
            first: the first step.
            start: ``(B, D)`` the state that it leaves from.
            held: ``(B, D)``.
            output: for every step, the two weights that make its output of its state and of ``held``.
            noise: ``(W, B, D)``; None for none.
            past: the steps before.

        Returns:
            ``(W, B, D)``; None where the part that is clipped follows the states.
        """
        known, count, limit = len(past), len(output), None
        own, given = (np.array(weights) for weights in zip(*output, strict=True))
        at = slice(first, first + count)
        if self.clip is not None:
            limit, c, d = self.clip.limit, self.clip.c[at], self.clip.d[at]
            if np.abs(c + d * own).max() > _SMALL or np.abs(d * given - 1).max() > _SMALL:
                return None
        basis = [*[state for state, _ in past], start, *[out for _, out in past], held]
        drawn, clipped = len(basis), len(basis) + (0 if noise is None else count)
        # row j: weights of the j-th state on the basis
        rows = np.zeros((known + 1 + count, clipped + (limit is not None)))
        outputs = np.zeros((known + count, rows.shape[1]))
        rows[: known + 1, : known + 1], outputs[:known, known + 1 : 2 * known + 1] = np.eye(known + 1), np.eye(known)
        for j in range(count):
            n, here = first + j, known + j
            outputs[here] = own[j] * rows[here]
            outputs[here, drawn - 1] += given[j]
            lags = min(self.lags, here) + 1
            rows[here + 1] = self.x[n, :lags] @ rows[here::-1][:lags] + self.o[n, :lags] @ outputs[here::-1][:lags]
            if noise is not None:
                rows[here + 1, drawn + j] = self.s[n]
            if self.clip is not None:
                rows[here + 1, clipped] += self.clip.q[n]
        parts = [torch.stack([row.to(start.dtype) for row in basis]), *([] if noise is None else [noise])]
        parts += [] if limit is None else [held.clamp(-limit, limit)[None]]
        weights = torch.from_numpy(rows[known + 1 :]).to(start.device, start.dtype)
        return torch.tensordot(weights, torch.cat(parts), 1)

    def _carried(self, like: Tensor) -> Tensor:
        """What a change of each state does to the later ones at fixed outputs, ``(N, N)``, row by column."""
        key = like.device, like.dtype
        if key not in self._carries:
            follow = np.zeros((len(self.s), len(self.s)))
            for age in range(min(self.lags + 1, len(follow) - 1)):  # the state at n + 1 is the result of step n
                np.fill_diagonal(follow[age + 1 :], self.x[age:-1, age])
            eye = torch.eye(len(follow), dtype=torch.float64)
            carried = torch.linalg.solve_triangular(eye - torch.from_numpy(follow), eye, upper=False) - eye
            largest = torch.finfo(like.dtype).max
            self._carries[key] = carried.nan_to_num(0, largest, -largest).to(like.device, like.dtype)
        return self._carries[key]

    def _on(self, like: Tensor) -> Tensor:
        """All weights on a device, ``(columns, N, 1, 1)``: of states and outputs by age, of noise, and of the clip."""
        key = like.device, like.dtype
        if key not in self._columns:
            lags = self.lags + 1
            parts = [self.x[:, :lags], self.o[:, :lags], self.s[:, None]]
            if self.clip is not None:
                parts.append(np.stack([self.clip.q, self.clip.c, self.clip.d], 1))
            columns = torch.from_numpy(np.concatenate(parts, 1).T.copy()).to(like.device, like.dtype)
            self._columns[key] = columns[..., None, None]
        return self._columns[key]
