"""Exponential (semilinear) Picard iteration."""

from dataclasses import dataclass

from torch import Tensor

from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.sweep import Memory, Swept
from picardsolve.integrators.base import Steps


@dataclass(frozen=True)
class Exponential(Iteration):
    """``delta = frozen(y) - frozen(x)``, where ``frozen`` is the step with the outputs of this round held fixed.

        sol = ps.solve(model, x, ts, integrator=ps.DDIM(), iteration=ps.Exponential())

    The linear part that the integrator knows is thereby exact, and only the change of the drift is iterated (Tang et
    al. 2024, ParaTAA, eq. 9; Chen et al. 2024). For Runge-Kutta methods it is `Picard`. The default for `ETD1`,
    `ETDRK2` and `ETDRK4`.
    """

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """``Y[n+1] = frozen_n(Y[n])``."""
        return Swept(*steps.frozen(x, scratch))
