"""Roessler's methods of strong order 1.5, which read the space-time Levy area of the path."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Integrator
from picardsolve.integrators.sde_chain import Fields, Scheme, SDEChain, weighted
from picardsolve.integrators.takes import check_takes
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import SDE


def _mean(motions: tuple[Tensor, ...]) -> Tensor:
    """The mean of W over the step, ``I_(1,0) / h = W / 2 + H``."""
    increment, area = motions
    return increment / 2 + area


def _sra1(at: Fields) -> tuple[Tensor, Tensor]:
    f, here, ahead = at.drift(0.0, at.x), at.diffusion(0.0, at.x), at.diffusion(1.0, at.x)
    x = at.x + 0.75 * at.h * f + 1.5 * weighted(ahead, _mean(at.noise()))
    return f / 3 + at.drift(0.75, x) * (2 / 3), torch.cat([here, ahead], -1)


def _sra1_weights(motions: tuple[Tensor, ...], h: Tensor) -> Tensor:
    mean = _mean(motions)
    return torch.cat([mean, motions[0] - mean], -1)


def _srid2(at: Fields) -> tuple[Tensor, Tensor]:
    f, g, root = at.drift(0.0, at.x), at.diffusion(0.0, at.x), at.h.sqrt()
    f1 = at.drift(1.0, at.x + at.h * f)
    g1 = at.diffusion(0.25, at.x + at.h * f / 4 - root * g[..., 0] / 2)
    g2 = at.diffusion(1.0, at.x + at.h * f + root * g[..., 0])
    f2 = at.drift(0.5, at.x + at.h * (f + f1) / 4 + weighted(g + g1 / 2, _mean(at.noise())))
    g3 = at.diffusion(0.25, at.x + at.h * f2 / 4 + root * (2 * g - g1 + g2 / 2)[..., 0])
    return (f + f1 + 4 * f2) / 6, torch.cat([g, g1, g2, g3], -1)


def _srid2_weights(motions: tuple[Tensor, ...], h: Tensor) -> Tensor:
    w, mean = motions[0], _mean(motions)
    twice, thrice = (w**2 - h) / (2 * h.sqrt()), (w**3 - 3 * h * w) / (6 * h)
    integrals = torch.cat([w, twice, mean, thrice], -1)
    table = [[-1, 1, 2, -2], [4 / 3, -4 / 3, -4 / 3, 5 / 3], [2 / 3, 1 / 3, -2 / 3, -2 / 3], [0, 0, 0, 1]]
    return integrals @ torch.tensor(table, dtype=w.dtype, device=w.device).T


_SRA1 = Scheme(2, _sra1, _sra1_weights, reads_noise=True, areas=True)
_SRID2 = Scheme(3, _srid2, _srid2_weights, reads_noise=True, areas=True, elementwise=True)


@dataclass(frozen=True)
class SRA1(Integrator):
    """Roessler's SRA1 on an `SDE` with additive noise (Roessler 2010, SIAM J. Numer. Anal. 48, table 6.3).

    It reads the space-time Levy area of the path, `BrownianPath.areas`. Two stages, so two rounds a window; the
    diffusion is called twice a step.

    Attributes:
        strong_order: of the mean distance to the exact path, by kind of noise.
        weak_order: of the error of expectations.
    """

    order = 2
    strong_order = MappingProxyType({"additive": 1.5})
    weak_order = MappingProxyType({"additive": 2.0})

    def chain(self, problem: Problem) -> DriftChain:
        """Build the chain of an `SDE` with additive noise."""
        return SDEChain(check_takes(self, problem, self.strong_order), _SRA1)


@dataclass(frozen=True)
class SRID2(Integrator):
    """Roessler's method of strong order 1.5 on an Ito `SDE` with diagonal or scalar noise; additive noise: `SRA1`.

    The coefficients are those of torchsde's "srk" (Roessler 2010, as above). No derivative of the diffusion is needed:
    it is called four times a step, the drift three times, so that a window takes three rounds. Of diagonal noise
    element i of the diffusion must depend on element i of the state alone, which is tried at one state before any work.

    Attributes:
        strong_order: of the mean distance to the exact path, by kind of noise.
        weak_order: of the error of expectations.
    """

    order = 3
    strong_order = MappingProxyType({"additive": 1.5, "diagonal": 1.5, "scalar": 1.5})
    weak_order = MappingProxyType({"additive": 2.0, "diagonal": 1.5, "scalar": 1.5})

    def chain(self, problem: Problem) -> DriftChain:
        """Build the chain of an Ito `SDE` with additive, diagonal or scalar noise."""
        term = cast(SDE, check_takes(self, problem, self.strong_order, ("ito",)).term)
        return SDEChain(problem, _SRA1 if term.noise == "additive" else _SRID2)
