"""The linear recurrence ``y[j + 1] = a[j] y[j] + c[j]``, which sweeps, guesses and linear parts are made of."""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from picardsolve.problem.chunked_recurrence import ChunkedRecurrence

WIDE = 4096  # elements of a row above which computing it takes longer than starting an operation
SHORT = 24  # rows up to which one operation for each takes less time than doubling


def recurrence(a: Tensor | None, c: Tensor, start: Tensor | None = None) -> Tensor:
    """Solve ``y[j + 1] = a[j] y[j] + c[j]`` for all j.

    Where ``start`` and the first ``c`` are zero, the first ``y`` are exactly zero: states that are exact stay exact.

    Args:
        a: ``(W, B, D)``, ``(W, B, 1)`` or ``(W, 1, 1)``; None for all ones.
        c: ``(W, B, D)``; may be overwritten.
        start: ``y[0]``, shape ``(B, D)``; None for zero.

    Returns:
        ``y[1], ..., y[W]``, shape ``(W, B, D)``.
    """
    if start is not None:
        first = c[0]
        first.add_(start) if a is None else first.addcmul_(a[0], start)
    return Recurrence(a, c.numel())(c)


class Recurrence:
    """`recurrence` from zero with given factors, for any number of right-hand sides.

    Args:
        a: as there.
        size: numbers in the largest right-hand side.
    """

    def __init__(self, a: Tensor | None, size: int):
        self._a, self._chunked = a, None
        if a is not None and a.device.type != "cpu" and len(a) > 1:  # where starting an operation is dear
            self._chunked = ChunkedRecurrence(a, size)

    def __call__(self, c: Tensor) -> Tensor:
        """The solution for ``c``, ``(W, B, D)``, which may be overwritten."""
        a, wide = self._a, c.device.type == "cpu" and c[0].numel() >= WIDE
        if len(c) == 1:
            return c
        if self._chunked is not None:
            return self._chunked(c)
        if a is None:
            return _by_rows(a, c) if wide else c.cumsum(0)
        return _by_rows(a, c) if wide or len(c) <= SHORT else _by_doubling(a, c)

    def of_copy(self, c: Tensor) -> Tensor:
        """The solution for ``c``, which is kept."""
        return self(c if self._chunked is not None else c.clone())


def linear_sweep(images: Tensor, factor: Tensor | None, x: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sweep ``Y[n+1] = F[n] + a_n (Y[n] - X[n])`` from ``Y[b] = X[b]``.

    It starts from the step map's values, not from one long sum: where a state did not change, the next one is exactly
    its value.

    Args:
        images: the step map's values ``F``, shape ``(W, B, D)``; overwritten by the new states.
        factor: ``a``, shape ``(W, B, D)`` or ``(W, B, 1)``; None for all ones.
        x: ``X[b] ... X[b + W]``, shape ``(W + 1, B, D)``.
        scratch: ``(W, B, D)`` memory, in which the changes may be returned.

    Returns:
        The new states ``Y[b + 1] ...`` and their changes ``Y - X``, both ``(W, B, D)``, and the root mean squares of
        the residuals ``F[n] - X[n + 1]``, ``(W, B)``.
    """
    residual = torch.sub(images, x[1:], out=scratch)
    size = rms(residual)
    return *propagated(images, factor, recurrence(factor, residual)), size


def propagated(images: Tensor, factor: Tensor | None, change: Tensor) -> tuple[Tensor, Tensor]:
    """The new states, from values ``(W, B, D)``, which are overwritten, and the changes of states; both."""
    if factor is None:
        images[1:].add_(change[:-1])
    else:
        images[1:].addcmul_(factor[1:], change[:-1])
    return images, change


def matrix_sweep(images: Tensor, factor: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`linear_sweep` with a matrix for each step: ``factor`` is ``(W, B, D, D)``, finite."""
    residual = images - x[1:]
    size = rms(residual)
    change = matrix_recurrence(factor, residual)
    images[1:].add_(_times(factor[1:], change[:-1]))
    return images, change, size


def matrix_recurrence(a: Tensor, c: Tensor) -> Tensor:
    """`recurrence` with a finite matrix for each step: ``a`` is ``(W, B, D, D)``; ``c`` may be overwritten."""
    few = a[0].numel() * a.shape[-1] <= WIDE or a.device.type != "cpu"
    return _matrices_by_doubling(a, c) if few else _matrices_by_rows(a, c)


def arriving(change: Tensor) -> Tensor:
    """The changes of the states that steps leave from, given those of the states after them, both ``(W, B, ...)``."""
    return pad(change, (0, 0) * (change.dim() - 1) + (1, -1))


def rms(x: Tensor) -> Tensor:
    """Root mean square over the last dimension."""
    return torch.linalg.vector_norm(x, dim=-1).mul_(x.shape[-1] ** -0.5)


def _by_rows(a: Tensor | None, c: Tensor) -> Tensor:
    rows = c.unbind(0)
    if a is None:
        for before, row in pairwise(rows):
            row.add_(before)
    else:
        for factor, before, row in zip(a[1:].unbind(0), rows, rows[1:], strict=False):
            row.addcmul_(factor, before)
    return c


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _matrices_by_rows(a: Tensor, c: Tensor) -> Tensor:
    for factor, before, row in zip(a[1:].unbind(0), c.unbind(0), c[1:].unbind(0), strict=False):
        row.add_(_times(factor, before))
    return c


def _matrices_by_doubling(a: Tensor, c: Tensor) -> Tensor:
    """As `_by_doubling`. It takes matrix products in place of matrix-vector products, which pays for small matrices."""
    shift, largest = 1, torch.finfo(a.dtype).max
    while shift < len(c):
        c = torch.cat([c[:shift], c[shift:] + _times(a[shift:], c[:-shift])])
        product = (a[shift:] @ a[:-shift]).nan_to_num(0, largest, -largest)
        a = torch.cat([a[:shift], product])
        shift *= 2
    return c


def _by_doubling(a: Tensor, c: Tensor) -> Tensor:
    """The prefix sum of Hillis & Steele 1986: after pass p every y holds 2^p terms, so there are log2(W) passes."""
    shift, largest = 1, torch.finfo(a.dtype).max
    while shift < len(c):
        c = torch.cat([c[:shift], torch.addcmul(c[shift:], a[shift:], c[:-shift])])
        if 2 * shift >= len(c):
            return c
        product = a[shift:] * a[:-shift]  # an infinite one would turn exact zeros into NaN
        if product.is_complex():
            product = torch.where(product.isfinite(), product, 0)
        else:
            product = product.clamp(-largest, largest)
        a = torch.cat([a[:shift], product])
        shift *= 2
    return c
