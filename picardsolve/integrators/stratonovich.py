"""Methods of two stages for Stratonovich's equation: Heun and the midpoint rule."""

from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from picardsolve.integrators.sde_chain import Fields, Scheme, SDEIntegrator, weighted
from picardsolve.problem.terms import SDE

_STRONG = MappingProxyType({"additive": 1.0, "diagonal": 1.0, "scalar": 1.0, "commutative": 1.0, "general": 0.5})
_WEAK = MappingProxyType(dict.fromkeys(_STRONG, 1.0))


def _ahead(at: Fields, f: Tensor, g: Tensor, c: float) -> Tensor:
    (increment,) = at.noise()
    return at.x + c * (at.h * f + weighted(g, increment))


def _heun(at: Fields) -> tuple[Tensor, Tensor]:
    f, g = at.drift(0.0, at.x), at.diffusion(0.0, at.x)
    x = _ahead(at, f, g, 1.0)
    return (f + at.drift(1.0, x)) / 2, (g + at.diffusion(1.0, x)) / 2


def _midpoint(at: Fields) -> tuple[Tensor, Tensor]:
    x = _ahead(at, at.drift(0.0, at.x), at.diffusion(0.0, at.x), 0.5)
    return at.drift(0.5, x), at.diffusion(0.5, x)


_HEUN, _MIDPOINT = (Scheme(2, f, lambda noise, h: noise[0], reads_noise=True) for f in (_heun, _midpoint))


@dataclass(frozen=True)
class StochasticHeun(SDEIntegrator):
    """Heun's method for a Stratonovich `SDE`: the mean of drift and diffusion before and after an Euler step.

        term = ps.SDE(f, g, interpretation="stratonovich")
        sol = ps.solve(term, y0, ts, integrator=ps.StochasticHeun(), brownian=ps.BrownianPath(seed=0))

    Source: Burrage, Burrage & Tian 2004, section 3; also Kloeden & Platen 1992, section 11.1. It has two stages, so
    that a window takes two rounds. An Ito equation is converted first, see `SDE.to_stratonovich`.
    """

    order = 2
    strong_order, weak_order = _STRONG, _WEAK

    def scheme(self, term: SDE) -> tuple[SDE, Scheme]:
        """Two drift and two diffusion calls."""
        return term.to_stratonovich(), _HEUN


@dataclass(frozen=True)
class StochasticMidpoint(SDEIntegrator):
    """The explicit midpoint rule for a Stratonovich `SDE`: drift and diffusion after half an Euler step.

        sol = ps.solve(ps.SDE(f, g, interpretation="stratonovich"), y0, ts, integrator=ps.StochasticMidpoint())

    It is "midpoint" in torchsde. Otherwise as `StochasticHeun`.
    """

    order = 2
    strong_order, weak_order = _STRONG, _WEAK

    def scheme(self, term: SDE) -> tuple[SDE, Scheme]:
        """Two drift and two diffusion calls."""
        return term.to_stratonovich(), _MIDPOINT
