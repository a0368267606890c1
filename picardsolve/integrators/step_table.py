"""Numbers of each step, kept on the device of the states for the length of the grid."""

import torch
from torch import Tensor

from picardsolve.integrators.base import Index
from picardsolve.problem.index import on_device
from picardsolve.problem.row_function import RowFunction
from picardsolve.problem.state import Layout


class StepTable:
    """Numbers of each step, kept on the device of the states and read there for the steps of a window.

    Args:
        table: ``(N,)`` or ``(C, N)``, float64 on the CPU.
        layout: of the state, whose device the numbers are on.
        dtype: of the numbers; None: that of the states.
    """

    def __init__(self, table: Tensor, layout: Layout, dtype: torch.dtype | None = None):
        self._table, self._dtype, self._device = table, dtype or layout.compute_dtype, layout.device
        self._uploaded = False

    def at(self, n: Index) -> Tensor:
        """The entries of steps n, ``(*n.shape, 1)`` or ``(C, *n.shape, 1)``."""
        return self._read(n, (*n.shape, 1))

    def numbers(self, n: Index) -> Tensor:
        """The entries of steps n, ``n.shape`` or ``(C, *n.shape)``."""
        return self._read(n, n.shape)

    def _read(self, n: Index, shape: tuple[int, ...]) -> Tensor:
        if not self._uploaded:
            self._table, self._uploaded = self._table.to(self._device, self._dtype), True
        index = on_device(n, self._device)
        found = self._table.index_select(-1, index if index.dim() == 1 else index.flatten())
        return found.view(*self._table.shape[:-1], *shape)


class Times(StepTable):
    """Times on the device of the states, in the dtype that a function is given.

    Args:
        ts: ``(N,)`` or ``(C, N)``, float64 on the CPU.
        function: what is called at the times.
    """

    def __init__(self, ts: Tensor, function: RowFunction):
        super().__init__(ts, function.layout, function.clock.ladder[0])
