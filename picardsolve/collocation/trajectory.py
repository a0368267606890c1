"""The paths of all samples of a solve, and the drift that they follow."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from picardsolve.collocation.dense import Path
from picardsolve.collocation.samples import Sample
from picardsolve.drift import RowFunction


@dataclass(frozen=True)
class Trajectory:
    """What the states of a solution are read from.

    Attributes:
        samples: as they ended.
        function: the drift.
        parameters: tensors that it has gradients by, beside its arguments; none where gradients were not recorded.
    """

    samples: list[Sample]
    function: RowFunction
    parameters: tuple[Tensor, ...]

    @cached_property
    def paths(self) -> list[Path | None]:
        """Of every sample; None where no segment was accepted."""
        marches = [sample.refinement.march for sample in self.samples]
        return [Path(march.accepted, march.nodes) if march.accepted else None for march in marches]

    def clocks(self, ts: Tensor) -> np.ndarray:
        """Times ``(T,)`` or, by sample, ``(T, B)``, as `Path` counts them; ``(T, B)``, NaN beyond what is known."""
        at = ts.detach().to("cpu", torch.float64).numpy()
        at = at[:, None] if at.ndim == 1 else at
        ends = np.array([sample.reached for sample in self.samples])
        posed = [sample.posed for sample in self.samples]
        begins = np.array([each.ts[0] for each in posed])
        clocks = np.array([each.sign for each in posed]) * (at - begins)
        known = (clocks >= 0) & (clocks <= ends * (1 + 1e-12) + 4 * np.finfo(float).eps * np.abs(begins))
        return np.where(known, np.minimum(clocks, ends), np.nan)

    def states(self, ts: Tensor) -> Tensor:
        """Rows ``(T, B, D)`` at such times; NaN beyond what is known."""
        clocks, layout = self.clocks(ts), self.function.layout
        out = np.full((*clocks.shape, layout.size), np.nan)
        for i, (sample, path) in enumerate(zip(self.samples, self.paths, strict=True)):
            known = ~np.isnan(clocks[:, i])
            if path is not None:
                out[known, i] = path(clocks[known, i])
            out[clocks[:, i] == 0, i] = sample.posed.start
        return torch.from_numpy(out).to(layout.device, layout.compute_dtype)
