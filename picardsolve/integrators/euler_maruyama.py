"""The Euler-Maruyama method."""

from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from picardsolve.integrators.base import DriftChain, Integrator
from picardsolve.integrators.sde_chain import Fields, Scheme, SDEChain
from picardsolve.integrators.takes import check_takes
from picardsolve.problem.problem import Problem


def _evaluate(at: Fields) -> tuple[Tensor, Tensor]:
    return at.drift(0.0, at.x), at.diffusion(0.0, at.x)


EULER_MARUYAMA = Scheme(1, _evaluate, lambda motions, h: motions[0])


@dataclass(frozen=True)
class EulerMaruyama(Integrator):
    """``x[n+1] = x[n] + h f + g dW`` on an Ito `SDE` of any noise (Kloeden & Platen 1992, eq. 10.2.4).

    Of a Stratonovich equation that is not additive, pass ``term.to_ito()``.

    Attributes:
        strong_order: of the mean distance to the exact path, by kind of noise.
        weak_order: of the error of expectations.
    """

    order = 1
    strong_order = MappingProxyType(
        {"additive": 1.0, "diagonal": 0.5, "scalar": 0.5, "commutative": 0.5, "general": 0.5}
    )
    weak_order = MappingProxyType(dict.fromkeys(strong_order, 1.0))

    def chain(self, problem: Problem) -> DriftChain:
        """Build the chain of an Ito `SDE`."""
        return SDEChain(check_takes(self, problem, self.strong_order, ("ito",)), EULER_MARUYAMA)
