"""What the march of one sample is given: its initial value problem, and the limits of its segments."""

from dataclasses import dataclass, replace

import numpy as np

from picardsolve.problem.state import LARGEST_DENSE

_LEAST = 1e-290  # allowed error of a component whose tolerance is 0: one that stays 0, without an absolute tolerance


@dataclass(frozen=True)
class InitialValueProblem:
    """One sample: where it starts, the times that are asked for, and the tolerance.

    Inside, time is counted as ``elapsed`` time: from 0 at the start, and increasing.

    Attributes:
        start: ``(d,)``.
        ts: ``(T,)`` times of the solution, increasing or decreasing; ``ts[0]`` is the time of the start.
        rtol, atol: the tolerance, ``(d,)`` each.
        unit: unit roundoff of the drift.
        second_order: whether states are (positions, velocities), and the drift's second half, the acceleration, depends
            on positions only.
    """

    start: np.ndarray
    ts: np.ndarray
    rtol: np.ndarray
    atol: np.ndarray
    unit: float
    second_order: bool = False

    @property
    def sign(self) -> float:
        """Direction of time, 1 or -1."""
        return 1.0 if self.ts[-1] > self.ts[0] else -1.0

    @property
    def elapsed(self) -> np.ndarray:
        """The times ``ts`` as elapsed time."""
        return self.sign * (self.ts - self.ts[0])

    def time(self, elapsed: np.ndarray) -> np.ndarray:
        """The user's time after an elapsed time."""
        return self.ts[0] + self.sign * elapsed

    @property
    def unknowns(self) -> int:
        """Numbers that Newton's method differentiates with respect to."""
        return len(self.start) // 2 if self.second_order else len(self.start)

    @property
    def takes_jacobians(self) -> bool:
        """Whether the state is small enough for Jacobians."""
        return self.unknowns <= LARGEST_DENSE


@dataclass(frozen=True)
class Limits:
    """The limits of the segments of a march.

    Components may have units of their own. They are compared and added up after division by `allowed`.

    Attributes:
        rtol, atol: tolerance of a segment, ``(d,)`` each; rtol is relative to the largest value of each component.
        unit: unit roundoff of the drift.
        in_flight: most segments at once.
        longest: most time in a segment.
        first: length of the first segment; None: chosen.
        scale: this tolerance divided by the user's.
    """

    rtol: np.ndarray
    atol: np.ndarray
    unit: float
    in_flight: int
    longest: float = np.inf
    first: float | None = None
    scale: float = 1.0

    def allowed(self, largest: np.ndarray) -> np.ndarray:
        """Allowed error of components with the given largest values ``(..., d)``."""
        return np.maximum(self.atol + self.rtol * largest, _LEAST)

    def sharpened(self, factor: float, in_flight: int) -> "Limits":
        """A tolerance that is smaller by a factor below 1, with other numbers of segments in flight."""
        rtol, atol, scale = self.rtol * factor, self.atol * factor, self.scale * factor
        return replace(self, rtol=rtol, atol=atol, scale=scale, in_flight=in_flight)
