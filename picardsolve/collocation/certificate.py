"""How far a solution by collocation is from the solution of its equation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from picardsolve.collocation.refinement import PropagatedError
from picardsolve.collocation.sample import Sample
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
    def of(samples: Sequence[Sample], layout: Layout, solution: Solution) -> "CollocationCertificate":
        """Read the checks of the accepted segments."""
        columns = [_of(sample) for sample in samples]
        last = slice(-len(solution.ts), None)  # the solution may have kept the last time only
        error, allowed, floor = (np.stack([column[k] for column in columns], 1)[last] for k in range(3))
        growth = np.array([column[3] for column in columns])
        warnings = ()
        if np.isnan(growth).any():
            warnings = ("growth: not known for states this large; errors may have grown beyond the estimate.",)

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
    """Error, allowed error and rounding of the worst component at the sample's times ``(T,)``, and the growth."""
    elapsed, march = sample.problem.elapsed, sample.march
    if not march.accepted:
        missing = np.full(len(elapsed), np.nan)
        return missing, missing, missing, np.nan
    found = sample.error or PropagatedError.of(march.accepted, march.limits)
    ends = np.array([segment.end for segment in march.accepted])
    at = np.minimum(np.searchsorted(ends, elapsed * (1 - 1e-12)), len(ends) - 1)
    error, allowed, floor = (value[at] for value in (found.at_either_end(), found.allowed, found.floor))
    rows, worst = np.arange(len(at)), (error / allowed).argmax(1)
    error, allowed, floor = (value[rows, worst] for value in (error, allowed, floor))
    beyond = elapsed > sample.reached * (1 + 1e-12)
    out = (np.where(beyond, np.nan, value) for value in (np.where(elapsed == 0, 0, error), allowed, floor))
    return (*out, found.growth)  # pyright: ignore[reportReturnType]
