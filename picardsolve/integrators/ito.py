"""Methods for Ito's equation: Euler-Maruyama, Milstein, and Roessler's methods of strong order 1.5."""

from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from picardsolve.integrators.sde_chain import Fields, Scheme, SDEIntegrator, weighted
from picardsolve.problem.terms import SDE


def _euler(at: Fields) -> tuple[Tensor, Tensor]:
    return at.drift(0.0, at.x), at.diffusion(0.0, at.x)


def _products(increments: Tensor, less: Tensor | None) -> Tensor:
    """The increments, and behind them half their products."""
    products = increments[..., :, None] * increments[..., None, :]
    if less is not None:
        products = products - less[..., None] * torch.eye(
            increments.shape[-1], dtype=increments.dtype, device=increments.device
        )
    return torch.cat([increments, 0.5 * products.flatten(-2)], -1)


def _mean(noise: tuple[Tensor, ...]) -> Tensor:
    """The mean of W over the step, ``I_(1,0) / h = W / 2 + H``."""
    increment, area = noise
    return increment / 2 + area


def _sra1(at: Fields) -> tuple[Tensor, Tensor]:
    f, here, ahead = at.drift(0.0, at.x), at.diffusion(0.0, at.x), at.diffusion(1.0, at.x)
    x = at.x + 0.75 * at.h * f + 1.5 * weighted(ahead, _mean(at.noise()))
    return f / 3 + at.drift(0.75, x) * (2 / 3), torch.cat([here, ahead], -1)


def _sra1_weights(noise: tuple[Tensor, ...], h: Tensor) -> Tensor:
    mean = _mean(noise)
    return torch.cat([mean, noise[0] - mean], -1)


def _srid2(at: Fields) -> tuple[Tensor, Tensor]:
    f, g, root = at.drift(0.0, at.x), at.diffusion(0.0, at.x), at.h.sqrt()
    f1 = at.drift(1.0, at.x + at.h * f)
    g1 = at.diffusion(0.25, at.x + at.h * f / 4 - root * g[..., 0] / 2)
    g2 = at.diffusion(1.0, at.x + at.h * f + root * g[..., 0])
    f2 = at.drift(0.5, at.x + at.h * (f + f1) / 4 + weighted(g + g1 / 2, _mean(at.noise())))
    g3 = at.diffusion(0.25, at.x + at.h * f2 / 4 + root * (2 * g - g1 + g2 / 2)[..., 0])
    return (f + f1 + 4 * f2) / 6, torch.cat([g, g1, g2, g3], -1)


def _srid2_weights(noise: tuple[Tensor, ...], h: Tensor) -> Tensor:
    w, mean = noise[0], _mean(noise)
    twice, thrice = (w**2 - h) / (2 * h.sqrt()), (w**3 - 3 * h * w) / (6 * h)
    integrals = torch.cat([w, twice, mean, thrice], -1)
    table = [[-1, 1, 2, -2], [4 / 3, -4 / 3, -4 / 3, 5 / 3], [2 / 3, 1 / 3, -2 / 3, -2 / 3], [0, 0, 0, 1]]
    return integrals @ torch.tensor(table, dtype=w.dtype, device=w.device).T


_EULER = Scheme(1, _euler, lambda noise, h: noise[0])
_MILSTEIN = replace(_EULER, weights=lambda noise, h: _products(noise[0], h), derivative=True, elementwise=True)
_MILSTEIN_STRATONOVICH = replace(_MILSTEIN, weights=lambda noise, h: _products(noise[0], None))
_SRA1 = Scheme(2, _sra1, _sra1_weights, reads_noise=True, areas=True)
_SRID2 = Scheme(3, _srid2, _srid2_weights, reads_noise=True, areas=True, elementwise=True)


@dataclass(frozen=True)
class EulerMaruyama(SDEIntegrator):
    """The Euler-Maruyama method for an Ito `SDE` with any noise, ``x[n+1] = x[n] + h f + g dW``.

        sol = ps.solve(ps.SDE(f, g), y0, ts, integrator=ps.EulerMaruyama(), brownian=ps.BrownianPath(seed=0))

    Source: Kloeden & Platen 1992, eq. 10.2.4. Convert a Stratonovich equation first, with ``term.to_ito()``, unless its
    noise is additive.
    """

    order = 1
    strong_order = MappingProxyType(
        {"additive": 1.0, "diagonal": 0.5, "scalar": 0.5, "commutative": 0.5, "general": 0.5}
    )
    weak_order = MappingProxyType(dict.fromkeys(strong_order, 1.0))
    interpretations = ("ito",)

    def scheme(self, term: SDE) -> tuple[SDE, Scheme]:
        """One drift and one diffusion call."""
        return term, _EULER


@dataclass(frozen=True)
class Milstein(SDEIntegrator):
    """Milstein's method for an `SDE` whose noise commutes.

        sol = ps.solve(ps.SDE(f, g, noise="diagonal"), y0, ts, integrator=ps.Milstein())

    A step is ``x + h f + g dW + 1/2 sum_jk (dg_k / dy) g_j (dW_j dW_k - [j = k] h)``; for a Stratonovich equation
    without the last term (Kloeden & Platen 1992, eqs. 10.3.16 and 10.3.21). For additive noise this is Euler-Maruyama.

    The diffusion must be differentiable by `torch.func.jvp`. Beside the drift, a step costs two calls of the diffusion
    for diagonal or scalar noise, and 1 + m for m columns. Diagonal noise: element i of the diffusion may depend on
    element i of the state only. Columns must commute, and be declared so by ``noise="commutative"``. Both are checked
    at one state before any work.
    """

    order = 1
    strong_order = MappingProxyType({"additive": 1.0, "diagonal": 1.0, "scalar": 1.0, "commutative": 1.0})
    weak_order = MappingProxyType(dict.fromkeys(strong_order, 1.0))

    def scheme(self, term: SDE) -> tuple[SDE, Scheme]:
        """The scheme of the term's interpretation; Euler-Maruyama's for additive noise."""
        if term.noise == "additive":
            return term, _EULER
        return term, _MILSTEIN if term.interpretation == "ito" else _MILSTEIN_STRATONOVICH


@dataclass(frozen=True)
class SRA1(SDEIntegrator):
    """Roessler's method SRA1 of strong order 1.5 for an `SDE` with additive noise.

        sol = ps.solve(ps.SDE(f, g, noise="additive"), y0, ts, integrator=ps.SRA1())

    Source: Roessler 2010, SIAM J. Numer. Anal. 48, table 6.3. It reads the space-time Levy area of the path, see
    `BrownianPath.areas`. It has two stages, so that a window takes two rounds, and calls the diffusion twice a step.
    """

    order = 2
    strong_order = MappingProxyType({"additive": 1.5})
    weak_order = MappingProxyType({"additive": 2.0})

    def scheme(self, term: SDE) -> tuple[SDE, Scheme]:
        """Two drift and two diffusion calls."""
        return term, _SRA1


@dataclass(frozen=True)
class SRID2(SDEIntegrator):
    """Roessler's method of strong order 1.5 for an Ito `SDE` with diagonal or scalar noise; for additive noise, `SRA1`.

        sol = ps.solve(ps.SDE(f, g, noise="diagonal"), y0, ts, integrator=ps.SRID2())

    Source: Roessler 2010, SIAM J. Numer. Anal. 48; the coefficients are those of "srk" in torchsde. It needs no
    derivative of the diffusion. A step calls the drift three times, so that a window takes three rounds, and the
    diffusion four times. Diagonal noise: element i of the diffusion must depend on element i of the state only, which
    is checked at one state before any work.
    """

    order = 3
    strong_order = MappingProxyType({"additive": 1.5, "diagonal": 1.5, "scalar": 1.5})
    weak_order = MappingProxyType({"additive": 2.0, "diagonal": 1.5, "scalar": 1.5})
    interpretations = ("ito",)

    def scheme(self, term: SDE) -> tuple[SDE, Scheme]:
        """The scheme for the term's kind of noise."""
        return term, _SRA1 if term.noise == "additive" else _SRID2
