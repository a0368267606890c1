"""Explicit Runge-Kutta methods: Euler, midpoint, Heun, RK4. Each stage is a round."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Evaluated, Hold, Index, Integrator, Rows, accepted_term
from picardsolve.integrators.ito import EulerMaruyama
from picardsolve.integrators.probability_flow import probability_flow
from picardsolve.integrators.step_maps import AffineSteps, Steps
from picardsolve.integrators.step_table import StepTable, Times
from picardsolve.integrators.tableau import Tableau, nodes
from picardsolve.problem.denoiser import Denoiser
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import ODE, SDE, SemilinearODE
from picardsolve.theory.bounds import step_lipschitz

_CLASSIC: Tableau = (((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
_THREE_EIGHTHS: Tableau = (((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8))


class RungeKutta(Integrator):
    """An explicit Runge-Kutta method. A subclass sets `order` and `tableau`.

    On a `Denoiser` it solves the probability flow in the time of the schedule; for `Flow` that is ``dx/dt = v``.

    Attributes:
        tableau: the rows of a below the diagonal, and the weights b.
    """

    tableau: Tableau

    def chain(self, problem: Problem) -> DriftChain:
        """The chain of an `ODE`, a `SemilinearODE` or a `Denoiser`."""
        term = accepted_term(self, problem, ODE, SemilinearODE, Denoiser)
        if isinstance(term, Denoiser):
            return probability_flow(problem, term, self.tableau)
        return RungeKuttaChain(self, problem, self.tableau)


@dataclass(frozen=True)
class Euler(RungeKutta):
    """The explicit Euler method for an `ODE`, ``x[n+1] = x[n] + h drift(t[n], x[n])``; order 1.

    For an Ito `SDE` it is `EulerMaruyama`.

        sol = ps.solve(ps.ODE(f), y0, ts, integrator=ps.Euler())
    """

    order = 1
    tableau = ((), (1.0,))

    def chain(self, problem: Problem) -> DriftChain:
        """The chain of an `ODE`, a `SemilinearODE`, a `Denoiser` or an Ito `SDE`."""
        if isinstance(accepted_term(self, problem, ODE, SemilinearODE, Denoiser, SDE), SDE):
            return EulerMaruyama().chain(problem)
        return super().chain(problem)


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """The explicit midpoint method for an `ODE`; order 2, with two stages, so that a window takes two rounds.

        sol = ps.solve(ps.ODE(f), y0, ts, integrator=ps.Midpoint())

    Source: Hairer, Norsett & Wanner 1993, table II.1.1.
    """

    order = 2
    tableau = (((1 / 2,),), (0.0, 1.0))


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method for an `ODE`; order 2, with two stages, so that a window takes two rounds.

        sol = ps.solve(ps.ODE(f), y0, ts, integrator=ps.Heun(), window=64)

    Source: Hairer, Norsett & Wanner 1993, table II.1.1.
    """

    order = 2
    tableau = (((1.0,),), (1 / 2, 1 / 2))


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The Runge-Kutta method of order 4 for an `ODE`, with four stages, so that a window takes four rounds.

    Source: Hairer, Norsett & Wanner 1993, table II.1.2.

    Args:
        rule: "classic", or "3/8", which is "rk4" in torchdiffeq.

    Raises:
        ValueError: ``rule`` is neither.
    """

    rule: Literal["classic", "3/8"] = "classic"
    order = 4

    def __post_init__(self):
        if self.rule not in ("classic", "3/8"):
            raise ValueError(f"rule: expected one of 'classic', '3/8', got {self.rule!r}.")

    @property
    def tableau(self) -> Tableau:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the rule."""
        return _CLASSIC if self.rule == "classic" else _THREE_EIGHTHS


@final
class RungeKuttaChain(DriftChain):
    """``Phi_n(x) = x + h_n sum_i b_i k_i`` with stages k_i; the output of a step is its slope ``sum_i b_i k_i``."""

    def __init__(self, integrator: Integrator, problem: Problem, tableau: Tableau):
        term = accepted_term(integrator, problem, ODE, SemilinearODE)
        self.length, self.rounds = len(problem.ts) - 1, len(tableau[1])
        self.function = problem.row_function("drift", term.drift)
        self._a, self._b = tableau
        self._h = problem.ts.diff()
        self._table = StepTable(self._h, problem.layout)
        self._stages = Times(torch.stack([problem.ts[:-1] + c * self._h for c in nodes(tableau)]), self.function)

    def evaluate(self, rows: Rows) -> Tensor:
        """The slopes, ``(R, D)``, and their derivatives."""
        first, *later = self._stages.numbers(rows.step).unbind(0)
        states = rows.dual
        slopes = [self.function(first, states, rows.sample)]
        if not later:
            return slopes[0]
        h = self._table.at(rows.step)
        for t, a in zip(later, self._a, strict=True):
            y = states
            for w, k in zip(a, slopes, strict=True):
                y = torch.addcmul(y, h, k, value=w) if w else y
            slopes.append(self.function(t, y, rows.sample))
        total = self._b[0] * slopes[0]
        for w, k in zip(self._b[1:], slopes[1:], strict=True):
            total.add_(k, alpha=w)
        return total

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The step maps of a window."""
        return AffineSteps(torch.addcmul(x, outputs, self._table.at(n)))

    def image(self, rows: Rows, out: Tensor, past: Tensor | None = None) -> Tensor:
        """The states after the steps of rows."""
        return torch.addcmul(rows.state, out, self._table.at(rows.step))

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """Steps along a fixed slope."""
        return torch.addcmul(start, self._table.at(n).cumsum(0), source.output)

    def step_constants(self, lipschitz: Tensor, one_sided: Tensor | None) -> Tensor:
        """``1 + h sum |b_i| l_i`` with ``l_i = L (1 + h sum |a_ij| l_j)`` for the stages.

        For Euler with a one-sided constant: see `theory.step_lipschitz`.
        """
        h = self._h.abs()
        if one_sided is not None:
            if self._a:
                raise TypeError("one_sided: only of use to Euler() and BackwardEuler(); leave it out for others.")
            return step_lipschitz(h, lipschitz, one_sided)[:, None]
        stages = [lipschitz]
        for a in self._a:
            stages.append(lipschitz * (1 + h * sum(abs(w) * l for w, l in zip(a, stages, strict=True))))
        return (1 + h * sum(abs(w) * l for w, l in zip(self._b, stages, strict=True)))[:, None]
