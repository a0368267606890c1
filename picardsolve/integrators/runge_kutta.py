"""Explicit Runge-Kutta methods: Euler, Heun, RK4. A stage is a round."""

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Evaluated, Hold, Index, Integrator, Rows, Steps, per_step, refuse
from picardsolve.integrators.euler_maruyama import EulerMaruyama
from picardsolve.integrators.step_maps import AffineSteps
from picardsolve.problem.clock import Clock
from picardsolve.problem.problem import Problem
from picardsolve.problem.row_function import RowFunction
from picardsolve.problem.terms import ODE, SDE, SemilinearODE
from picardsolve.theory.bounds import step_lipschitz

# Butcher tableaus: rows of a, then the weights b (Hairer, Norsett & Wanner 1993, table II.1.2)
_HEUN = (((1.0,),), (1 / 2, 1 / 2))
_CLASSIC = (((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
_THREE_EIGHTHS = (((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8))
_EULER = ((), (1.0,))


@dataclass(frozen=True)
class Euler(Integrator):
    """Explicit Euler on an `ODE`; on an Ito `SDE` the same as `EulerMaruyama`."""

    order = 1

    def chain(self, problem: Problem) -> DriftChain:
        """Build the chain of an `ODE` or an Ito `SDE`."""
        if isinstance(problem.term, ODE | SemilinearODE):
            return RungeKuttaChain(problem, _EULER)
        if not isinstance(problem.term, SDE):
            raise refuse(self, problem.term, "an ODE or an SDE", "DDIM(), DDPM() or DPMSolver() for a Denoiser")
        return EulerMaruyama().chain(problem)


@dataclass(frozen=True)
class Heun(Integrator):
    """Heun's second-order method on an `ODE`: two stages, so two rounds a window."""

    order = 2

    def chain(self, problem: Problem) -> DriftChain:
        """Build the chain of an `ODE`."""
        return _runge_kutta(self, problem, _HEUN)


@dataclass(frozen=True)
class RK4(Integrator):
    """The fourth-order method on an `ODE`: four stages, so four rounds a window.

    Args:
        rule: "classic", or "3/8", which torchdiffeq calls "rk4".
    """

    rule: Literal["classic", "3/8"] = "classic"
    order = 4

    def __post_init__(self):
        if self.rule not in ("classic", "3/8"):
            raise ValueError(f"rule: expected one of 'classic', '3/8', got {self.rule!r}.")

    def chain(self, problem: Problem) -> DriftChain:
        """Build the chain of an `ODE`."""
        return _runge_kutta(self, problem, _CLASSIC if self.rule == "classic" else _THREE_EIGHTHS)


def _runge_kutta(integrator: Integrator, problem: Problem, tableau: tuple) -> DriftChain:
    if not isinstance(problem.term, ODE | SemilinearODE):
        instead = (
            "EulerMaruyama() or StochasticHeun() for an SDE"
            if isinstance(problem.term, SDE)
            else "DDIM() or DPMSolver() for a Denoiser"
        )
        raise refuse(integrator, problem.term, "an ODE", instead)
    return RungeKuttaChain(problem, tableau)


class RungeKuttaChain(DriftChain):
    """``Phi_n(x) = x + h_n sum_i b_i k_i``; the output of a step is its slope ``sum_i b_i k_i``."""

    def __init__(self, problem: Problem, tableau: tuple):
        term = cast(ODE | SemilinearODE, problem.term)
        self.length = len(problem.ts) - 1
        self.rounds = len(tableau[1])
        self._a, self._b = tableau
        self._t, self._h = problem.ts[:-1], problem.ts.diff()
        self._drift = RowFunction(
            *("drift", term.drift, problem.layout, Clock.of(problem.ts, problem.layout), problem.args, term.takes),
            max_batch=problem.max_batch,
            parameters=problem.parameters,
        )

    def evaluate(self, rows: Rows) -> Tensor:
        """The slopes, ``(R, D)``, and their derivatives."""
        t, states = self._t.numpy()[rows.step], rows.dual
        slopes = [self._call(t, states, rows)]
        if not self._a:
            return slopes[0]
        h, column = self._h.numpy()[rows.step], per_step(self._h, rows.step, rows.state)
        for a in self._a:
            y = states + column * sum(w * k for w, k in zip(a, slopes, strict=True) if w)
            slopes.append(self._call(t + sum(a) * h, y, rows))
        return torch.stack([w * k for w, k in zip(self._b, slopes, strict=True)]).sum(0)

    def _call(self, t: np.ndarray, y: Tensor, rows: Rows) -> Tensor:
        return self._drift(torch.from_numpy(t), y, torch.from_numpy(rows.sample))

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The steps of a window."""
        return AffineSteps(torch.addcmul(x, outputs, per_step(self._h, n, x)))

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """Steps along a fixed slope."""
        return torch.addcmul(start, per_step(self._h, n, start).cumsum(0), source.output)

    def step_constants(self, lipschitz: Tensor, one_sided: Tensor | None) -> Tensor:
        """``1 + h sum |b_i| l_i`` with ``l_i = L (1 + h sum |a_ij| l_j)`` for the stages.

        Of Euler with a one-sided constant as in `theory.step_lipschitz`.
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

    def counts(self) -> tuple[int, int]:
        """Drift calls and evaluations so far."""
        return self._drift.calls, self._drift.evaluations
