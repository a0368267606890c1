"""Explicit Runge-Kutta methods: Euler (on an SDE: Euler-Maruyama), Heun, RK4. A stage is a round."""

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from picardsolve.drift import RowFunction
from picardsolve.integrators.additive import Additive
from picardsolve.integrators.base import (
    DriftChain,
    Evaluated,
    Hold,
    Index,
    Integrator,
    Problem,
    Rows,
    Steps,
    per_step,
    refuse,
)
from picardsolve.recurrence import recurrence
from picardsolve.terms import ODE, SDE, SemilinearODE
from picardsolve.theory.bounds import step_lipschitz

# Butcher tableaus: rows of a, then the weights b (Hairer, Norsett & Wanner 1993, table II.1.2)
_HEUN = (((1.0,),), (1 / 2, 1 / 2))
_CLASSIC = (((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
_THREE_EIGHTHS = (((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8))
_EULER = ((), (1.0,))


@dataclass(frozen=True)
class Euler(Integrator):
    """Explicit Euler on an `ODE`; Euler-Maruyama on an Ito `SDE` (strong order 1/2, 1 for additive noise)."""

    order = 1

    def chain(self, problem: Problem) -> DriftChain:
        """Build the chain of an `ODE` or an Ito `SDE`."""
        if isinstance(problem.term, ODE | SemilinearODE):
            return RungeKuttaChain(problem, _EULER)
        if not isinstance(problem.term, SDE):
            raise refuse(self, problem.term, "an ODE or an SDE", "DDIM(), DDPM() or DPMSolver() for a Denoiser")
        if problem.term.interpretation != "ito":
            raise TypeError(
                "integrator: Euler converges to the Ito solution, got a stratonovich SDE; add the correction "
                "to the drift and pass interpretation='ito'."
            )
        return EulerMaruyamaChain(problem)


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
        instead = "Euler() for an SDE" if isinstance(problem.term, SDE) else "DDIM() or DPMSolver() for a Denoiser"
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
            "drift", term.drift, problem.layout, problem.args, term.vectorized, max_batch=problem.max_batch
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
        return self._drift(torch.from_numpy(t).to(y.device, y.dtype), y, torch.from_numpy(rows.sample))

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The steps of a window."""
        return Additive(torch.addcmul(x, outputs, per_step(self._h, n, x)))

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
                raise TypeError("one_sided: only of use to Euler(); leave it out for a method with stages.")
            return step_lipschitz(h, lipschitz, one_sided)[:, None]
        stages = [lipschitz]
        for a in self._a:
            stages.append(lipschitz * (1 + h * sum(abs(w) * l for w, l in zip(a, stages, strict=True))))
        return (1 + h * sum(abs(w) * l for w, l in zip(self._b, stages, strict=True)))[:, None]

    def increments(self, n: Index, sample: Index) -> Tensor:
        """None: an ODE has no noise."""
        return torch.zeros(len(n), 0)

    def counts(self) -> tuple[int, int]:
        """Drift calls and evaluations so far."""
        return self._drift.calls, self._drift.evaluations


class EulerMaruyamaChain(DriftChain):
    """``Phi_n(x) = x + h f + g dW`` (Kloeden & Platen 1992, eq. 10.2.4); the output of a step is f and g."""

    def __init__(self, problem: Problem):
        term = cast(SDE, problem.term)
        self.length = len(problem.ts) - 1
        self._noise, self._brownian, self._ts = term.noise, problem.brownian, problem.ts
        self._t, self._h = problem.ts[:-1], problem.ts.diff()
        self._layout, self._size, general = problem.layout, problem.layout.size, term.noise == "general"
        functions = (("drift", term.drift, 0), ("diffusion", term.diffusion, int(general)))
        self._drift, self._diffusion = (
            RowFunction(name, f, problem.layout, problem.args, term.vectorized, False, trailing, problem.max_batch)
            for name, f, trailing in functions
        )
        if bool((self._h < 0).any()):
            raise ValueError("ts: expected increasing times for an SDE; write the reverse-time equation forward.")
        self._brownian.check(self._t, problem.ts[1:], problem.layout.batch)

    @property
    def noise_size(self) -> int:
        """Brownian motions of a sample; for general noise known once the diffusion has been called."""
        return {"additive": self._size, "diagonal": self._size, "scalar": 1}.get(self._noise, self._motions)

    _motions: int = 0

    def evaluate(self, rows: Rows) -> Tensor:
        """``f`` and ``g`` side by side, ``(R, D + D m)``, and their derivatives."""
        t, sample = per_step(self._t, rows.step, rows.state)[:, 0], torch.from_numpy(rows.sample)
        states = rows.dual
        f, g = (function(t, states, sample) for function in (self._drift, self._diffusion))
        self._motions = g.shape[-1] // self._size
        return torch.cat([f, g], -1)

    @property
    def deviation(self) -> Tensor | None:
        """Of additive noise, the smallest of any element and sample; one call of the diffusion."""
        if self._noise != "additive":
            return None
        n, sample = np.divmod(np.arange(self.length * self._layout.batch), self._layout.batch)
        nowhere = torch.zeros(len(n), self._size, dtype=self._layout.compute_dtype, device=self._layout.device)
        g = self._diffusion(per_step(self._t, n, nowhere)[:, 0], nowhere, torch.from_numpy(sample)).double().cpu()
        return g.abs().reshape(self.length, -1).amin(1) * self._h.sqrt()

    def _noise_term(self, outputs: Tensor, noise: Tensor) -> Tensor:
        g = outputs[..., self._size :]
        if self._noise != "general":
            return g * noise
        return (g.reshape(*g.shape[:-1], self._size, -1) @ noise[..., None])[..., 0]

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The steps of a window."""
        assert noise is not None
        h = per_step(self._h, n, x)
        noisy = self._noise_term(outputs, noise)
        images = torch.addcmul(x, outputs[..., : self._size], h) + noisy
        power = torch.linalg.vector_norm(outputs[..., self._size :], dim=-1) * self._size**-0.5
        return Additive(
            images, power * h[..., 0].sqrt(), noisy=noisy if self._noise in ("diagonal", "scalar") else None
        )

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """Steps with fixed drift and diffusion, and their own known noise."""
        assert noise is not None
        drift = per_step(self._h, n, start) * source.output[..., : self._size]
        held = source.output.expand(len(n), *source.output.shape)
        return recurrence(None, drift + self._noise_term(held, noise), start)

    def increments(self, n: Index, sample: Index) -> Tensor:
        """``W(ts[n + 1]) - W(ts[n])``."""
        return self._brownian.increments(self._ts[n], self._ts[n + 1], torch.from_numpy(sample), self.noise_size)

    def counts(self) -> tuple[int, int]:
        """Calls of drift and diffusion together count once: they share a round and a state."""
        return self._drift.calls, self._drift.evaluations
