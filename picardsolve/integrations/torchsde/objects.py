"""torchsde's call with torchsde's own Brownian motions."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

import picardsolve as ps
from picardsolve.brownian.path import Path
from picardsolve.integrations.torchsde.path import THEIRS, TorchsdePath


def sdeint(
    sde: Any,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Any = None,
    method: str | None = None,
    dt: float = 1e-3,
    **more: Any,
) -> Any:
    """As `picardsolve.sdeint`; ``bm`` may also be a Brownian motion of torchsde, whose noise is then integrated.

    Args:
        sde: as there.
        y0: as there.
        ts: as there.
        bm: a ``BrownianInterval``, ``BrownianPath`` or ``BrownianTree`` of shape ``(batch, m)``, a
            `picardsolve.BrownianPath`, or None. It is asked for each step once, in order, half a millisecond or more
            each: picardsolve's own is faster. "srk" needs ``levy_area_approximation="space-time"``.
        method: as there.
        dt: as there.
        **more: as there.
    """
    path: Path | None = TorchsdePath(bm) if isinstance(bm, THEIRS) else bm
    return ps.sdeint(sde, y0, ts, path, method, dt, **more)
