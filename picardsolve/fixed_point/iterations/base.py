"""The interface of an iteration: how a window answers to what one round computed."""

from abc import ABC, abstractmethod

from torch import Tensor

from picardsolve.fixed_point.sweep import Memory, Swept
from picardsolve.integrators.base import Steps


class Method(ABC):  # noqa: B024
    """A way to solve the steps of a chain in rounds: what `picardsolve.solve` takes as ``iteration``.

    Attributes:
        solves_equations: whether it serves implicit chains, whose steps are equations.
    """

    solves_equations: bool = False


class Iteration(Method):
    """One choice of ``delta`` in ``Y[n+1] = F[n] + delta_n(Y[n], X[n])``, ``F[n] = Phi_n(X[n])``, ``Y[b] = X[b]``.

    Whatever the choice, after k sweeps the first k states of a window are the sequential ones, and the fixed point is
    the sequential solution. An iteration holds hyper-parameters only; what it knows of a run is its memory, which the
    window keeps, moves along with the steps, and fills with zeros for steps that enter.

    A subclass outside this library is watched: a sweep that breaks the contract raises a ValueError that names the
    rule, and what it does not report is computed (`picardsolve.fixed_point.iterations.watched`).
    """

    def directions(self, size: int, rounds: int) -> Tensor | None:
        """The directions ``(P, size)`` that a round shall differentiate the steps along; None, the default: none.

        A sweep of more than one step is then given steps with ``directions`` and ``derivatives``.

        Args:
            size: numbers in a state, D.
            rounds: how many came before.
        """
        return None

    @abstractmethod
    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """New states from old ones.

        Args:
            steps: the window's steps with this round's outputs.
            x: the old states ``X[b] ... X[b + W]``, shape ``(W + 1, B, D)``; not to be written to.
            scratch: ``(W, B, D)`` memory that the change may be returned in.
            memory: of the sweep before, moved to this window's steps; empty at first.
        """
