"""What the certificates of adaptive methods share: an estimate at the times that were asked for, and no bound."""

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from picardsolve.results.abstract_certificate import AbstractCertificate, Kind
from picardsolve.results.solution import Solution

Certificate = TypeVar("Certificate", bound="AdaptiveCertificate")


@dataclass(frozen=True)
class AdaptiveCertificate(AbstractCertificate):
    """How far a solution is from the solution of the equation itself; what a method cannot answer it refuses.

    Fields of shape ``(T,)`` or, for samples, ``(T, B)`` belong to the times of the solution.

    Attributes:
        error: estimated error of the component that is largest in tolerances.
        allowed: error of that component that the tolerance allows.
        bound: NaN: no bound is claimed.
        kind: "estimated".
        precision_floor: standard deviation of that component from rounding, of the shape of ``error``.
        growth: factor by which an error at the start has grown at the end, both in tolerances; NaN where not known.
            ``()`` or ``(B,)``.
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

    def __str__(self) -> str:
        known = self.error[~self.error.isnan()]
        worst = float(known.max()) if len(known) else float("nan")
        text = f"estimated distance to the solution of the equation, at most {worst:.1e}"
        growth = float(self.growth.max())
        return "\n".join([text if np.isnan(growth) else f"{text}; growth {growth:.2g}", *self.warnings])

    @classmethod
    def read(
        cls: type[Certificate], errors: np.ndarray, growth: np.ndarray, batched: bool, solution: Solution
    ) -> Certificate:
        """From errors, what is allowed, and rounding, ``(3, T, B)``, and growth ``(B,)``.

        The last times are the solution's, which may have kept the last one only.
        """
        warnings = ()
        if np.isnan(growth).any():
            warnings = ("growth: not known for states this large; errors may have grown beyond the estimate.",)

        def shown(value: np.ndarray) -> Tensor:
            return torch.from_numpy(np.array(value if batched else value[..., 0]))

        error, allowed, floor = map(shown, errors[:, -len(solution.ts) :])
        return cls(
            error=error,
            allowed=allowed,
            bound=torch.full_like(error, torch.nan),
            kind="estimated",
            precision_floor=floor,
            growth=shown(growth),
            rounds=solution.stats.rounds,
            warnings=warnings,
            solution=solution,
        )
