"""The states between steps: polynomials through the states and slopes around a time."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.embedded.hermite import interpolation, neighbours
from picardsolve.embedded.local_errors import combined
from picardsolve.embedded.path import Steps
from picardsolve.problem.index import on_device
from picardsolve.problem.state import Layout


@dataclass(frozen=True)
class DenseSteps:
    """The states of all samples at any times, without the functions that they were computed by.

    Attributes:
        steps: of all samples.
        layout: of a sample's state.
        k: nodes of a polynomial.
        begin: ``(B,)`` the time of every sample's start.
        sign: ``(B,)`` its direction of time.
        reached: ``(B,)`` elapsed time up to which the states count.
    """

    steps: Steps
    layout: Layout
    k: int
    begin: np.ndarray
    sign: np.ndarray
    reached: np.ndarray

    def __call__(self, at: Tensor) -> Any:
        """States at times ``(T,)`` in the user's structure, time first; NaN where they are not known."""
        return self.layout.unpack_path(self.states(at))

    def detached(self) -> "DenseSteps":
        """Without gradients."""
        return replace(self, steps=self.steps.detached())

    def segments(self, sample: int) -> Tensor:
        """The times where a sample's steps begin, and where the last one ends, ``(S + 1,)``.

        Raises:
            ValueError: there is no such sample.
        """
        if sample >= len(self.begin):
            raise ValueError(f"sample: expected one of {len(self.begin)}, counted from 0, got {sample}.")
        first, count = self.steps.first[sample], self.steps.count[sample]
        return torch.from_numpy(np.unique(self.steps.t[first : first + count])[:: int(self.sign[sample])].copy())

    def elapsed(self, t: np.ndarray) -> np.ndarray:
        """Elapsed times of times ``(T, B or 1)``, by sample: ``(T, B)``; NaN where states are not known."""
        elapsed = self.sign * (t - self.begin)
        known = (elapsed >= 0) & (elapsed <= self.reached * (1 + 1e-12) + 4 * np.finfo(float).eps * np.abs(self.begin))
        return np.where(known, np.minimum(elapsed, self.reached), np.nan)

    def states(self, ts: Tensor) -> Tensor:
        """Rows ``(T, B, D)`` at such times; NaN where they are not known."""
        at = ts.detach().to("cpu", torch.float64).numpy()
        elapsed = self.elapsed(at if at.ndim > 1 else at[:, None])
        return self.at(self.begin + self.sign * np.nan_to_num(elapsed), np.isnan(elapsed))

    def at(self, t: np.ndarray, unknown: np.ndarray, begin: np.ndarray | None = None) -> Tensor:
        """Rows ``(T, B, D)`` at times ``(T, B)``; NaN where ``unknown``. ``begin`` is `located(t)`, if known."""
        steps, device = self.steps, self.steps.y.device
        begin = self.located(t) if begin is None else begin
        node, exact = self.nodes(t, begin)
        out = steps.y.index_select(0, on_device(node, device))
        if not exact.all():
            other = between(steps, t.ravel(), begin, self.k)
            out = torch.where(on_device(exact, device)[:, None], out, other)
        out = out.view(*unknown.shape, steps.y.shape[1])
        if unknown.any():
            out = out.masked_fill(on_device(unknown, device)[..., None], torch.nan)
        return out

    def nodes(self, t: np.ndarray, begin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nodes ``(T * B,)`` at or before times ``(T, B)``, and whether they are at the times.

        The steps that hold them begin at nodes ``begin`` ``(T * B,)``.
        """
        at = self.steps.t
        after = np.minimum(begin + 1, len(at) - 1)
        node = np.where((at[begin] != t.ravel()) & (at[after] == t.ravel()), after, begin)
        return node, at[node] == t.ravel()

    def located(self, t: np.ndarray) -> np.ndarray:
        """The nodes ``(T * B,)`` where the steps begin that hold times ``(T, B)``."""
        steps = self.steps
        sample = np.broadcast_to(np.arange(len(self.begin)), t.shape).ravel()
        span = np.maximum(self.reached, 1e-300)
        own = self.sign[steps.sample] * (steps.t - self.begin[steps.sample])
        asked = self.sign[sample] * (t.ravel() - self.begin[sample])
        node = np.searchsorted(steps.sample * 4 + own / span[steps.sample], sample * 4 + asked / span[sample]) - 1
        lowest = steps.first[sample]
        highest = lowest + np.maximum(steps.count[sample] - 2, 0)
        node = np.clip(node, lowest, highest)
        for _ in range(3):  # those keys are rounded
            node = np.where((asked > own[np.minimum(node + 1, len(own) - 1)]) & (node < highest), node + 1, node)
            node = np.where((asked < own[node]) & (node > lowest), node - 1, node)
        return node


def between(steps: Steps, t: np.ndarray, node: np.ndarray, k: int) -> Tensor:
    """States ``(Q, D)`` at times ``(Q,)`` in the steps that begin at nodes ``(Q,)``, by polynomials through k nodes."""
    first, last = steps.bounds
    ends = np.minimum(node + 1, last[node])
    low, high = neighbours(node, ends, first[node], last[node], steps.t, k)
    index = low[:, None] + np.arange(k)
    used = index <= high[:, None]
    index = np.where(used, index, low[:, None])  # never another sample's, which may not be finite
    length = np.where(ends > node, steps.t[ends] - steps.t[node], 1.0)
    x, nodes = (t - steps.t[node]) / length, (steps.t[index] - steps.t[node][:, None]) / length[:, None]
    of_states, of_slopes = interpolation(x, nodes, used)
    return combined(steps, index, of_states, of_slopes * length[:, None])
