"""Milstein's method, where the noise commutes."""

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Integrator
from picardsolve.integrators.euler_maruyama import EULER_MARUYAMA
from picardsolve.integrators.sde_chain import SDEChain
from picardsolve.integrators.takes import check_takes
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import SDE


def _products(motion: Tensor, less: Tensor | None) -> Tensor:
    """The increments, and behind them half their products."""
    products = motion[..., :, None] * motion[..., None, :]
    if less is not None:
        products = products - less[..., None] * torch.eye(motion.shape[-1]).to(motion)
    return torch.cat([motion, 0.5 * products.flatten(-2)], -1)


_ITO = replace(EULER_MARUYAMA, weights=lambda motions, h: _products(motions[0], h), derivative=True, elementwise=True)
_STRATONOVICH = replace(_ITO, weights=lambda motions, h: _products(motions[0], None))


@dataclass(frozen=True)
class Milstein(Integrator):
    """``x + h f + g dW + 1/2 sum_jk (dg_k / dy) g_j (dW_j dW_k - [j = k] h)``, for noise that commutes.

    Of a Stratonovich `SDE` without the last term (Kloeden & Platen 1992, eq. 10.3.16 and 10.3.21). The diffusion must
    be differentiable by `torch.func.jvp`: beside the drift a step costs two calls of the diffusion for diagonal or
    scalar noise, 1 + m for m columns. Of diagonal noise element i may depend on element i of the state alone; columns
    must be declared to commute, ``noise="commutative"``. Both are tried at one state before any work.

    Attributes:
        strong_order: of the mean distance to the exact path, by kind of noise.
        weak_order: of the error of expectations.
    """

    order = 1
    strong_order = MappingProxyType({"additive": 1.0, "diagonal": 1.0, "scalar": 1.0, "commutative": 1.0})
    weak_order = MappingProxyType(dict.fromkeys(strong_order, 1.0))

    def chain(self, problem: Problem) -> DriftChain:
        """Build the chain of an `SDE`; of additive noise that is Euler-Maruyama's."""
        term = cast(SDE, check_takes(self, problem, self.strong_order).term)
        if term.noise == "additive":
            return SDEChain(problem, EULER_MARUYAMA)
        return SDEChain(problem, _ITO if term.interpretation == "ito" else _STRATONOVICH)
