"""The linear recurrence beneath every sweep and every guess: ``y[j + 1] = a[j] y[j] + c[j]``."""

import torch
from torch import Tensor

WIDE = 4096  # elements above which a row takes longer to move than an operation takes to start


def recurrence(a: Tensor | None, c: Tensor, start: Tensor | None = None) -> Tensor:
    """Solve ``y[j + 1] = a[j] y[j] + c[j]`` for all j without a loss of exact zeros.

    Where ``start`` and the first ``c`` are zero, so are the first ``y``, bit for bit: that keeps the exact prefix exact.

    Args:
        a: ``(W, B, 1)`` or ``(W, 1, 1)``; None for all ones.
        c: ``(W, B, D)``.
        start: ``y[0]``, shape ``(B, D)``; None for zero.

    Returns:
        ``y[1], ..., y[W]``, shape ``(W, B, D)``.
    """
    if start is not None:
        first = c[0] + (start if a is None else a[0] * start)
        c = torch.cat([first[None], c[1:]])
    if len(c) == 1:
        return c
    if c[0].numel() >= WIDE:
        return _by_rows(a, c)
    return c.cumsum(0) if a is None else _by_doubling(a, c)


def linear_sweep(images: Tensor, factor: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``Y[n+1] = F[n] + a_n (Y[n] - X[n])``, ``Y[b] = X[b]``.

    Written from the images, never as one sum from the window's start: where a state did not change, its successor is
    its image, bit for bit.

    Args:
        images: ``F``, shape ``(W, B, D)``.
        factor: ``a``, shape ``(W, B, 1)``; None for all ones.
        x: ``X[b] ... X[b + W]``, shape ``(W + 1, B, D)``.

    Returns:
        The new states ``Y[b + 1] ...``, their changes ``Y - X`` and the residuals ``F[n] - X[n + 1]``.
    """
    residual = images - x[1:]
    if len(images) == 1:
        return images, residual, residual
    change = recurrence(factor, residual)
    y = torch.empty_like(images)
    y[0] = images[0]
    if factor is None:
        torch.add(images[1:], change[:-1], out=y[1:])
    else:
        torch.addcmul(images[1:], factor[1:], change[:-1], out=y[1:])
    return y, change, residual


def _by_rows(a: Tensor | None, c: Tensor) -> Tensor:
    y = torch.empty_like(c)
    y[0] = c[0]
    rows = y.unbind(0)
    for j, increment in enumerate(c.unbind(0)[1:], 1):
        if a is None:
            torch.add(rows[j - 1], increment, out=rows[j])
        else:
            torch.addcmul(increment, a[j], rows[j - 1], out=rows[j])
    return y


def _by_doubling(a: Tensor, c: Tensor) -> Tensor:
    """Hillis & Steele 1986: after pass p every y holds 2^p terms; log2(W) passes, no division by a vanishing product."""
    shift = 1
    while shift < len(c):
        c = torch.cat([c[:shift], torch.addcmul(c[shift:], a[shift:], c[:-shift])])
        a = torch.cat([a[:shift], a[shift:] * a[:-shift]])
        shift *= 2
    return c
