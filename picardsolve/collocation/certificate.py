"""How far a solution by collocation is from the solution of its equation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from torch import Tensor

from picardsolve.collocation.initial_value import Limits
from picardsolve.collocation.path import Path, counted
from picardsolve.collocation.refinement import PropagatedError
from picardsolve.collocation.trajectory import DenseStates
from picardsolve.results.adaptive_certificate import AdaptiveCertificate
from picardsolve.results.solution import Solution

_COMPARE = "solve again with a tenth of rtol and atol, or with other nodes, and compare the states"


@dataclass(frozen=True)
class CollocationCertificate(AdaptiveCertificate):
    """How far a solution by collocation is from the solution of the equation itself.

    Fields of shape ``(T,)`` or, for samples, ``(T, B)`` belong to the times of the solution.

    Attributes:
        error: estimated error of the component that is largest in tolerances: residuals at points that the iteration
            did not use, propagated by the linearised equation. States of more than 64 numbers that Newton's method did
            not solve have no linearised equation: the sizes of their errors are added up.
        allowed: error of that component that the tolerance allows.
        bound: NaN: no bound is claimed.
        kind: "estimated".
        precision_floor: standard deviation of that component from rounding, of the shape of ``error``.
        growth: factor by which an error at the start has grown at the end, both in tolerances of the components'
            largest values; NaN where not known. ``()`` or ``(B,)``.
        rounds: batched drift calls of the solve.
        warnings: what to know.
        solution: the solution that this is about.
    """

    def certified(self, lipschitz: float | Tensor, one_sided: float | Tensor | None = None) -> NoReturn:
        """Refused: raises a TypeError."""
        raise TypeError(
            "certified: bounds are proven for the steps of a grid, and Collocation has none; use certificate.error, or "
            "solve on a grid with integrator=picardsolve.RK4()."
        )

    def recheck(self, factor: float = 0.03) -> NoReturn:
        """Refused: raises a TypeError."""
        raise TypeError(
            f"recheck: {_COMPARE}; its own residuals were already checked at points that the iteration did not use."
        )

    def verify(self) -> NoReturn:
        """Refused: raises a TypeError."""
        raise TypeError(f"verify: Collocation has no sequential solver; {_COMPARE}.")

    @staticmethod
    def of(states: DenseStates, limits: Sequence[Limits], solution: Solution) -> "CollocationCertificate":
        """Read the checks of the accepted segments; ``limits`` are those of the paths."""
        elapsed, layout = states.problem.elapsed, states.layout
        columns, growth = np.full((3, *elapsed.shape), np.nan), np.full(elapsed.shape[1], np.nan)
        for path, own in zip(states.paths, limits, strict=True):
            sample = np.unique(path.segments.sample)
            columns[:, :, sample], growth[sample] = _of(path, own, elapsed[:, sample], sample)
        columns[0, elapsed > states.reached * (1 + 1e-12)] = np.nan
        return CollocationCertificate.read(columns, growth, layout.batched, solution)


def _of(path: Path, limits: Limits, elapsed: np.ndarray, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Error, allowed error and rounding of the worst component at elapsed times, ``(3, T, A)``, and the growth."""
    arrays, own, numbers = path.arrays, path.segments, path.segments.error.shape[1]
    found = PropagatedError.of(own, limits)
    t, whose = elapsed.ravel(), np.tile(np.arange(len(sample)), len(elapsed))
    place = counted(own.end, own.sample, t * (1 - 1e-12), sample[whose], before=True)
    at = found.chains.begins[whose] + np.minimum(place, found.chains.counts[whose] - 1)
    first = np.flatnonzero(found.chains.level == 0)
    before = arrays.concat([found.error[:1], found.error[:-1]])
    before = arrays.put(before, first, arrays.zeros(len(first), numbers))
    either = arrays.larger(before, found.error)
    rows = (arrays.take(part, at) for part in (either, found.allowed, found.floor))
    error, allowed, floor = arrays.fetch(*rows)
    rows, worst = np.arange(len(at)), (error / allowed).argmax(1)
    out = np.stack([part[rows, worst] for part in (error, allowed, floor)])
    out[0, t == 0] = 0
    return out.reshape(3, *elapsed.shape), found.growth
