"""How far a solution by collocation is from that of its equation."""

from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from picardsolve.collocation.accuracy import Accuracy
from picardsolve.collocation.samples import Sample
from picardsolve.problem.state import Layout
from picardsolve.results.abstract_certificate import AbstractCertificate, Kind
from picardsolve.results.solution import Solution

_COMPARE = "solve again with a tenth of rtol and atol, or with other nodes, and compare the states"


@dataclass(frozen=True)
class CollocationCertificate(AbstractCertificate):
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

    error: Tensor
    allowed: Tensor
    bound: Tensor
    kind: Kind
    precision_floor: Tensor
    growth: Tensor
    rounds: int
    warnings: tuple[str, ...] = ()
    solution: Solution | None = field(repr=False, default=None)

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

    def __str__(self) -> str:
        known = self.error[~self.error.isnan()]
        worst = float(known.max()) if len(known) else float("nan")
        text = f"estimated distance to the solution of the equation, at most {worst:.1e}"
        growth = float(self.growth.max())
        return "\n".join([text if np.isnan(growth) else f"{text}; growth {growth:.2g}", *self.warnings])

    @staticmethod
    def of(samples: list[Sample], layout: Layout, solution: Solution) -> "CollocationCertificate":
        """Read the checks of the accepted segments."""
        columns = [_of(sample) for sample in samples]
        last = slice(-len(solution.ts), None)  # of which only the end is kept where so much was asked for
        error, allowed, floor = (np.stack([column[k] for column in columns], 1)[last] for k in range(3))
        growth = np.array([column[3] for column in columns])
        warnings = ()
        if np.isnan(growth).any():
            warnings = ("growth: not known of states this large; errors may have grown beyond the estimate.",)

        def shown(value: np.ndarray) -> Tensor:
            return torch.from_numpy(value if layout.batched else np.array(value[..., 0]))

        return CollocationCertificate(
            error=shown(error),
            allowed=shown(allowed),
            bound=shown(np.full_like(error, np.nan)),
            kind="estimated",
            precision_floor=shown(floor),
            growth=shown(growth),
            rounds=solution.stats.rounds,
            warnings=warnings,
            solution=solution,
        )


def _of(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    posed, march = sample.posed, sample.refinement.march
    clock, missing = posed.clock, np.full(len(posed.ts), np.nan)
    if not march.accepted:
        return missing, missing, missing, np.nan
    accuracy = sample.refinement.accuracy or Accuracy.of(march.accepted, march.bounds)
    ends = np.array([segment.end for segment in march.accepted])
    at = np.minimum(np.searchsorted(ends, clock * (1 - 1e-12)), len(ends) - 1)
    scale = np.array([segment.scale for segment in march.accepted])[at]
    allowed = march.bounds.allowed(scale) / sample.refinement.scaled
    before = np.concatenate([0 * accuracy.error[:1], accuracy.error])
    error = np.maximum(np.abs(before[at]), np.abs(before[at + 1]))  # at either end of the segment that a time is in
    worst = (error / allowed).argmax(1)
    rows = np.arange(len(clock))
    beyond = clock > sample.reached * (1 + 1e-12)
    out = [np.where(clock == 0, 0, error[rows, worst]), allowed[rows, worst], accuracy.floor[at][rows, worst]]
    return (*(np.where(beyond, np.nan, value) for value in out), accuracy.growth)  # pyright: ignore
