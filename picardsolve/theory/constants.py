"""Lipschitz constants and logarithmic norms of a drift: what differences show of them, and what its Jacobian says.

Everything here is a LOWER bound of the constant it is named after: a sample cannot show the worst pair of states, a
Krylov space not the worst direction, and a Jacobian only speaks of its own state. None of it certifies anything.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from picardsolve.problem.checks import check_positive_integer
from picardsolve.problem.forward_mode import jvp


def sampled_lipschitz(dx: Tensor, df: Tensor) -> Tensor:
    """``max_r |df_r| / |dx_r|``: a LOWER bound of the Lipschitz constant of f.

    Any two states have ``|f(x) - f(y)| <= L |x - y|``, which is the definition of L; those given say how large it is at
    least (Wood & Zhang 1996 on estimating L from samples).

    Args:
        dx: differences of states, ``(R, D)`` or ``(R, B, D)``.
        df: differences of the drift at those states, of the same shape.

    Returns:
        0-d, or ``(B,)``: one for each sample. Rows in which no state moved tell nothing; 0 where none did. NaN where a
        sample has one.

    Raises:
        ValueError: the shapes differ, or there are no rows.
    """
    _check_differences(dx, df)
    (_, moved), (_, answer) = _unit(dx), _unit(df)
    return torch.where(moved == 0, 0, answer / moved).amax(0)[..., 0]


def sampled_one_sided(dx: Tensor, df: Tensor) -> Tensor:
    """``max_r <dx_r, df_r> / <dx_r, dx_r>``: a LOWER bound of the one-sided Lipschitz constant of f.

    Any two states have ``<x - y, f(x) - f(y)> <= mu |x - y|^2`` (Dahlquist 1976; Hairer & Wanner 1996, section IV.12).
    For a differentiable f the smallest such mu is the largest logarithmic norm of the Jacobian.

    Args:
        dx: differences of states, ``(R, D)`` or ``(R, B, D)``.
        df: differences of the drift at those states, of the same shape.

    Returns:
        0-d, or ``(B,)``, at most `sampled_lipschitz` in absolute value; ``-inf`` where no state moved.

    Raises:
        ValueError: the shapes differ, or there are no rows.
    """
    _check_differences(dx, df)
    (direction, moved), (image, answer) = _unit(dx), _unit(df)
    cosine = (direction * image).sum(-1, keepdim=True)
    return torch.where(moved == 0, -torch.inf, cosine * (answer / moved)).amax(0)[..., 0]


@torch.no_grad()
def spectral_norm(f: Callable[[Tensor], Tensor], y: Tensor, iterations: int = 20, seed: int = 0) -> Tensor:
    """``||J_f(y)||_2`` of each row: the local Lipschitz constant, approached from below.

    Lanczos on ``J^T J`` from a random vector, by `torch.func.jvp` and `vjp`. A Ritz value is at most the largest
    eigenvalue, and never below what power iteration has after as many products; D iterations give it to rounding. The
    relative error of the eigenvalue is ``O((log D / iterations)^2)`` on average over the start, whatever the spectrum
    (Kuczynski & Wozniakowski 1992).

    Args:
        f: takes and returns ``(R, D)``, row by row.
        y: states, ``(R, D)``, float32 or float64.
        iterations: Jacobian-vector products, and as many vector-Jacobian products; D vectors a row each are kept.
        seed: of the start, which all rows share: a row's result does not depend on its company.

    Returns:
        ``(R,)``; NaN for rows whose Jacobian has one.

    Raises:
        TypeError: iterations is not an integer.
        ValueError: y is not ``(R, D)``, f returns another shape, or iterations is below 1.
    """
    forward, backward = _jacobian(f, y, iterations)
    start = _start(y, seed)
    _, size = _unit(forward(start))
    scale = torch.where(size == 0, 1, size)  # the squares of J would underflow or overflow
    largest = _largest_ritz_value(lambda v: backward(forward(v) / scale) / scale, start, iterations)
    return scale[:, 0] * largest.clamp(min=0).sqrt()


@torch.no_grad()
def logarithmic_norm(f: Callable[[Tensor], Tensor], y: Tensor, iterations: int = 20, seed: int = 0) -> Tensor:
    """``mu(J) = lambda_max((J + J^T) / 2)`` of each row, with ``J = J_f(y)``, approached from below.

    ``mu(J) = lim (||I + h J||_2 - 1) / h`` bounds how fast two solutions may part: ``|x - y|' <= mu |x - y|``
    (Dahlquist 1959; Lozinskij 1958; Soderlind 2006). It may be negative, where a Lipschitz constant cannot.

    Arguments, result and errors are those of `spectral_norm`, and so is the method, on ``(J + J^T) / 2``.
    """
    forward, backward = _jacobian(f, y, iterations)
    return _largest_ritz_value(lambda v: (forward(v) + backward(v)) / 2, _start(y, seed), iterations)


def _largest_ritz_value(apply: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> Tensor:
    """Of symmetric operators, one a row, on the Krylov spaces of unit vectors ``(R, D)``."""
    basis = start.new_zeros(len(start), min(iterations, start.shape[-1]), start.shape[-1])
    images, vector = torch.zeros_like(basis), start
    for j in range(basis.shape[1]):
        basis[:, j] = vector
        images[:, j] = apply(vector)
        vector = _orthogonal(images[:, j], basis)
    projected = basis @ images.mT
    projected = (projected + projected.mT) / 2
    # a space that ended early is filled up with an eigenvalue it may have, where zeros would be eigenvalues it has not
    ended = (basis == 0).all(-1)
    projected = projected + torch.diag_embed(torch.where(ended, projected[:, :1, 0], 0))
    known = projected.isfinite().all(-1).all(-1)
    largest = torch.linalg.eigvalsh(torch.where(known[:, None, None], projected, 0))[:, -1]
    return torch.where(known, largest, torch.nan)


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    """The unit vector that is left of each row beside its basis; zero where rounding is all that is left."""
    rest = vector
    for _ in range(2):  # twice is enough (Kahan, in Parlett 1998)
        rest = rest - (basis.mT @ (basis @ rest[..., None]))[..., 0]
    (direction, left), (_, size) = _unit(rest), _unit(vector)
    return torch.where(left > vector.shape[-1] * torch.finfo(vector.dtype).eps * size, direction, 0)


def _jacobian(
    f: Callable[[Tensor], Tensor], y: Tensor, iterations: int
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Products of the Jacobian of each row, and of its transpose, with a vector."""
    check_positive_integer("iterations", iterations)
    if y.dim() != 2:
        raise ValueError(f"y: expected states of shape (R, D), got {tuple(y.shape)}; flatten each state.")
    out, pull = torch.func.vjp(f, y)[:2]
    if out.shape != y.shape:
        raise ValueError(f"f: expected to return {tuple(y.shape)}, the shape of y, got {tuple(out.shape)}.")
    return lambda v: jvp(f, (y,), (v,))[1], lambda v: pull(v)[0]


def _start(y: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return _unit(torch.randn(y.shape[-1], generator=generator, dtype=torch.float64))[0].to(y).expand_as(y)


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Directions and Euclidean lengths ``(..., 1)``, without squares that under- or overflow."""
    largest = x.abs().amax(-1, keepdim=True)
    scaled = torch.where(largest == 0, 0, x / largest)
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return torch.where(largest == 0, 0, scaled / length), largest * length


def _check_differences(dx: Tensor, df: Tensor) -> None:
    if dx.shape != df.shape or dx.dim() < 2:
        raise ValueError(
            f"dx, df: expected two tensors of one shape, (R, D) or (R, B, D), got {tuple(dx.shape)} and "
            f"{tuple(df.shape)}."
        )
    if 0 in dx.shape:
        raise ValueError(f"dx: expected at least one row of at least one number, got shape {tuple(dx.shape)}.")
