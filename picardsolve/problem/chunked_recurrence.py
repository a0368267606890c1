"""The recurrence ``y[j + 1] = a[j] y[j] + c[j]`` in a number of operations that hardly grows with its length.

On a device an operation takes longer to start than to run. The steps are cut into chunks. Within all chunks at once,
``y[n] = sum_m (a[m + 1] ... a[n]) c[m]`` is one sum over a triangle of products. Then the last values of the chunks follow
a recurrence of their own, and what they carry into the next chunk is added (Blelloch 1990, Prefix sums).
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

_LONG, _SHORT = 32, 8  # steps in a chunk, whose products take so many times the memory of the steps
_MANY = 2**21  # numbers of all steps above which chunks are short


def chunked_recurrence(a: Tensor, c: Tensor) -> Tensor:
    """Solve ``y[j + 1] = a[j] y[j] + c[j]`` from zero.

    A value that is not finite spoils those after it, not those before it.

    Args:
        a: ``(W, B, D)``, ``(W, B, 1)`` or ``(W, 1, 1)``; the first is not read.
        c: ``(W, B, D)``.

    Returns:
        ``y[1], ..., y[W]``, shape ``(W, B, D)``.
    """
    width = len(c)
    chunk = min(_LONG if c.numel() <= _MANY else _SHORT, width)
    if width == chunk:
        return _within(a[None], c[None])[0]
    count = -(-width // chunk)
    missing = (0, 0) * (c.dim() - 1) + (0, count * chunk - width)
    a, c = (pad(part, missing).unflatten(0, (count, chunk)) for part in (a, c))
    y = _within(a, c)
    through = a.cumprod(1)  # what a chunk makes of the value before it
    before = chunked_recurrence(through[:, -1], y[:, -1])
    y[1:].addcmul_(through[1:], before[:-1, None])
    return y.flatten(0, 1)[:width]


def _within(a: Tensor, c: Tensor) -> Tensor:
    """The recurrences of chunks ``(count, chunk, B, D)``, each from zero."""
    after, until = _triangles(c.shape[1], c.device)
    products = torch.where(after, a[:, :, None], 1).cumprod(1)
    return torch.where(until, products * c[:, None], 0).sum(2)


@lru_cache(maxsize=64)
def _triangles(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Whether row n stands after row m, and whether it stands at m or after it, both ``(n, m, 1, 1)``."""
    with torch.inference_mode(False):
        n = torch.arange(size, device=device)
        return (n[:, None] > n)[..., None, None], (n[:, None] >= n)[..., None, None]
