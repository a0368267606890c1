"""Derivatives of a diffusion along its own columns, for the Ito-Stratonovich correction and for Milstein's method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from picardsolve.problem.forward_mode import jvp


@dataclass(frozen=True)
class WithDerivative:
    """A diffusion g and its derivatives ``L^j g_k = (dg_k / dy) g_j`` along its own columns (Kloeden & Platen 10.3).

    For diagonal and scalar noise the result has a last dimension of 2, for g and ``L g``; for diagonal noise, element i
    of g must depend on element i of the state only. For m columns the result is ``(..., 1 + m, m)``: first g, then in
    row j the derivatives of all columns along column j.

    Attributes:
        diffusion: called as the diffusion of an `picardsolve.SDE`, for one state or many.
        columns: whether the diffusion returns columns.
    """

    diffusion: Callable[..., Any]
    columns: bool

    def __call__(self, t: Any, y: Any, *args: Any) -> Any:
        """The result in the structure of ``y``, with one dimension more than the diffusion's."""

        def along(direction: Any) -> Any:
            return jvp(lambda y: self.diffusion(t, y, *args), (y,), (direction,))[1]

        g = self.diffusion(t, y, *args)
        if not self.columns:
            return pytree.tree_map(lambda *pair: torch.stack(pair, -1), g, along(g))
        derivatives = torch.func.vmap(along, in_dims=-1, out_dims=-2)(g)
        return pytree.tree_map(lambda g, row: torch.cat([g[..., None, :], row], -2), g, derivatives)


@dataclass(frozen=True)
class Corrected:
    """A drift plus a multiple of ``sum_j L^j g_j``, the Ito-Stratonovich correction (Kloeden & Platen, eq. 4.9.11).

    Attributes:
        drift: of the given equation.
        derivative: the diffusion of the given equation, with derivatives.
        factor: 1/2 from Stratonovich to Ito, -1/2 from Ito to Stratonovich.
    """

    drift: Callable[..., Any]
    derivative: WithDerivative
    factor: float

    def __call__(self, t: Any, y: Any, *args: Any) -> Any:
        """The corrected drift, in the structure of ``y``."""

        def correction(found: Any) -> Any:
            return found[..., 1:, :].diagonal(0, -2, -1).sum(-1) if self.derivative.columns else found[..., 1]

        added = pytree.tree_map(correction, self.derivative(t, y, *args))
        return pytree.tree_map(lambda f, c: f + self.factor * c, self.drift(t, y, *args), added)
