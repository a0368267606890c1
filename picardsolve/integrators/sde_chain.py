"""The chain of steps of an SDE: what all methods share, and the form in which a method says what its own is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Evaluated, Hold, Index, Rows, Steps, per_step
from picardsolve.integrators.step_maps import AffineSteps
from picardsolve.problem.clock import Clock
from picardsolve.problem.derivative import Corrected
from picardsolve.problem.problem import Problem
from picardsolve.problem.recurrence import recurrence
from picardsolve.problem.row_function import RowFunction
from picardsolve.problem.terms import SDE

_ROWS = 1_000_000  # numbers of states that are put to a diffusion together where it is asked at all steps


@dataclass(frozen=True)
class Fields:
    """Drift and diffusion near rows, at times ``t + c h``; ``m`` below is 1 where each element has its own motion.

    Attributes:
        x: ``(R, D)`` states; ``(1 + P, R, D)`` with tangents behind.
        h: ``(R, 1)``.
        drift: ``drift(c, x)``, of the shape of ``x``.
        diffusion: ``diffusion(c, x)``, ``(..., D, Q)``: m columns, and what else the scheme has it return.
        noise: the increments of the rows, each ``(R, D or 1, m)``; to be asked for once the diffusion was evaluated.
    """

    x: Tensor
    h: Tensor
    drift: Callable[[float, Tensor], Tensor]
    diffusion: Callable[[float, Tensor], Tensor]
    noise: Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Scheme:
    """A one-step method ``Phi(x) = x + h f + sum_q g_q w_q``, affine in what it evaluates for given noise.

    Attributes:
        stages: drift calls that follow each other in a step.
        evaluate: f, ``(..., D)``, and g, ``(..., D, Q)``, the diffusion first, from `Fields`.
        weights: ``(..., D or 1, Q)`` from the increments, ``(..., D or 1, m)`` each, and ``h``, ``(..., 1, 1)``.
        reads_noise: ``evaluate`` asks for the noise.
        areas: the noise is W and the space-time Levy area H, not W alone.
        derivative: the diffusion is that of `picardsolve.problem.derivative.WithDerivative`.
        elementwise: of diagonal noise, elements of the diffusion may depend on nothing but their own of the state.
    """

    stages: int
    evaluate: Callable[[Fields], tuple[Tensor, Tensor]]
    weights: Callable[[tuple[Tensor, ...], Tensor], Tensor]
    reads_noise: bool = False
    areas: bool = False
    derivative: bool = False
    elementwise: bool = False


class SDEChain(DriftChain):
    """The chain of a scheme; the output of a step is its f and g side by side, ``(R, D + D Q)``."""

    iteration = "secant"  # measured: docs/sde_iterations.md

    def __init__(self, problem: Problem, scheme: Scheme):
        term, self._layout, self._size = cast(SDE, problem.term), problem.layout, problem.layout.size
        self.length, self.rounds, self.reads_noise = len(problem.ts) - 1, scheme.stages, scheme.reads_noise
        self._scheme, self._noise, self._brownian, self._ts = scheme, term.noise, problem.brownian, problem.ts
        self._t, self._h = problem.ts[:-1], problem.ts.diff()
        columns = {"additive": None, "diagonal": 0, "scalar": 0}.get(term.noise, 1)
        trailing = columns + 1 if scheme.derivative and columns is not None else columns
        diffusion = term.derivative if scheme.derivative else term.diffusion
        self._clock = Clock.of(problem.ts, problem.layout)
        self._drift, self._diffusion = (
            RowFunction(
                *(name, f, problem.layout, self._clock, problem.args, term.takes),
                trailing=more,
                max_batch=problem.max_batch,
                parameters=problem.parameters,
            )
            for name, f, more in (("drift", term.drift, 0), ("diffusion", diffusion, trailing))
        )
        if bool((self._h < 0).any()):
            raise ValueError("ts: expected increasing times for an SDE; write the reverse-time equation forward.")
        self._brownian.check(self._t, problem.ts[1:], problem.layout.batch)
        if scheme.elementwise or isinstance(term.drift, Corrected):
            self._check_structure(problem, term)

    @property
    def noise_size(self) -> int:
        """Numbers of noise; where the diffusion has columns, known once it has been called."""
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
        """Whether each element has its own motion, or the motion has but one dimension."""
        return self._noise in ("diagonal", "scalar") or not self._diffusion.tail

    def evaluate(self, rows: Rows) -> Tensor:
        """``f`` and ``g``, and their derivatives."""
        t, length, h = self._t[rows.step], self._h[rows.step], per_step(self._h, rows.step, rows.state)
        sample = torch.from_numpy(rows.sample)

        def drift(c: float, x: Tensor) -> Tensor:
            return self._drift(t + c * length, x, sample)

        def diffusion(c: float, x: Tensor) -> Tensor:
            return self._diffusion(t + c * length, x, sample).unflatten(-1, (self._size, -1))

        def noise() -> tuple[Tensor, ...]:
            drawn = self.increments(rows.step, rows.sample) if rows.noise is None else rows.noise
            return self._motions(drawn.to(rows.state))

        f, g = self._scheme.evaluate(Fields(rows.dual, h, drift, diffusion, noise))
        return torch.cat([f, g.flatten(-2)], -1)

    def _motions(self, noise: Tensor) -> tuple[Tensor, ...]:
        parts = noise.chunk(1 + self._scheme.areas, -1)
        return tuple(part[..., None] if self._own else part[..., None, :] for part in parts)

    def _step(self, outputs: Tensor, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``f`` and ``sum_q g_q w_q``."""
        f, g = outputs[..., : self._size], outputs[..., self._size :].unflatten(-1, (self._size, -1))
        return f, weighted(g, self._scheme.weights(self._motions(noise), h[..., None]))

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The steps of a window."""
        assert noise is not None
        h = per_step(self._h, n, x)
        f, added = self._step(outputs, h, noise)
        g = outputs[..., self._size :].unflatten(-1, (self._size, -1))[..., : 1 if self._own else self.noise_size]
        power = torch.linalg.vector_norm(g, dim=(-2, -1)) * self._size**-0.5
        own = added if self._noise in ("diagonal", "scalar") else None
        scale = power * h[..., 0].sqrt()
        return AffineSteps(torch.addcmul(x, f, h).add_(added), elementwise=own, noise_scale=scale)

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """Steps with fixed drift and diffusion, and their own known noise."""
        assert noise is not None
        h = per_step(self._h, n, start)
        f, added = self._step(source.output.expand(len(n), *source.output.shape), h, noise)
        return recurrence(None, h * f + added, start)

    @property
    def deviation(self) -> Tensor | None:
        """Of Euler-Maruyama on additive noise, the smallest of any element and sample."""
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
        g = self._diffusion(self._t[n], nowhere, torch.from_numpy(sample))
        return g.double().cpu().abs().reshape(len(steps), -1).amin(1)

    def increments(self, n: Index, sample: Index) -> Tensor:
        """``W(ts[n + 1]) - W(ts[n])``; with areas, H behind it."""
        asked, size = (self._ts[n], self._ts[n + 1], torch.from_numpy(sample)), self.noise_size
        if not self._scheme.areas:
            return self._brownian.increments(*asked, size)
        return torch.cat(self._brownian.areas(*asked, size // 2), -1)

    def counts(self) -> tuple[int, int]:
        """Calls of drift and diffusion together count once: they share a round and a state."""
        return self._drift.calls, self._drift.evaluations

    def _check_structure(self, problem: Problem, term: SDE) -> None:
        """Refuse, before any work, a diffusion whose derivatives are not what its kind of noise promises.

        At one state, of the first sample at the first time; where the diffusion is not finite there, nothing is said.
        """
        gen = torch.Generator().manual_seed(0)
        state = (0.5 + torch.rand(1, self._size, generator=gen, dtype=torch.float64)).to(
            self._layout.device, self._layout.compute_dtype
        )
        at = problem.ts[:1], torch.zeros(1, dtype=torch.int64)
        slack = torch.finfo(self._layout.dtype).eps ** 0.5
        if term.noise == "diagonal" and self._size > 1:
            signs = torch.where(torch.rand(1, self._size, generator=gen) < 0.5, -1.0, 1.0).to(state)
            plain = RowFunction("diffusion", term.diffusion, self._layout, self._clock, problem.args, term.takes)
            _, all_alike, signed = plain(at[0], torch.stack([state, torch.ones_like(state), signs]), at[1])
            off = (signed - signs * all_alike).abs().max() > slack * all_alike.abs().max()
            if bool(off):
                raise ValueError(
                    "diffusion: expected element i of diagonal noise to depend on element i of the state alone, whose "
                    "derivatives are needed, got one that depends on others; pass noise='general' with columns."
                )
        if term.noise == "commutative":
            both = RowFunction(
                *("diffusion", term.derivative, self._layout, self._clock, problem.args, term.takes), trailing=2
            )
            table = both(at[0], state, at[1]).reshape(self._size, -1, (both.tail or (1, 1))[-1])[:, 1:]
            if bool((table - table.mT).abs().max() > slack * table.abs().max()):
                raise ValueError(
                    "noise: expected columns that commute, (dg_k / dy) g_j = (dg_j / dy) g_k, got others; pass "
                    "noise='general' and EulerMaruyama() or StochasticHeun()."
                )


def weighted(g: Tensor, w: Tensor) -> Tensor:
    """``sum_q g_q w_q``, ``(..., D)``, of g ``(..., D, Q)`` and w ``(..., D or 1, Q)``."""
    if g.shape[-1] == 1:
        return g[..., 0] * w[..., 0]
    if w.shape[-2] == 1:
        return (g @ w[..., 0, :, None])[..., 0]
    return (g * w).sum(-1)
