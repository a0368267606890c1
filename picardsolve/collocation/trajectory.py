"""The paths of all samples of a solve, and the drift that they follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.collocation.dense import Path
from picardsolve.collocation.samples import Sample
from picardsolve.problem.row_function import RowFunction
from picardsolve.problem.state import Layout


@dataclass(frozen=True)
class Track:
    """Where one sample went.

    Attributes:
        start: ``(d,)``.
        begin: the time of the start.
        sign: direction of time.
        reached: how long it is known for.
        path: None where no segment was accepted.
    """

    start: np.ndarray
    begin: float
    sign: float
    reached: float
    path: Path | None


@dataclass(frozen=True)
class Course:
    """The states of all samples at any times, and nothing of what they were computed by.

    Attributes:
        tracks: of the samples.
        layout: of a sample's state.
    """

    tracks: Sequence[Track]
    layout: Layout

    def __call__(self, at: Tensor) -> Any:
        """The user's structure of states at times ``(T,)``, time first; NaN beyond what is known."""
        return self.layout.unpack_path(self.states(at))

    def detached(self) -> "Course":
        """This: it has no gradients."""
        return self

    def segments(self, sample: int) -> Tensor:
        """The times where segments begin, and where the last one ends, ``(S + 1,)``.

        Raises:
            ValueError: there is no such sample.
        """
        if sample >= len(self.tracks):
            raise ValueError(f"sample: expected one of {len(self.tracks)}, counted from 0, got {sample}.")
        track = self.tracks[sample]
        begins = np.zeros(0) if track.path is None else track.path.begins
        return torch.from_numpy(track.begin + track.sign * np.append(begins, track.reached))

    def clocks(self, ts: Tensor) -> np.ndarray:
        """Times ``(T,)`` or, by sample, ``(T, B)``, as `Path` counts them; ``(T, B)``, NaN beyond what is known."""
        at = ts.detach().to("cpu", torch.float64).numpy()
        at = at[:, None] if at.ndim == 1 else at
        begins, signs, ends = np.array([(track.begin, track.sign, track.reached) for track in self.tracks]).T
        clocks = signs * (at - begins)
        known = (clocks >= 0) & (clocks <= ends * (1 + 1e-12) + 4 * np.finfo(float).eps * np.abs(begins))
        return np.where(known, np.minimum(clocks, ends), np.nan)

    def states(self, ts: Tensor) -> Tensor:
        """Rows ``(T, B, D)`` at such times; NaN beyond what is known."""
        clocks, layout = self.clocks(ts), self.layout
        out = np.full((*clocks.shape, layout.size), np.nan)
        for i, track in enumerate(self.tracks):
            known = ~np.isnan(clocks[:, i])
            if track.path is not None:
                out[known, i] = track.path(clocks[known, i])
            out[clocks[:, i] == 0, i] = track.start
        return torch.from_numpy(out).to(layout.device, layout.compute_dtype)


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
    def course(self) -> Course:
        """Where they went."""
        return Course([_track(sample) for sample in self.samples], self.function.layout)

    @property
    def paths(self) -> list[Path | None]:
        """Of every sample; None where no segment was accepted."""
        return [track.path for track in self.course.tracks]

    def clocks(self, ts: Tensor) -> np.ndarray:
        """As of `Course`."""
        return self.course.clocks(ts)

    def states(self, ts: Tensor) -> Tensor:
        """As of `Course`."""
        return self.course.states(ts)


def _track(sample: Sample) -> Track:
    march, posed = sample.refinement.march, sample.posed
    path = Path(march.accepted, march.nodes) if march.accepted else None
    return Track(posed.start, float(posed.ts[0]), posed.sign, sample.reached, path)
