"""The chain of steps of an SDE, and the form in which an integrator describes one step."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from picardsolve.brownian.path import placed
from picardsolve.integrators.base import DriftChain, Evaluated, Hold, Index, Integrator, Rows, accepted_term
from picardsolve.integrators.noise_structure import check_noise_structure
from picardsolve.integrators.step_maps import AffineSteps, Steps
from picardsolve.integrators.step_table import StepTable, Times
from picardsolve.problem.derivative import Corrected
from picardsolve.problem.problem import Problem
from picardsolve.problem.recurrence import recurrence
from picardsolve.problem.terms import SDE

_ROWS = 1_000_000  # numbers of states in one call of a diffusion that is evaluated at all steps


@dataclass(frozen=True)
class Fields:
    """Drift and diffusion of rows, at times ``t + c h``. Below, m is 1 where each element has its own Brownian motion.

    Attributes:
        x: ``(R, D)`` states; ``(1 + P, R, D)`` with tangents behind.
        h: ``(R, 1)``, lengths of the steps.
        drift: ``drift(c, x)``, of the shape of ``x``.
        diffusion: ``diffusion(c, x)``, ``(..., D, Q)``: m columns, and further ones if the scheme takes derivatives.
        noise: a function that returns the increments of the rows, each ``(R, D or 1, m)``. The diffusion must have
            been evaluated before it is called.
    """

    x: Tensor
    h: Tensor
    drift: Callable[[float, Tensor], Tensor]
    diffusion: Callable[[float, Tensor], Tensor]
    noise: Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Scheme:
    """A one-step method ``Phi(x) = x + h f + sum_q g_q w_q``, for given noise affine in f and g.

    Attributes:
        stages: drift calls that follow each other in a step.
        evaluate: from `Fields` to f, ``(..., D)``, and g, ``(..., D, Q)``, with the diffusion itself first.
        weights: from the increments, ``(..., D or 1, m)`` each, and ``h``, ``(..., 1, 1)``, to ``(..., D or 1, Q)``.
        reads_noise: whether ``evaluate`` asks for the noise.
        areas: whether the noise is W and the space-time Levy area H, not W only.
        derivative: whether the diffusion is called as `picardsolve.problem.derivative.WithDerivative`.
        elementwise: whether, for diagonal noise, element i of the diffusion may depend on element i of the state only.
    """

    stages: int
    evaluate: Callable[[Fields], tuple[Tensor, Tensor]]
    weights: Callable[[tuple[Tensor, ...], Tensor], Tensor]
    reads_noise: bool = False
    areas: bool = False
    derivative: bool = False
    elementwise: bool = False


class SDEIntegrator(Integrator):
    """An integrator for an `SDE`.

    Attributes:
        strong_order: order of the mean distance to the exact path, for each kind of noise that the integrator takes.
        weak_order: order of the error of expectations, for each kind of noise.
        interpretations: those of a term with other than additive noise that the integrator takes.
    """

    strong_order: Mapping[str, float]
    weak_order: Mapping[str, float]
    interpretations: tuple[str, ...] = ("ito", "stratonovich")

    @abstractmethod
    def scheme(self, term: SDE) -> tuple[SDE, Scheme]:
        """The term in the interpretation whose solution the scheme converges to, and the scheme."""

    def chain(self, problem: Problem) -> DriftChain:
        """The chain of an `SDE`.

        Raises:
            TypeError: the term is no `SDE`, or one of another kind of noise or interpretation.
        """
        term, name = accepted_term(self, problem, SDE), type(self).__name__
        noises = tuple(self.strong_order)
        if term.noise not in noises:
            instead = "Milstein() or EulerMaruyama()" if noises == ("additive",) else "EulerMaruyama()"
            if term.noise == "general" and "commutative" in noises:
                instead = "noise='commutative' if the columns of the diffusion commute, or EulerMaruyama()"
            raise TypeError(
                f"integrator: {name} takes {', '.join(noises)} noise, got {term.noise} noise; pass {instead}."
            )
        if term.noise != "additive" and term.interpretation not in self.interpretations:
            raise TypeError(
                f"integrator: {name} converges to the Ito solution, got a stratonovich SDE; pass term.to_ito(), or add "
                "the correction to the drift and pass interpretation='ito'."
            )
        term, scheme = self.scheme(term)
        return SDEChain(replace(problem, term=term), term, scheme)


class SDEChain(DriftChain):
    """The chain of a scheme; the output of a step is its f and g side by side, ``(R, D + D Q)``."""

    iteration = "secant"  # measured: docs/sde_iterations.md

    def __init__(self, problem: Problem, term: SDE, scheme: Scheme):
        self._layout, self._size, self._ts = problem.layout, problem.layout.size, problem.ts
        self.length, self.rounds, self.reads_noise = len(problem.ts) - 1, scheme.stages, scheme.reads_noise
        self._scheme, self._noise = scheme, term.noise
        self._brownian = placed(problem.brownian, problem.layout.compute_dtype, problem.layout.device)
        self._t, self._h = problem.ts[:-1], problem.ts.diff()
        self._table = StepTable(self._h, problem.layout)
        columns = {"additive": None, "diagonal": 0, "scalar": 0}.get(term.noise, 1)
        trailing = columns + 1 if scheme.derivative and columns is not None else columns
        self.function = problem.row_function("drift", term.drift)
        self._times = Times(self._t, self.function)
        diffusion = term.derivative if scheme.derivative else term.diffusion
        self._diffusion = problem.row_function("diffusion", diffusion, trailing, self.function.clock)
        if bool((self._h < 0).any()):
            raise ValueError("ts: expected increasing times for an SDE; write the reverse-time equation forward.")
        self._brownian.check(self._t, problem.ts[1:], problem.layout.batch)
        if scheme.elementwise or isinstance(term.drift, Corrected):
            check_noise_structure(problem, term, self.function.clock)

    @property
    def noise_size(self) -> int:
        """Numbers of noise. For a diffusion with columns it is known once the diffusion has been called."""
        tail = self._diffusion.tail
        if self._noise in ("diagonal", "scalar"):
            motions = self._size if self._noise == "diagonal" else 1
        elif tail is None:
            motions = 0
        else:
            motions = tail[-1] if tail else self._size
        return motions * (1 + self._scheme.areas)

    @property
    def _own(self) -> bool:
        """Whether g has a single column: each element has its own Brownian motion, or all have the same one."""
        return self._noise in ("diagonal", "scalar") or not self._diffusion.tail

    def evaluate(self, rows: Rows) -> Tensor:
        """``f`` and ``g``, and their derivatives."""
        start, h, sample = self._times.numbers(rows.step), self._table.at(rows.step), rows.sample

        def time(c: float) -> Tensor:
            return start if c == 0 else (self._t + c * self._h)[torch.from_numpy(np.asarray(rows.step))]

        def drift(c: float, x: Tensor) -> Tensor:
            return self.function(time(c), x, sample)

        def diffusion(c: float, x: Tensor) -> Tensor:
            return self._diffusion(time(c), x, sample).unflatten(-1, (self._size, -1))

        def noise() -> tuple[Tensor, ...]:
            drawn = self.increments(rows.step, rows.sample) if rows.noise is None else rows.noise
            return self._motions(drawn.to(rows.state))

        f, g = self._scheme.evaluate(Fields(rows.dual, h, drift, diffusion, noise))
        return torch.cat([f, g.flatten(-2)], -1)

    def _motions(self, noise: Tensor) -> tuple[Tensor, ...]:
        """The increments, and the areas if the scheme reads them, as `Fields.noise` returns them."""
        parts = noise.chunk(1 + self._scheme.areas, -1)
        return tuple(part[..., None] if self._own else part[..., None, :] for part in parts)

    def _step(self, outputs: Tensor, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``f`` and ``sum_q g_q w_q``."""
        f, g = outputs[..., : self._size], outputs[..., self._size :].unflatten(-1, (self._size, -1))
        return f, weighted(g, self._scheme.weights(self._motions(noise), h[..., None]))

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The step maps of a window."""
        assert noise is not None
        h = self._table.at(n)
        f, added = self._step(outputs, h, noise)
        g = outputs[..., self._size :].unflatten(-1, (self._size, -1))[..., : 1 if self._own else self.noise_size]
        power = torch.linalg.vector_norm(g, dim=(-2, -1)) * self._size**-0.5
        own = added if self._noise in ("diagonal", "scalar") else None
        scale = power * h[..., 0].sqrt()
        return AffineSteps(torch.addcmul(x, f, h).add_(added), elementwise=own, noise_scale=scale)

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """Steps with f and g held fixed, and their own known noise."""
        assert noise is not None
        h = self._table.at(n)
        f, added = self._step(source.output.expand(len(n), *source.output.shape), h, noise)
        return recurrence(None, torch.addcmul(added, h, f), start)

    @property
    def deviation(self) -> Tensor | None:
        """For Euler-Maruyama with additive noise, the smallest deviation of any element and sample; otherwise None."""
        if self._noise != "additive" or self._scheme.stages > 1:
            return None
        steps = max(_ROWS // (self._size * self._layout.batch), 1)
        least: list[Tensor] = []
        for n in range(0, self.length, steps):
            least.append(self._least(np.arange(n, min(n + steps, self.length))))
            if not self._own:  # known once the diffusion was called
                return None
        return torch.cat(least) * self._h.sqrt()

    def _least(self, steps: Index) -> Tensor:
        """The smallest element of an additive diffusion at each of some steps."""
        n, sample = (index.ravel() for index in np.meshgrid(steps, np.arange(self._layout.batch), indexing="ij"))
        nowhere = torch.zeros(len(n), self._size, dtype=self._layout.compute_dtype, device=self._layout.device)
        g = self._diffusion(self._times.numbers(n), nowhere, sample)
        return g.double().cpu().abs().reshape(len(steps), -1).amin(1)

    def increments(self, n: Index, sample: Index) -> Tensor:
        """``W(ts[n + 1]) - W(ts[n])``; for a scheme with areas, H behind it."""
        asked, size = (self._ts[n], self._ts[n + 1], torch.from_numpy(sample)), self.noise_size
        if not self._scheme.areas:
            return self._brownian.increments(*asked, size)
        return torch.cat(self._brownian.areas(*asked, size // 2), -1)


def weighted(g: Tensor, w: Tensor) -> Tensor:
    """``sum_q g_q w_q``, ``(..., D)``, of g ``(..., D, Q)`` and w ``(..., D or 1, Q)``."""
    if g.shape[-1] == 1:
        return g[..., 0] * w[..., 0]
    if w.shape[-2] == 1:
        return (g @ w[..., 0, :, None])[..., 0]
    return (g * w).sum(-1)
