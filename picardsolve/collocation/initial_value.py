"""What is solved: the samples of one equation, and the limits of their segments."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from picardsolve.collocation.arrays import Array, Arrays
from picardsolve.problem.state import LARGEST_DENSE

_LEAST = 1e-290  # allowed error of a component whose tolerance is 0: one that stays 0, without an absolute tolerance


@dataclass(frozen=True)
class InitialValueProblem:
    """The B samples of an equation: where each starts, the times that are asked for, and the tolerance.

    Inside, time is counted as ``elapsed`` time: from 0 at the start, and increasing.

    Attributes:
        start: ``(B, d)``.
        ts: ``(T,)`` or ``(T, B)`` times of the solution, increasing or decreasing; the first is the time of the start.
        rtol, atol: the tolerance: ``(B or 1, d or 1)`` each.
        unit: unit roundoff of the drift.
        arrays: of the starts and the tolerance; `ts` are on the host.
        second_order: whether states are (positions, velocities), and the drift's second half, the acceleration, depends
            on positions only.
    """

    start: Array
    ts: np.ndarray
    rtol: Array
    atol: Array
    unit: float
    arrays: Arrays
    second_order: bool = False

    @property
    def samples(self) -> int:
        """B."""
        return self.start.shape[0]

    @property
    def numbers(self) -> int:
        """In a state: d."""
        return self.start.shape[1]

    @cached_property
    def times(self) -> np.ndarray:
        """The times of each sample, ``(T, B)``."""
        columns = self.ts if self.ts.ndim > 1 else self.ts[:, None]
        return np.broadcast_to(columns, (len(columns), self.samples))

    @cached_property
    def sign(self) -> np.ndarray:
        """Direction of time, 1 or -1, ``(B,)``."""
        return np.where(self.times[-1] > self.times[0], 1.0, -1.0)

    @cached_property
    def origin(self) -> np.ndarray:
        """The time of the start, ``(B,)``."""
        return np.ascontiguousarray(self.times[0])

    @cached_property
    def elapsed(self) -> np.ndarray:
        """The times ``ts`` as elapsed time, ``(T, B)``."""
        return self.sign * (self.times - self.times[0])

    def time(self, elapsed: np.ndarray, sample: np.ndarray | int) -> np.ndarray:
        """The user's time after an elapsed time of samples."""
        return self.origin[sample] + self.sign[sample] * elapsed

    def starts(self, sample: np.ndarray) -> Array:
        """Where samples start, ``(k, d)``."""
        return self.start if len(sample) == self.samples else self.arrays.take(self.start, sample)

    def shortest(self, sample: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Eight times what times around elapsed times of samples can tell apart."""
        begin = self.origin[sample]
        now = np.maximum(np.abs(begin + t), np.abs(begin - t))
        return np.where(now > 1e-300, 8 * np.finfo(float).eps * now, 0.0)

    @property
    def unknowns(self) -> int:
        """Numbers that Newton's method differentiates with respect to."""
        return self.numbers // 2 if self.second_order else self.numbers

    @property
    def takes_jacobians(self) -> bool:
        """Whether the state is small enough for Jacobians."""
        return self.unknowns <= LARGEST_DENSE


@dataclass
class Limits:
    """The limits of the segments of a march.

    Components may have units of their own. They are compared and added up after division by `allowed`.

    Attributes:
        problem: whose tolerance is that of a segment; rtol is relative to the largest value of each component.
        scale: ``(B,)`` the tolerance of a segment, divided by that.
        in_flight: ``(B,)`` most segments at once.
        longest: most time in a segment.
        first: length of the first segment; None: chosen.
    """

    problem: InitialValueProblem
    scale: np.ndarray
    in_flight: np.ndarray
    longest: float = np.inf
    first: float | None = None

    def allowed(self, largest: Array, sample: np.ndarray) -> Array:
        """Allowed error of components with the given largest values ``(K, d)``, of segments of samples ``(K,)``."""
        arrays = self.problem.arrays
        return arrays.larger(self._tolerance(largest, sample) * arrays.array(self.scale[sample])[:, None], _LEAST)

    def of_user(self, largest: Array, sample: np.ndarray) -> Array:
        """The same by the user's tolerance."""
        return self.problem.arrays.larger(self._tolerance(largest, sample), _LEAST)

    def _tolerance(self, largest: Array, sample: np.ndarray) -> Array:
        own = self.problem
        rtol, atol = (part if len(part) == 1 else own.arrays.take(part, sample) for part in (own.rtol, own.atol))
        return atol + rtol * largest
