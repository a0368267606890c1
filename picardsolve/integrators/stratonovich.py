"""Two-stage methods that converge to Stratonovich's solution: Heun and the midpoint rule."""

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import cast

from torch import Tensor

from picardsolve.integrators.base import DriftChain, Integrator
from picardsolve.integrators.sde_chain import Fields, Scheme, SDEChain, weighted
from picardsolve.integrators.takes import check_takes
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import SDE

_STRONG = MappingProxyType({"additive": 1.0, "diagonal": 1.0, "scalar": 1.0, "commutative": 1.0, "general": 0.5})
_WEAK = MappingProxyType(dict.fromkeys(_STRONG, 1.0))


def _ahead(at: Fields, f: Tensor, g: Tensor, c: float) -> Tensor:
    (motion,) = at.noise()
    return at.x + c * (at.h * f + weighted(g, motion))


def _heun(at: Fields) -> tuple[Tensor, Tensor]:
    f, g = at.drift(0.0, at.x), at.diffusion(0.0, at.x)
    x = _ahead(at, f, g, 1.0)
    return (f + at.drift(1.0, x)) / 2, (g + at.diffusion(1.0, x)) / 2


def _midpoint(at: Fields) -> tuple[Tensor, Tensor]:
    x = _ahead(at, at.drift(0.0, at.x), at.diffusion(0.0, at.x), 0.5)
    return at.drift(0.5, x), at.diffusion(0.5, x)


_HEUN, _MIDPOINT = (Scheme(2, f, lambda motions, h: motions[0], reads_noise=True) for f in (_heun, _midpoint))


@dataclass(frozen=True)
class StochasticHeun(Integrator):
    """Heun's method on a Stratonovich `SDE`: the mean of drift and diffusion here and where an Euler step leads.

    Source: Burrage, Burrage & Tian 2004, section 3; also Kloeden & Platen 1992, section 11.1. Two stages, so two rounds
    a window. An Ito equation is converted first, with `SDE.to_stratonovich`.

    Attributes:
        strong_order: of the mean distance to the exact path, by kind of noise.
        weak_order: of the error of expectations.
    """

    order = 2
    strong_order, weak_order = _STRONG, _WEAK

    def chain(self, problem: Problem) -> DriftChain:
        """Build the chain of an `SDE`."""
        return _chain(self, problem, _HEUN)


@dataclass(frozen=True)
class StochasticMidpoint(Integrator):
    """The explicit midpoint rule on a Stratonovich `SDE`: drift and diffusion where half an Euler step leads.

    What torchsde calls "midpoint". Otherwise as `StochasticHeun`.
    """

    order = 2
    strong_order, weak_order = _STRONG, _WEAK

    def chain(self, problem: Problem) -> DriftChain:
        """Build the chain of an `SDE`."""
        return _chain(self, problem, _MIDPOINT)


def _chain(integrator: StochasticHeun | StochasticMidpoint, problem: Problem, scheme: Scheme) -> DriftChain:
    term = cast(SDE, check_takes(integrator, problem, integrator.strong_order).term)
    return SDEChain(replace(problem, term=term.to_stratonovich()), scheme)
