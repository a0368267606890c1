"""The interface of an iteration: how a window answers to what one round computed."""

from abc import ABC, abstractmethod

from torch import Tensor

from picardsolve.integrators.base import Steps


class Iteration(ABC):
    """One choice of ``delta`` in ``Y[n+1] = F[n] + delta_n(Y[n], X[n])``, ``F[n] = Phi_n(X[n])``, ``Y[b] = X[b]``.

    Whatever the choice, after k sweeps the first k states of a window are the sequential ones, and the fixed point is
    the sequential solution.
    """

    @abstractmethod
    def sweep(self, steps: Steps, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """New states from old ones.

        Args:
            steps: the window's steps with this round's outputs.
            x: the old states ``X[b] ... X[b + W]``, shape ``(W + 1, B, D)``.

        Returns:
            The new states ``Y[b + 1] ... Y[b + W]``, their change ``Y - X``, and the residuals ``F[n] - X[n + 1]``
            (None where the sweep does not compute them), each ``(W, B, D)``.
        """
