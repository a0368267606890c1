"""How far a solution by collocation is from that of its equation."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from picardsolve.collocation.accuracy import Accuracy
from picardsolve.collocation.samples import Sample
from picardsolve.problem.state import Layout
from picardsolve.results.solution import Solution


@dataclass(frozen=True)
class Estimate:
    """The certificate of a solution by collocation: estimated distances to the solution of the equation itself.

    Fields of shape ``(T,)`` or, for samples, ``(T, B)`` belong to the times of the solution.

    Attributes:
        error: of the component that is worst, in tolerances: residuals at points that the iteration did not use,
            carried on by the linearised equation. Of states of more than 64 numbers that Newton did not solve, sizes of
            errors are added up without their growth.
        allowed: what the tolerance allows it to be.
        precision_floor: what rounding may have become.
        growth: factor that an error at the start has grown by at the end, both in tolerances of the components' largest
            values; NaN where not known. ``()`` or ``(B,)``.
        warnings: what to know.
    """

    error: Tensor
    allowed: Tensor
    precision_floor: Tensor
    growth: Tensor
    warnings: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        known = self.error[~self.error.isnan()]
        worst = float(known.max()) if len(known) else float("nan")
        text = f"estimated distance to the solution of the equation, at most {worst:.1e}"
        growth = float(self.growth.max())
        return "\n".join([text if np.isnan(growth) else f"{text}; growth {growth:.2g}", *self.warnings])

    @staticmethod
    def of(samples: list[Sample], layout: Layout, solution: Solution) -> "Estimate":
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

        return Estimate(shown(error), shown(allowed), shown(floor), shown(growth), warnings)


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
