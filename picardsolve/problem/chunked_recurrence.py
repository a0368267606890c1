"""The recurrence ``y[j + 1] = a[j] y[j] + c[j]`` in a number of operations that hardly grows with its length.

On a device an operation takes longer to start than to run. The steps are cut into chunks. Within all chunks at once,
``y[n] = sum_m (a[m + 1] ... a[n]) c[m]`` is one sum over a triangle of products. The last values of the chunks then
follow a recurrence of their own, and what they carry into the next chunk is added (Blelloch 1990, Prefix sums).
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from picardsolve.problem.autocast import without_autocast

_LONG, _SHORT = 64, 8  # steps in a chunk
_MOST = 2**26  # numbers in products of elements, which take as many times the memory of the steps as a chunk is long


class ChunkedRecurrence:
    """The products of the factors, with which the recurrence is solved for any number of right-hand sides.

    Where a step has one factor for all elements, the sums are products of matrices.

    Args:
        a: ``(W, B, D)``, ``(W, B, 1)`` or ``(W, 1, 1)``; the first is not read.
        size: numbers in the largest right-hand side.
    """

    def __init__(self, a: Tensor, size: int):
        self._width, self._scalar = len(a), a.shape[-1] == 1
        longest = _LONG if self._scalar else max(_MOST // max(size, 1), _SHORT)
        chunk = min(longest, _LONG, self._width)
        self._shape = -(-self._width // chunk), chunk
        a = self._cut(a)
        after, self._before = _triangles(chunk, a.device)
        self._products = _finite(a[:, :, None].masked_fill(after, 1).cumprod(1))
        if self._scalar:  # (count, B or 1, n, m)
            self._products = self._products.masked_fill_(self._before, 0)[..., 0].permute(0, 3, 1, 2)
        self._through = (
            _finite(a.cumprod(1)) if self._shape[0] > 1 else None
        )  # what a chunk makes of the value before it

    def __call__(self, c: Tensor) -> Tensor:
        """Solve it from zero; a value that is not finite spoils none before it.

        Args:
            c: ``(W, B, D)``.

        Returns:
            ``y[1], ..., y[W]``, shape ``(W, B, D)``.
        """
        with without_autocast(c.device):
            y = (self._by_matrices if self._scalar else self._by_elements)(self._cut(c))
        if self._through is None:
            return y[0]
        ends, through = y[:, -1], self._through
        entering = ChunkedRecurrence(through[:, -1], ends.numel())(ends)
        y[1:].addcmul_(through[1:], entering[:-1, None])
        return y.flatten(0, 1)[: self._width]

    def _by_elements(self, c: Tensor) -> Tensor:
        terms = self._products * c[:, None]
        return terms.masked_fill_(self._before, 0).sum(2)

    def _by_matrices(self, c: Tensor) -> Tensor:
        rows = c.transpose(1, 2)
        finite = rows.nan_to_num(0, 0, 0)  # zero times what is not finite would spoil the values before it
        if len(c) == 1:
            return torch.baddbmm(rows[0] - finite[0], self._products[0].expand(len(rows[0]), -1, -1), finite[0])[
                None
            ].transpose(1, 2)
        return (rows - finite + self._products @ finite).transpose(1, 2)

    def _cut(self, rows: Tensor) -> Tensor:
        """Rows ``(W, ...)`` as chunks, zeros behind them."""
        count, chunk = self._shape
        if count * chunk > self._width:
            rows = pad(rows, (0, 0) * (rows.dim() - 1) + (0, count * chunk - self._width))
        return rows.unflatten(0, self._shape)


def _finite(products: Tensor) -> Tensor:
    """Products, in place, of which infinite ones would turn exact zeros into NaN."""
    largest = torch.finfo(products.dtype).max
    return products.nan_to_num_(0, largest, -largest)


@lru_cache(maxsize=64)
def _triangles(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Whether row n does not stand after row m, and whether it stands before it, both ``(n, m, 1, 1)``."""
    with torch.inference_mode(False):
        n = torch.arange(size, device=device)
        return (n[:, None] <= n)[..., None, None], (n[:, None] < n)[..., None, None]
