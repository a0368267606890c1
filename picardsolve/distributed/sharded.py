"""A function whose rows the ranks of a mesh share, in any solver."""

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.distributed.mesh_crew import MeshCrew
from picardsolve.problem.checks import check_callable
from picardsolve.problem.crew import Copied, Job, spread


def shard(drift: Callable[..., Any], mesh: Any) -> "Sharded":
    """A drift or a model whose rows are shared by the ranks of a mesh.

        drift = ps.distributed.shard(drift, mesh)            # on every rank
        ys = any_solver(drift, y0, ts)                       # on every rank, in the same order

    Every rank makes the same calls. In each call a rank evaluates its share of the rows that rank 0 of the mesh was
    called with, and all get all values from there, so that they go on from the same bits. Ranks that do not call with
    the same shapes are an error on each. In this library's own calls pass ``mesh=`` instead: there rank 0 alone
    decides, also by the clock, and rows cross fewer times. No gradients are recorded.

    Args:
        drift: ``drift(t, y, *args)`` or ``model(x, t, **cond)`` of many rows; tensors with as many entries as its first
            two arguments are cut, others are not.
        mesh: a ``DeviceMesh``, as for `picardsolve.solve`.

    Raises:
        TypeError: the drift is no function, or the mesh is none.
        ValueError: the mesh cannot be used, see docs/devices.md.
    """
    check_callable("drift", drift)
    return Sharded(drift, MeshCrew(mesh))


class Sharded(Job):
    """See `shard`."""

    def __init__(self, drift: Callable[..., Any], crew: MeshCrew):
        update_wrapper(self, drift, updated=())
        self._drift, self._crew, self._compared = drift, crew, False
        self._number = crew.enlist(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The values at all rows.

        Raises:
            ValueError: the first two arguments have no rows in common, or gradients are wanted.
            RankError: see `picardsolve.distributed.RankError`.
        """
        rows = _rows(args)
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in tensors):
            raise ValueError(
                "shard: an argument requires grad, which a sharded call does not record; detach it, or call the drift."
            )

        def cut(leaf: Any, own: slice) -> Any:
            return leaf[own] if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == rows else leaf

        def part(own: slice) -> Any:
            return pytree.tree_map(lambda leaf: cut(leaf, own), (args, kwargs))

        def lead() -> Any:
            found = spread(self._crew, self._number, rows, part)
            return pytree.tree_map(lambda *leaves: torch.cat(leaves), *found)

        shapes = [(tuple(leaf.shape), str(leaf.dtype)) for leaf in tensors]
        reach, self._compared = () if self._compared else (self._drift,), True
        with torch.no_grad():
            return self._crew.together(lead, {"shapes of arguments": shapes}, *reach)

    def work(self, part: tuple[Any, Any]) -> Any:
        """The values at some rows."""
        args, kwargs = part
        return self._drift(*args, **kwargs)

    def on(self, device: torch.device, copied: Copied) -> "Job":
        """Not for devices of one process."""
        raise ValueError("shard: of ranks; for devices of one process pass devices= to the solve.")


def _rows(args: tuple[Any, ...]) -> int:
    leading = [pytree.tree_leaves(arg) for arg in args[:2]]
    sizes = {len(leaf) for leaves in leading for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
    if len(leading) < 2 or len(sizes) != 1:
        raise ValueError(
            "shard: expected a call with many states and their times, whose first dimensions are alike; write the "
            "drift for many rows at once."
        )
    return sizes.pop()
