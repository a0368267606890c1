"""How far a solution by steps of an embedded pair is from the solution of its equation."""

from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

from picardsolve.results.adaptive_certificate import AdaptiveCertificate

_COMPARE = "solve again with a tenth of rtol and atol, or with another method, and compare the states"


@dataclass(frozen=True)
class EmbeddedCertificate(AdaptiveCertificate):
    """How far a solution by steps of an embedded pair is from the solution of the equation itself.

    Fields of shape ``(T,)`` or, for samples, ``(T, B)`` belong to the times of the solution.

    Attributes:
        error: estimated error of the component that is largest in tolerances: local errors, seen by a divided
            difference over several steps, propagated by the linearised equation. States of more than ten numbers have
            one only if they have at most 64 and all samples together at most 256: for the others the sizes of errors
            are added up.
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

    def certified(self, lipschitz: float | Tensor, one_sided: float | Tensor | None = None) -> NoReturn:
        """Refused: raises a TypeError."""
        raise TypeError(
            "certified: bounds are proven for the steps of a grid, and adaptive steps have none; use "
            "certificate.error, or solve on a grid with integrator=picardsolve.RK4()."
        )

    def recheck(self, factor: float = 0.03) -> NoReturn:
        """Refused: raises a TypeError."""
        raise TypeError(f"recheck: {_COMPARE}.")

    def verify(self) -> NoReturn:
        """Refused: raises a TypeError."""
        raise TypeError(f"verify: adaptive steps are sequential already; {_COMPARE}.")
