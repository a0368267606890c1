"""What every certificate answers, whatever solved the equation."""

from abc import ABC, abstractmethod
from typing import Any, Literal

from torch import Tensor

Kind = Literal["estimated", "certified"]


class AbstractCertificate(ABC):
    """How far a solution is from its reference, as far as the solve can tell: ``solution.certificate``.

    The reference of a solve on a grid is the solution of the sequential integrator. The reference of adaptive
    collocation is the solution of the equation itself.

    Attributes:
        error: estimated distance to the reference, ``(T,)`` or, for samples, ``(T, B)``; NaN where it is not known.
        bound: upper bound of that distance, of the same shape; NaN where no bound is claimed.
        kind: "estimated", or "certified" for a bound that is proven.
        precision_floor: what rounding alone may have left; its shape broadcasts with that of ``error``.
        growth: factor by which a small change of y0 grows along the solution, ``()`` or ``(B,)``; NaN where it is not
            known.
        rounds: batched calls of the user's function that the certificate rests on.
        warnings: what to know, and what to do about it: a sentence each.
        solution: the `Solution` that this is about; None where it was not kept.
    """

    error: Tensor
    bound: Tensor
    kind: Kind
    precision_floor: Tensor
    growth: Tensor
    rounds: int
    warnings: tuple[str, ...]
    solution: Any

    @abstractmethod
    def certified(self, lipschitz: float | Tensor, one_sided: float | Tensor | None = None) -> "AbstractCertificate":
        """The same certificate with a proven bound, for Lipschitz constants that the user gives.

        Raises:
            TypeError: no bound follows from such constants; the message says what to do instead.
        """

    @abstractmethod
    def recheck(self, factor: float = 0.03) -> "AbstractCertificate":
        """The same certificate with an error that was measured, by a second solve to ``factor`` times the tolerance.

        Raises:
            TypeError: the solve cannot be repeated from here; the message says what to do instead.
        """

    @abstractmethod
    def verify(self) -> Any:
        """The claims beside the true distance, from the sequential solver.

        Raises:
            TypeError: there is no sequential solver of this solution; the message says what to do instead.
        """

    @abstractmethod
    def __str__(self) -> str:
        """The estimates in one line, then the warnings, a line each."""
