"""The step maps of a window: what an iteration sees of one round's evaluations."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from picardsolve.problem.recurrence import linear_sweep


@dataclass(frozen=True, kw_only=True)
class Steps(ABC):
    """The step maps ``Phi_n`` of ``W`` steps of ``B`` samples, with the drift's outputs of one round.

    A subclass is a frozen dataclass. Each attribute is optional; None says that nothing is known.

    Attributes:
        expected_slope: ``(W, B or 1, 1)``, the factor by which ``Phi_n`` is expected to scale a change of its state.
            None stands for 1.
        elementwise: ``(W, B, D)``, the part of the values of ``Phi_n`` whose element i depends on element i of the
            state only, such as the noise of an `SDE` with diagonal noise.
        admissible: ``(W, B)`` booleans, whether a value that no longer moves may be accepted. None stands for all.
        noise_scale: ``(W, B)``, standard deviation of the noise in each new state.
        directions: ``(P, D)``, directions of the derivatives.
        derivatives: ``(W, B, P, D)``, ``dPhi_n / dX_n`` times each direction. For a multistep method, only the
            derivative with respect to the state that the step leaves from.
    """

    expected_slope: Tensor | None = None
    elementwise: Tensor | None = None
    admissible: Tensor | None = None
    noise_scale: Tensor | None = None
    directions: Tensor | None = None
    derivatives: Tensor | None = None

    @abstractmethod
    def images(self) -> Tensor:
        """The values ``Phi_n(X_n)``, shape ``(W, B, D)``. The caller may overwrite their memory."""

    @abstractmethod
    def frozen(self, x: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Step from ``x[0]`` through the window with the outputs held fixed.

        Args:
            x: the old states, ``(W + 1, B, D)``.
            scratch: memory ``(W, B, D)`` that the result may use.

        Returns:
            The new states and their changes, both ``(W, B, D)``, and the root mean squares of the residuals,
            ``(W, B)`` or None.
        """

    @abstractmethod
    def passed(self, change: Tensor) -> Tensor:
        """The changes of the values that changes ``(W, B, D)`` of the old states cause, with the outputs held fixed."""


@dataclass(frozen=True)
class AffineSteps(Steps):
    """Step maps ``x' = a x + c`` elementwise, where a is known and c holds everything that depends on the outputs.

    Attributes:
        values: ``Phi_n(X_n)``, shape ``(W, B, D)``.
        factor: a, ``(W, B or 1, D or 1)``; None stands for 1.
    """

    values: Tensor
    factor: Tensor | None = None

    def images(self) -> Tensor:
        """The values."""
        return self.values

    def frozen(self, x: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The recurrence with the factors."""
        return linear_sweep(self.values, self.factor, x, scratch)

    def passed(self, change: Tensor) -> Tensor:
        """The changes times the factors."""
        return change if self.factor is None else self.factor * change
