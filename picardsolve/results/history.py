"""The rounds of a solve: what each changed, accepted and let one estimate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

_FEWEST = 4096  # numbers in the first allocation


@dataclass(frozen=True)
class Estimates:
    """Estimates of a round for each step of its window, all ``(W, B)``.

    Attributes:
        excess: estimated errors of the new states, relative to the errors that are allowed.
        ratios: the residual that the last sweep left, relative to its change of the state; NaN where not known.
        slopes: the change of the next state, relative to the change of the state; NaN where not known.
    """

    excess: Tensor
    ratios: Tensor
    slopes: Tensor


@dataclass(frozen=True)
class Round:
    """What one round did, on the CPU; norms in float64, NaN where one step was taken after the other.

    Attributes:
        begin: ``(B,)`` the first step of each sample's window.
        stride: ``(B,)`` the number of steps that were accepted.
        width: ``(B,)`` the number of steps in the window.
        increments: ``(W, B)`` root mean square change of the states after each step.
        residuals: ``(W, B)`` root mean square of ``Phi_n(X[n]) - X[n+1]``, or None where not computed.
        step: ``(W, B)`` the step of each row, for `Parareal`; None where rows are consecutive steps from ``begin`` on.
        estimates: the `Estimates` of each step; None where nothing was estimated.
    """

    begin: Tensor
    stride: Tensor
    width: Tensor
    increments: Tensor
    residuals: Tensor | None
    step: Tensor | None = None
    estimates: Estimates | None = None


@dataclass(frozen=True)
class Stacked:
    """All K rounds of a solve as arrays, with the R rows of all windows one after another.

    Attributes:
        begin, stride, width: ``(K, B)``, as in a `Round`.
        first: ``(K,)`` the first row of each round.
        increments: ``(R, B)``, as in a `Round`.
        ratios, slopes: ``(R, B)``, as in `Estimates`; None where nothing was estimated.
        sliding: whether the rounds are those of a sliding window; False for `Parareal`.
    """

    begin: np.ndarray
    stride: np.ndarray
    width: np.ndarray
    first: np.ndarray
    increments: np.ndarray
    ratios: np.ndarray | None = None
    slopes: np.ndarray | None = None
    sliding: bool = True

    @property
    def accepted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Round, sample and row in the window of every accepted step, in the order of rounds."""
        stride = self.stride.ravel()
        which = np.repeat(np.arange(len(stride)), stride)
        row = np.arange(len(which)) - np.repeat(stride.cumsum() - stride, stride)
        return *np.divmod(which, self.stride.shape[1]), row

    def over_rounds(self, combine: np.ufunc, table: np.ndarray) -> np.ndarray:
        """Combine the rows ``(R, B)`` of each round: ``(K, B)``."""
        return combine.reduceat(table, self.first)

    @property
    def contraction(self) -> float:
        """The largest sum of ratios in a window; 0 where none was measured."""
        if self.ratios is None:
            return 0.0
        return float(self.over_rounds(np.add, np.nan_to_num(self.ratios, nan=0, posinf=0, neginf=0)).max())

    @property
    def decay(self) -> float:
        """The largest ``sum (1 - c_n)`` over a window: |lambda| times its length where changes decay."""
        if self.slopes is None or not self.sliding:
            return 0.0
        return float(self.over_rounds(np.add, 1 - np.nan_to_num(self.slopes, nan=1, posinf=1, neginf=1)).max())


class History(Sequence[Round]):
    """The rounds of a solve, in two arrays that grow.

    Small tensors that are allocated in every round between large temporary ones would fragment the memory: the process
    would grow by a window in every round.
    """

    def __init__(self):
        self._norms, self._counts = np.empty(0), np.empty(0, dtype=np.int64)
        self._used: tuple[int, int] = (0, 0)
        self._rounds: list[tuple[int, int, int, int, str]] = []  # where each begins in both, W, B, and what it has

    def __getstate__(self) -> dict[str, Any]:
        norms, counts = self._used
        return {**vars(self), "_norms": self._norms[:norms].copy(), "_counts": self._counts[:counts].copy()}

    def append(
        self,
        counts: Sequence[np.ndarray],
        increments: np.ndarray,
        residuals: np.ndarray | None = None,
        estimates: Sequence[np.ndarray] | None = None,
        step: np.ndarray | None = None,
    ) -> None:
        """Add a `Round`: counts are its begin, stride and width, estimates its excess, ratios and slopes."""
        kinds = "r" * (residuals is not None) + "e" * (estimates is not None) + "s" * (step is not None)
        norms, whole = [increments], [*counts] if step is None else [*counts, step]
        norms += [] if residuals is None else [residuals]
        norms += [] if estimates is None else estimates
        self._rounds.append((*self._used, *increments.shape, kinds))
        self._norms, most = _extended(self._norms, self._used[0], norms)
        self._counts, last = _extended(self._counts, self._used[1], whole)
        self._used = most, last

    def append_steps(self, rounds: int, reached: np.ndarray) -> None:
        """Add rounds of one step each, from the first one on, by a solver without guesses: all norms are NaN.

        Args:
            rounds: how many.
            reached: ``(B,)`` how many of the steps of each sample were finite; those behind them are not taken.
        """
        (norms, counts), samples, k = self._used, len(reached), np.arange(rounds)[:, None]
        whole = np.stack([np.minimum(k, reached), k < reached, k <= reached], 1)
        self._rounds += [(norms + 2 * j * samples, counts + 3 * j * samples, 1, samples, "r") for j in range(rounds)]
        self._norms, norms = _extended(self._norms, norms, [np.full(2 * rounds * samples, np.nan)])
        self._counts, counts = _extended(self._counts, counts, [whole])
        self._used = norms, counts

    def extend(self, other: "History") -> None:
        """Add the rounds of another solve."""
        norms, counts = self._used
        self._rounds += [(a + norms, b + counts, w, s, has) for a, b, w, s, has in other._rounds]
        self._norms, norms = _extended(self._norms, norms, [other._norms[: other._used[0]]])
        self._counts, counts = _extended(self._counts, counts, [other._counts[: other._used[1]]])
        self._used = norms, counts

    def accept_last(self) -> None:
        """Let the last round have accepted all steps of its window."""
        _, at, _, samples, _ = self._rounds[-1]
        stride, width = self._counts[at + samples : at + 3 * samples].reshape(2, samples)
        stride[:] = width

    def counts(self) -> np.ndarray:
        """Begin, stride and width of all K rounds, ``(3, K, B)``."""
        if not self._rounds:
            return np.zeros((3, 0, 1), dtype=np.int64)
        return np.stack([self._counts[at : at + 3 * b].reshape(3, b) for _, at, _, b, _ in self._rounds], 1)

    @property
    def widest(self) -> int:
        """The most steps that a sample had in a window; 0 without rounds."""
        return int(self.counts()[2].max(initial=0))

    @property
    def longest_stall(self) -> int:
        """The most rounds in a row in which a sample could accept but one step of several, where a window slides."""
        _, stride, width = self.counts()
        stalled = (stride <= 1) & (width > 1) & self._sliding & ~self._ready
        k = np.arange(1, len(stalled) + 1)[:, None]
        return int((k - np.maximum.accumulate(np.where(stalled, 0, k))).max(initial=0))

    @property
    def _ready(self) -> np.ndarray:
        """Whether the second state of each round was within the tolerance, though it may have been kept: ``(K, B)``."""
        ready = np.zeros(self.counts()[1].shape, dtype=bool)
        for k, (at, _, width, samples, kinds) in enumerate(self._rounds):
            if "e" in kinds and width > 1:
                begin = at + (_tables(kinds) - 3) * width * samples
                ready[k] = (self._norms[begin : begin + 2 * samples].reshape(2, samples) <= 1).all(0)
        return ready

    @property
    def _sliding(self) -> bool:
        return not self._rounds or "s" not in self._rounds[0][-1]

    def stacked(self) -> Stacked:
        """All rounds as arrays."""
        if not self._rounds:
            none = np.zeros((0, 1), dtype=np.int64)
            return Stacked(begin=none, stride=none, width=none, first=none[:, 0], increments=none)
        first, kinds = np.cumsum([0, *(width for _, _, width, *_ in self._rounds)])[:-1], self._rounds[0][-1]
        ratios, slopes = (self._rows(-2), self._rows(-1)) if "e" in kinds else (None, None)
        begin, stride, width = self.counts()
        return Stacked(begin, stride, width, first, self._rows(0), ratios, slopes, self._sliding)

    def _rows(self, place: int) -> np.ndarray:
        """The table of norms in one place of every round, counted from the last where negative: ``(R, B)``."""
        parts = []
        for at, _, width, samples, kinds in self._rounds:
            begin = at + (place % _tables(kinds)) * width * samples
            parts.append(self._norms[begin : begin + width * samples].reshape(width, samples))
        return np.concatenate(parts)

    def __len__(self) -> int:
        return len(self._rounds)

    @overload
    def __getitem__(self, index: int) -> Round: ...
    @overload
    def __getitem__(self, index: slice) -> list[Round]: ...
    def __getitem__(self, index: int | slice) -> Round | list[Round]:
        if isinstance(index, slice):
            return [self._round(*place) for place in self._rounds[index]]
        return self._round(*self._rounds[index])

    def _round(self, norms: int, counts: int, width: int, samples: int, kinds: str) -> Round:
        """One round, as views of the arrays."""
        many = _tables(kinds)
        table = torch.from_numpy(self._norms[norms : norms + many * width * samples].reshape(many, width, samples))
        begin, stride, held = torch.from_numpy(self._counts[counts : counts + 3 * samples].reshape(3, samples))
        at = torch.from_numpy(self._counts[counts + 3 * samples :][: width * samples]) if "s" in kinds else None
        return Round(
            *(begin, stride, held, table[0]),
            residuals=table[1] if "r" in kinds else None,
            step=None if at is None else at.reshape(width, samples),
            estimates=Estimates(*table[-3:]) if "e" in kinds else None,
        )


def _tables(kinds: str) -> int:
    """How many tables of norms a round has."""
    return 1 + ("r" in kinds) + 3 * ("e" in kinds)


def _extended(buffer: np.ndarray, used: int, parts: Sequence[np.ndarray]) -> tuple[np.ndarray, int]:
    """A buffer with parts appended to its used elements, and how many are used then."""
    end = used + sum(part.size for part in parts)
    if end > len(buffer):
        grown = np.empty(max(2 * len(buffer), end, _FEWEST), dtype=buffer.dtype)
        grown[:used] = buffer[:used]
        buffer = grown
    for part in parts:
        buffer[used : used + part.size] = part.ravel()
        used += part.size
    return buffer, used
