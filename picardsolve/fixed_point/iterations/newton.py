"""Newton and quasi-Newton iteration."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.sweep import Memory, Swept
from picardsolve.integrators.base import Steps
from picardsolve.problem.checks import check_choice
from picardsolve.problem.recurrence import linear_sweep, matrix_sweep
from picardsolve.problem.state import LARGEST_DENSE

_CLIP = 2.0


@dataclass(frozen=True)
class Newton(Iteration):
    """``delta = (1 - damping) J_n (y - x)`` with the Jacobian ``J_n`` of the step, by forward-mode differentiation.

    The drift is called once a round, with P tangents: a round of R rows is R (1 + P) evaluations. The drift must be
    differentiable by `torch.func.jvp` and accepted by `torch.func.vmap`. For a multistep method, only the derivative
    with respect to the state that a step leaves from is used.

    Args:
        jacobian: "dense", the default: the whole Jacobian from P = D unit tangents, for states of at most 64 numbers;
            it converges quadratically (Lim et al. 2024, DEER). "diagonal": only its diagonal, from the same tangents
            (Gonzalez et al. 2024, quasi-DEER). "hutchinson", for large states: an estimate of the diagonal from one
            tangent of random signs, new in every round (Zoltowski et al. 2025). Diagonals are clipped to [-2, 2], for a
            product of larger numbers would blow up over a long window.
        damping: from 0, the default, to 1, which is `Jacobi` (Gonzalez et al. 2024, appendix).
        seed: seed of the signs.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a wrong value; in a solve, "dense" is given a state of more than 64 numbers, or the
            drift cannot be differentiated.
    """

    on_segments = "newton"
    jacobian: Literal["dense", "diagonal", "hutchinson"] = "dense"
    damping: float = 0.0
    seed: int = 0

    def __post_init__(self):
        check_choice("jacobian", self.jacobian, ("dense", "diagonal", "hutchinson"))
        if not isinstance(self.damping, int | float):
            raise TypeError(f"damping: expected a number from 0 to 1, got {self.damping!r}.")
        if not 0 <= self.damping <= 1:
            raise ValueError(f"damping: expected a number from 0 to 1, got {self.damping!r}.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise TypeError(f"seed: expected an integer, got {self.seed!r}.")

    @property
    def solves_equations(self) -> bool:
        """With the whole Jacobian."""
        return self.jacobian == "dense"

    def directions(self, size: int, rounds: int) -> Tensor | None:
        """Unit vectors, or one of random signs."""
        if self.jacobian == "hutchinson":
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + rounds) % 2**63)
            return 2.0 * torch.randint(2, (1, size), generator=generator) - 1
        if self.jacobian == "dense" and size > LARGEST_DENSE:
            raise ValueError(
                f"jacobian: 'dense' takes states of at most {LARGEST_DENSE} numbers, got {size}; pass "
                "jacobian='diagonal' or 'hutchinson'."
            )
        return _units(size)

    def sweep(self, steps: Steps, x: Tensor, scratch: Tensor, memory: Memory) -> Swept:
        """``Y[n+1] = F[n] + (1 - damping) J_n (Y[n] - X[n])``."""
        images = steps.images()
        if steps.derivatives is None or steps.directions is None:  # a single step: its state does not change
            return Swept(*linear_sweep(images, None, x, scratch))
        if self.jacobian != "dense":
            diagonal = (steps.derivatives * steps.directions).sum(-2)
            slope = torch.where(diagonal.isfinite(), diagonal, 1.0).clamp(-_CLIP, _CLIP)
            return Swept(*linear_sweep(images, (1 - self.damping) * slope, x, scratch), leaps=True)
        matrix = steps.derivatives.transpose(-1, -2)
        known = matrix.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        matrix = torch.where(known, matrix, steps.directions)  # which are the unit vectors
        return Swept(*matrix_sweep(images, (1 - self.damping) * matrix, x), tangent=True, leaps=True)


@lru_cache(maxsize=64)
def _units(size: int) -> Tensor:
    """Unit vectors, on the CPU: the same tensor in every round, so that a window sends it to the device once."""
    with torch.inference_mode(False):
        return torch.eye(size)
