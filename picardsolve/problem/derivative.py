"""Derivatives of a diffusion along its own columns: the Ito-Stratonovich correction, and what Milstein's step adds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class WithDerivative:
    """A diffusion with its derivatives along its own columns, ``L^j g_k = (dg_k / dy) g_j`` (Kloeden & Platen 10.3).

    Of one Brownian motion for the state, or one for each element: g and ``L g`` as a last dimension of 2; for one each,
    element i of g must depend on element i of the state alone. Of columns ``(..., m)``: ``(..., 1 + m, m)``, in the
    first row g, in row j the derivatives of all columns along column j.

    Attributes:
        diffusion: called as that of an `picardsolve.SDE`, of one state or many.
        columns: whether it returns columns.
    """

    diffusion: Callable[..., Any]
    columns: bool

    def __call__(self, t: Any, y: Any, *args: Any) -> Any:
        """In the structure of ``y``, with one dimension more than the diffusion has."""

        def along(direction: Any) -> Any:
            return torch.func.jvp(lambda y: self.diffusion(t, y, *args), (y,), (direction,))[1]

        g = self.diffusion(t, y, *args)
        if not self.columns:
            return pytree.tree_map(lambda *pair: torch.stack(pair, -1), g, along(g))
        derivatives = torch.func.vmap(along, in_dims=-1, out_dims=-2)(g)
        return pytree.tree_map(lambda g, row: torch.cat([g[..., None, :], row], -2), g, derivatives)


@dataclass(frozen=True)
class Corrected:
    """A drift plus so many times ``sum_j L^j g_j``: Stratonovich's equation in Ito's form has 1/2 more, 4.9.11 there.

    Attributes:
        drift: of the equation that was given.
        derivative: of its diffusion.
        factor: 1/2 from Stratonovich to Ito, -1/2 back.
    """

    drift: Callable[..., Any]
    derivative: WithDerivative
    factor: float

    def __call__(self, t: Any, y: Any, *args: Any) -> Any:
        """In the structure of ``y``."""

        def correction(found: Any) -> Any:
            return found[..., 1:, :].diagonal(0, -2, -1).sum(-1) if self.derivative.columns else found[..., 1]

        added = pytree.tree_map(correction, self.derivative(t, y, *args))
        return pytree.tree_map(lambda f, c: f + self.factor * c, self.drift(t, y, *args), added)
