"""What a round of drifts makes of the segments in flight."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from picardsolve.collocation.arrays import Array
from picardsolve.collocation.flight import Correction, Flight, Memory
from picardsolve.collocation.initial_value import Limits
from picardsolve.collocation.nodes import Nodes

Rows: TypeAlias = tuple[np.ndarray, Array, np.ndarray]  # times ``(R,)``, states ``(R, d)`` and samples ``(R,)``
Choice: TypeAlias = Literal["picard", "secant", "panels", "newton"]


@dataclass(frozen=True)
class Followers:
    """Segments that are to be appended behind those in flight, on the host.

    They are sorted by `level`: the first of all samples, the second ones, and so on. A sample that has one of a level
    has one of the level before, and samples are in the same order in all.

    Attributes:
        level: ``(P,)`` how many of the new ones of its sample are before it.
        behind: ``(P,)`` the segment in flight that is the last of its sample.
        before: ``(P,)`` which of the new ones is before it; of level 0 it means nothing.
        sample: ``(P,)``.
        t: ``(P,)`` elapsed time at their begins.
        h: ``(P,)`` their lengths.
    """

    level: np.ndarray
    behind: np.ndarray
    before: np.ndarray
    sample: np.ndarray
    t: np.ndarray
    h: np.ndarray

    @staticmethod
    def none() -> "Followers":
        """No segments."""
        nothing = np.zeros(0, int)
        return Followers(nothing, nothing, nothing, nothing, np.zeros(0), np.zeros(0))

    def of_level(self, level: int) -> slice:
        """Those of a level."""
        return slice(*np.searchsorted(self.level, [level, level + 1]).tolist())


class SegmentSweep(ABC):
    """An iteration over segments.

    Attributes:
        nodes: of the segments.
        name: of the iteration; "panels" is Newton's method with the algebra of panels.
        patience: most rounds that a segment may take.
        settled: rounds after which changes must not grow any more.
        eager: relative change of the last segment in flight below which the next one is started.
        quadratic: whether each change is about the square of the one before.
        linearizations: Jacobians of segments that were taken so far.
    """

    nodes: Nodes
    name: Choice
    patience: int
    settled: int
    eager: float
    quadratic: bool
    linearizations: int = 0

    @abstractmethod
    def blank(self, count: int) -> Memory:
        """Of segments that no round has changed."""

    def rows(self, flight: Flight) -> list[Rows]:
        """What is to be evaluated: the nodes, and the rows that the iteration needs beside them."""
        n, d = flight.states.shape[1:]
        at = flight.times(self.nodes.c).ravel(), flight.states.reshape(-1, d), np.repeat(flight.sample, n)
        beside = self._beside(flight)
        return [at] if beside is None else [at, beside]

    def _beside(self, flight: Flight) -> Rows | None:
        """Rows beside those of the nodes; None: there are none."""
        return None

    @abstractmethod
    def sweep(self, flight: Flight, drift: Array, beside: Array | None) -> Correction:
        """The correction from the drifts at the nodes ``(K, n, d)`` and at the rows asked for ``(rows, d)``."""

    @abstractmethod
    def follow(self, flight: Flight, new: Followers, limits: Limits) -> tuple[Array, Array, Memory]:
        """Starts ``(P, d)``, states ``(P, n, d)`` and memory of segments to be appended: the guess."""

    @abstractmethod
    def remainder(self, stale: np.ndarray) -> np.ndarray | float:
        """The next change of a segment relative to this one is taken to be at least this.

        Args:
            stale: whether segments were linearised in this round.
        """
