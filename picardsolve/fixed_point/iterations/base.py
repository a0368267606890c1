"""The interfaces of what a solve takes as ``iteration``."""

from abc import ABC, abstractmethod
from typing import Any, Literal

from torch import Tensor

from picardsolve.fixed_point.error_estimate import ErrorEstimate
from picardsolve.fixed_point.grid_machine import GridMachine
from picardsolve.fixed_point.guesses import Guess
from picardsolve.fixed_point.stopping import Stopping
from picardsolve.fixed_point.sweep import Sweep
from picardsolve.fixed_point.window import Settings, Window
from picardsolve.integrators.base import DriftChain
from picardsolve.problem.tolerances import Stop


class Method(ABC):
    """A way to solve the steps of a chain in rounds: what `picardsolve.solve` takes as ``iteration``.

    Attributes:
        solves_equations: it serves implicit chains, whose steps are equations.
        stop: the only rule for stopping that the method has, which takes the place of the one that a solve was given.
            None: it takes any, and errors can be estimated from its rounds.
        on_segments: the name of the same iteration on the segments of `Collocation`; None: there is none.
    """

    solves_equations: bool = False
    stop: Stop | None = None
    on_segments: Literal["picard", "secant", "newton"] | None = None

    @abstractmethod
    def machine(
        self,
        chain: DriftChain,
        y: Tensor,
        path: Tensor | None,
        *,
        width: int,
        guess: Guess,
        stopping: Stopping,
        meter: ErrorEstimate | None = None,
        lockstep: bool = False,
    ) -> GridMachine:
        """The machine that solves a chain by this method.

        Args:
            chain: what is solved.
            y: ``(B, D)`` initial states.
            path: ``(N + 1, B, D)``, where accepted states are kept; None: nowhere.
            width: most steps in a round for each sample.
            guess: what the states that enter a window start from.
            stopping: which states may be accepted; of this solve only, for it remembers its rounds.
            meter: what estimates errors where ``stopping`` does not; of this solve only.
            lockstep: all samples share one position, that of the slowest.

        Raises:
            TypeError: the method does not serve this chain.
        """


class Iteration(Sweep, Method):
    """One choice of ``delta`` in ``Y[n+1] = F[n] + delta_n(Y[n], X[n])``, ``F[n] = Phi_n(X[n])``, ``Y[b] = X[b]``.

    Whatever the choice, after k sweeps the first k states of a window are the sequential ones, and the fixed point is
    the sequential solution. An iteration has hyper-parameters only. What it knows of a run is its memory: the window
    keeps it, moves it along with the steps, and fills it with zeros for steps that enter.

    A subclass outside this library is checked in every round: a sweep that breaks the contract raises a ValueError
    that names the rule, and what it does not report is computed.
    """

    def machine(self, chain: DriftChain, y: Tensor, path: Tensor | None, **how: Any) -> Window:
        """A `Window` that sweeps by this iteration."""
        return Window(chain, y, Settings(iteration=self, **how), path)
