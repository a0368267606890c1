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
    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """New states from old ones.

        Args:
            steps: the window's steps with this round's outputs.
            x: the old states ``X[b] ... X[b + W]``, shape ``(W + 1, B, D)``.
            scratch: ``(W, B, D)`` memory that the change may be returned in.

        Returns:
            The new states ``Y[b + 1] ... Y[b + W]`` and their change ``Y - X``, each ``(W, B, D)``, and the root mean
            square of the residuals ``F[n] - X[n + 1]``, ``(W, B)`` (None where the sweep does not compute them).
        """
